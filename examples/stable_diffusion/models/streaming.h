// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <string>

namespace sd {

/// Frozen weights that pass through memory instead of staying in it: where they are, and how much
/// memory the process may take before it lets go of them.
struct StreamingOptions {
  int64_t memory_limit = 0;  ///< bytes of the whole process; 0 means no limit
  std::string folder;        ///< for a file of the weights in the dtype that computes
};

/// Moves a module's parameters and buffers, whose values are still to come, into a file. They are
/// used where they lie, with the same results to the bit; the system reads again what was let go of.
/// On a CPU only.
/// Errors: c10::Error if the folder has no room for them
void stream_weights(torch::nn::Module& module, const StreamingOptions& options);

/// Lets go of all streamed weights if the process has reached its limit; costs nothing where there
/// is none. Whoever has gone through a part of the weights calls it, as `run_segment` does.
/// `written`: the part was filled.
void let_go_of_weights(bool written = false);

/// at::empty for a feature map that is gone through part by part: where weights are streamed and the
/// map is large, it lies in a file as they do, and `let_go_of_weights` lets go of it too.
/// Errors: c10::Error if the folder has no room for it
at::Tensor streamed_map(at::IntArrayRef sizes, const at::TensorOptions& options,
                        at::MemoryFormat format);

}  // namespace sd
