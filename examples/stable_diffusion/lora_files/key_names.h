// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

// What the names of a LoRA file's tensors say, for files of every family and method: also for those
// that lightlora does not read.

namespace lora_files {

/// How layers are named.
enum class Naming {
  kohya,              ///< `lora_unet_down_blocks_0_...`
  kohya_original,     ///< the same with the original block names, `lora_unet_input_blocks_1_...`
  diffusers,          ///< `unet.down_blocks.0...`, `transformer...`
  diffusers_doubled,  ///< `unet.unet...`, written by diffusers 0.22 to 0.24
  bare,               ///< diffusers' names without a prefix, up to 0.15
  peft,               ///< `base_model.model...`
  original,           ///< `diffusion_model...`, ComfyUI's
  native,             ///< this library's own
};

/// The naming in words.
std::string describe(Naming naming);

/// One tensor of an adapter.
struct TensorName {
  std::string name;    ///< as in the file
  Naming naming;       ///< how its layer is named
  std::string model;   ///< "unet", "text_encoder", "text_encoder_2", "transformer"; or empty
  std::string layer;   ///< what all tensors of the layer begin with
  std::string part;    ///< "down", "up", "alpha", ...
  std::string ending;  ///< the part as it is spelled, such as ".lora_A.weight"
  std::string method;  ///< "LoRA", "LoHa", ...
};

/// Reads a name; none if it is no adapter's.
std::optional<TensorName> parse_name(const std::string& name);

/// Which kinds of model have layers of such names; one, or several that the names and widths do not
/// tell apart. `widths`: the inputs of each layer, as far as they are known.
std::vector<std::string> families_of(const std::vector<TensorName>& names,
                                     const std::map<std::string, int64_t>& widths);

}  // namespace lora_files
