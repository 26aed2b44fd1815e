// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/detail/formats/native.h>
#include <lightlora/file_io.h>
#include <torch/arg.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace lightlora {

/// What to let pass in a LoRA file that is usually an error.
struct LoRAReadOptions {
  /// Bytes behind the last tensor of a safetensors file. Default: false
  TORCH_ARG(bool, allow_trailing_bytes) = false;
  /// Tensors of no known name or of methods that are not read here: the layers that are understood
  /// are read, and `LoRAContents::ignored` lists the rest. Default: false
  TORCH_ARG(bool, ignore_unmatched) = false;
};

/// What a LoRA file holds: its adapters, and what is worth showing about the file itself.
struct LoRAContents {
  Components components;             ///< the adapters of each model
  std::set<std::string> dialects;    ///< the spellings that occur
  std::set<std::string> dtypes;      ///< of the tensors
  Metadata metadata;                 ///< as it stands in the file
  std::set<std::string> embeddings;  ///< bundled with it, for `load_embeddings`
  std::vector<std::string> ignored;  ///< tensors passed over because the options say so
  int64_t tensors = 0;               ///< how many there are
  int64_t bytes = 0;                 ///< of all tensors
};

/// Reads a LoRA of any dialect, with what is worth showing about it. The dialect is found for each
/// tensor by itself, so files that mix spellings are read: native; diffusers since 0.12; PEFT, as a
/// file or a folder, also one with the folders `unet` and `text_encoder`; kohya, A1111 and LyCORIS,
/// with diffusers' or the original block names. A folder of diffusers is read too, and files of
/// torch.save. Methods: LoRA, also of convolutions and with a Tucker core; LoHa; LoKr; each with
/// DoRA.
/// Scale: an `.alpha` tensor, or the configuration of PEFT or diffusers, divided by the rank; else 1
/// Dtypes: any floating-point dtype, as fp32 (native files as they are)
/// Errors: c10::Error naming the file and the layer or the tensors: a name of no dialect or of
///         another method, a layer given twice, a tensor without its partner, factors of two ranks,
///         an alpha that is zero or not a number, two scales that disagree
LoRAContents read_lora(const std::string& path, const LoRAReadOptions& options = {});

/// The adapters of a LoRA of any dialect. Errors: those of `read_lora`
Components load_lora(const std::string& path);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/formats/dialects-inl.h>
#endif
