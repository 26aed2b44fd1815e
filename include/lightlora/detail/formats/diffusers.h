// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/file_io.h>
#include <lightlora/state.h>

namespace lightlora::detail {

// diffusers' names are written here; dialects.h reads them, as it reads every other program's.

// The tensors of a file that diffusers' `load_lora_weights` takes as it is: classic factors with
// the scale folded in, one rank for all layers, no alpha keys.
// Shapes: down (rank, in) and up (out, rank); (rank, in, kh, kw) and (out, rank, 1, 1) for Conv2d
TensorMap to_diffusers(const Components& components, at::ScalarType dtype = at::kFloat);

}  // namespace lightlora::detail

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/formats/diffusers-inl.h>
#endif
