// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/file_io.h>
#include <lightlora/state.h>

#include <string>

namespace lightlora::detail {

// Kohya's names are written here; dialects.h reads them, as it reads every other program's.

// The tensors of a file with kohya's names: classic factors with the scale folded in, one rank,
// alpha = rank in the dtype of the weights, or fp32 where that would round it. At rank 1 there is
// no alpha, because one widespread reader divides it by the wrong size there, and without it all
// read alpha = rank. Shapes: as `to_diffusers`, alpha (); DoRA's dora_scale (out, 1), (out, 1, 1,
// 1) for Conv2d Errors: c10::Error for layers that are not Stable Diffusion's
TensorMap to_kohya(const Components& components, at::ScalarType dtype = at::kFloat);

// Writes a file for kohya's sd-scripts, A1111 and their relatives, with the least metadata that
// they show, `metadata` of the caller's own, and the two hashes that they know files by. LoHa and
// LoKr keep LyCORIS' names.
void save_kohya(const std::string& path, const Components& components, at::ScalarType dtype,
                const Metadata& metadata = {});

}  // namespace lightlora::detail

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/formats/kohya-inl.h>
#endif
