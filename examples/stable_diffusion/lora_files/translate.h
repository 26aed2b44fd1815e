// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/lightlora.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "lora_files/layer_places.h"
#include "lora_files/layer_values.h"

// LoRA files of transformer models (FLUX, SD 3, Wan, ...), which no program here draws with: read and
// written under every program's names, by the tables of families.h alone.

namespace lora_files {

/// How a program writes the adapters of a family.
struct Spelling {
  bool original = true;  ///< the original model's layers, else diffusers'
  bool flat = false;     ///< underscores for dots, and the strength beside the factors, as `.alpha`
  bool comfyui = false;  ///< ComfyUI's prefix, else the one that belongs to the names
  bool bare = false;     ///< no prefix
  bool peft = false;     ///< PEFT's prefix and its folder
  bool down_up = false;  ///< `.lora_down.weight`, else `.lora_A.weight`
};

/// The values of `--to` for files of these families.
const std::vector<std::string>& transformer_formats();

/// How the format of that name writes a family.
/// Errors: c10::Error for a format that does not have it
Spelling spelling_of(const std::string& format, const Family& family);

/// A layer's name, as far as its ending.
std::string spelled(const Spelling& spelling, const Family& family, const Place& place);

/// Whether the halves of a layer's outputs stand the other way round in diffusers.
bool turns(const LayerKind& kind, const LayerValues& values);

/// A file of one of the families.
struct TransformerFile {
  const Family* family = nullptr;
  /// As the file has them: under diffusers' or the original layers; shift and scale as diffusers
  /// has them.
  std::map<Place, LayerValues> layers;
  std::vector<std::string> ignored;  ///< tensors of no known layer or method
  int64_t tensors = 0;
};

struct ReadTransformer {
  std::string format;        ///< what it is read for: families that it spells alike need no choice
  std::string model_config;  ///< folder or config.json of the model; may be empty
  bool ignore_unmatched = false, allow_trailing_bytes = false;
};

/// Reads a file or a folder of PEFT, or of its components; none if its layers are of no family here,
/// Stable Diffusion's among them.
/// Errors: c10::Error naming the file: layers of no known name beside known ones, of several
///         families that the format spells differently, without a partner, given twice; an alpha of
///         zero; a folder without adapter_config.json
std::optional<TransformerFile> read_transformer(const std::string& path,
                                                const ReadTransformer& options);

/// The same under diffusers' layers throughout.
/// Errors: c10::Error for adapters that cannot be cut
TransformerFile unfused(const TransformerFile& file);

/// As states, for what the library does with them; those of one component under its name.
/// Errors: c10::Error for methods without plain factors
lightlora::Components components_of(const TransformerFile& file);

/// A file with other values: `components` are those of `unfused(file)`.
TransformerFile with_components(const TransformerFile& file,
                                const lightlora::Components& components);

/// The tensors of a format, by component for `peft` and else all under an empty name. Layers that only
/// the original or only diffusers has in one are cut or put together, with equal deltas.
/// Errors: c10::Error for what the format cannot hold
std::map<std::string, lightlora::TensorMap> tensors_of(const TransformerFile& file,
                                                       const std::string& format,
                                                       c10::ScalarType dtype);

/// Writes a file, or for `peft` a folder.
/// Errors: those of `tensors_of`; c10::Error for a path that cannot be written
void write_transformer(const TransformerFile& file, const std::string& format,
                       const std::string& path, c10::ScalarType dtype);

}  // namespace lora_files
