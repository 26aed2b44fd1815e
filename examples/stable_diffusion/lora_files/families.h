// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

// What the layers of transformer models are called by their authors and by diffusers: the tables by
// which LoRA files travel between the programs of those two.

namespace lora_files {

/// What becomes of a layer's outputs on the way from the original model to diffusers'.
enum class Rows {
  same,         ///< nothing: the layer has another name
  halves,       ///< shift and scale trade places
  last_halves,  ///< the same where the layer has nothing but the two, as in the last block
  equal_parts,  ///< the original has several of diffusers' layers in one, of one size
  qkv_mlp,      ///< the same with sizes of their own: three as the input, then the rest
};

/// A kind of layer, with `*` for the number of its block.
struct LayerKind {
  std::string original;
  std::vector<std::string> diffusers;  ///< one, or those that the original has in one
  Rows rows = Rows::same;
  double ratio = 0;    ///< outputs of the original by its inputs, where that tells families apart
  bool alias = false;  ///< a second name for parts of another kind, to read only

  bool is_fused() const { return diffusers.size() > 1; }
};

/// A model of a pipeline, and what the names of its layers begin with.
struct Component {
  std::string kohya;      ///< in names with underscores; empty: there are none
  std::string comfyui;    ///< in original names with dots
  std::string diffusers;  ///< also the folder's name, without the dot
  std::vector<LayerKind> kinds;
  /// The formats under whose names a program reads it; empty: all.
  std::vector<std::string> formats = {};
};

/// Which names ai-toolkit gives to the layers of a family.
enum class AiToolkit {
  comfyui,    ///< the original ones behind ComfyUI's prefix
  diffusers,  ///< diffusers' behind its own prefix
  mixed       ///< diffusers' behind ComfyUI's prefix
};

/// A kind of pipeline.
struct Family {
  std::string name;
  std::vector<std::string> classes;   ///< `_class_name` of its transformers in diffusers
  std::vector<int64_t> widths;        ///< of the published models
  std::vector<Component> components;  ///< the transformer first
  bool comfyui_down_up = false;  ///< diffusers reads ComfyUI's names only with `lora_down` behind
  AiToolkit ai_toolkit = AiToolkit::comfyui;
  bool musubi_original = true;  ///< musubi-tuner trains the original blocks, not diffusers'
};

/// All that are known. The pairs of names are those of diffusers 0.42.1: its converters of LoRA
/// files (`loaders/lora_conversion_utils.py`) and of single files (`loaders/single_file_utils.py`),
/// whose outputs a test compares with these tables.
const std::vector<Family>& families();

}  // namespace lora_files
