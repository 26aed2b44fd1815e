// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace sd {

/// Whether the UNet's weights are kept in the CPU kernels' layout too, see lightlora::pack_weights: a
/// good deal faster, for once more their memory, or twice where gradients pass. `if_small`: where they
/// are at most a sixth of the machine's memory.
enum class PackWeights { off, on, if_small };

}  // namespace sd
