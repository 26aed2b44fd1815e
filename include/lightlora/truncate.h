// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/state.h>

#include <cstdint>

namespace lightlora {

/// The best approximation of a layer's delta of at most this rank, as classic factors with the
/// scale folded in; a layer of that rank or less is only made classic.
/// Errors: c10::ValueError if rank < 1
LayerState truncate_rank(const LayerState& layer, int64_t rank);

/// As `truncate_rank`, but a Fused layer becomes Light and a Light one stays it, on the same bases:
/// with orthonormal bases the best approximation of the core is that of the delta.
/// Errors: c10::ValueError if rank < 1
LayerState truncate_in_variant(const LayerState& layer, int64_t rank);

}  // namespace lightlora

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/truncate.h>
#endif
