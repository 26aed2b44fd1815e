// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <lightlora/detail/formats/portable.h>
#include <lightlora/detail/option_text.h>
#include <lightlora/file_io.h>
#include <lightlora/state.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

// diag-OFT, BOFT, GLoRA, (IA)3, whole differences, norms and biases under the names of LyCORIS, most of
// which ComfyUI and A1111 read too.

namespace lightlora::detail {

// A matrix (n, m) as a convolution's kernels of these sizes, or as it is of a Linear layer.
inline at::Tensor as_kernels(const at::Tensor& matrix, const std::vector<int64_t>& kernel) {
  if (kernel.empty()) return matrix;
  std::vector<int64_t> sizes{matrix.size(0), -1};
  sizes.insert(sizes.end(), kernel.begin(), kernel.end());
  return matrix.reshape(sizes);
}

// The same of kernels of one pixel, with as many dimensions as the layer's have.
inline at::Tensor as_pixels(const at::Tensor& matrix, const LayerInfo& layer) {
  return as_kernels(matrix, std::vector<int64_t>(layer.kernel.size(), 1));
}

inline TensorMap diag_oft_names(const LayerState& layer) {
  TORCH_CHECK(layer.scale == 1.0, "'", layer.layer.name,
              "': expected scale 1 of a rotation, which LyCORIS cannot scale, got ", layer.scale,
              "; hint: write the native format");
  double constraint = 0;
  const auto found = layer.options.own().find("constraint");
  if (found != layer.options.own().end()) read_number(found->second, constraint);
  TensorMap tensors{{"oft_blocks", layer.trained.at("oft_blocks")},
                    {"alpha", at::full({}, constraint, at::kFloat)}};
  const auto lengths = layer.trained.find("rescale");
  if (lengths != layer.trained.end()) {
    tensors["rescale"] = as_pixels(lengths->second, layer.layer);
  }
  return tensors;
}

// LyCORIS makes as many factors as fit, of blocks whose number is a power of two.
inline TensorMap boft_names(const LayerState& layer) {
  TensorMap tensors = diag_oft_names(layer);
  at::Tensor& blocks = tensors.at("oft_blocks");
  const int64_t factors = blocks.size(0), count = blocks.size(1), block = blocks.size(2);
  TORCH_CHECK(layer.options.own().count("input_side") == 0, "'", layer.layer.name,
              "': expected rotations of the outputs, as LyCORIS' BOFT has them, got those of the ",
              "inputs; hint: --to peft or the native format");
  TORCH_CHECK(block % 2 == 0 && (count & (count - 1)) == 0, "'", layer.layer.name,
              "': expected even blocks whose number is a power of two, as LyCORIS' BOFT has them, ",
              "got ", count, " of ", block, "; hint: write the native format");
  int64_t most = 1;
  for (int64_t rest = count; rest > 1; rest /= 2) ++most;
  if (factors < most) {
    blocks = at::cat({blocks, at::zeros({most - factors, count, block, block}, blocks.options())});
  }
  return tensors;
}

inline TensorMap glora_names(const LayerState& layer) {
  const auto& trained = layer.trained;
  const double alpha = layer.scale * static_cast<double>(trained.at("a2").size(0));
  return {{"a1.weight", as_pixels(trained.at("a1"), layer.layer)},
          {"a2.weight", as_pixels(trained.at("a2"), layer.layer)},
          {"b1.weight", as_pixels(trained.at("b1"), layer.layer)},
          {"b2.weight", as_kernels(trained.at("b2"), layer.layer.kernel)},
          {"alpha", at::full({}, alpha, at::kFloat)}};
}

inline TensorMap ia3_names(const LayerState& layer) {
  const at::Tensor l = layer.trained.at("l");
  const bool of_input = layer.options.own().count("scale_input") > 0;
  at::Tensor values = (l.flatten() - 1) * layer.scale;
  if (!layer.layer.kernel.empty()) values = as_pixels(values.unsqueeze(0), layer.layer);
  return {{"weight", values}, {"on_input", at::scalar_tensor(of_input ? 1 : 0, at::kLong)}};
}

// Of a vector that an adapter of any variant has changed.
inline TensorMap difference_names(const LayerState& layer) {
  const at::Tensor values = layer.variant == "full" ? layer.trained.at("diff") * layer.scale
                                                    : make_adapter(layer)->delta().detach();
  const LayerInfo& info = layer.layer;
  if (!info.is_vector()) return {{"diff", as_kernels(values, info.kernel)}};
  const at::Tensor vector = values.flatten();
  if (info.type == "Bias") return {{"diff_b", vector}};
  // LyCORIS knows a norm by its weight.
  return info.part == "bias" ? TensorMap{{"b_norm", vector}, {"w_norm", at::zeros_like(vector)}}
                             : TensorMap{{"w_norm", vector}};
}

/// A layer's tensors by the names behind its own.
using LycorisNames = TensorMap (*)(const LayerState&);

/// How the layers of a variant are called there, or null if they are not: then they become factors.
inline LycorisNames lycoris_names(const LayerState& layer) {
  static const std::map<std::string, LycorisNames> methods{{"diag_oft", diag_oft_names},
                                                           {"boft", boft_names},
                                                           {"glora", glora_names},
                                                           {"ia3", ia3_names},
                                                           {"full", difference_names}};
  if (layer.layer.is_vector()) return difference_names;
  const auto found = methods.find(layer.variant);
  return found == methods.end() || layer.options.dora() ? nullptr : found->second;
}

/// The layer that the names are of: of a vector the norm or the layer that it is beside.
inline std::string lycoris_layer(const LayerInfo& info) {
  return info.is_vector() ? info.name.substr(0, info.name.rfind('.')) : info.name;
}

/// One layer's tensors by the names behind its own, in a dtype; what says how to read them stays.
inline TensorMap lycoris_tensors(const LayerState& layer, at::ScalarType dtype) {
  TensorMap tensors = lycoris_names(layer)(layer);
  for (auto& [name, value] : tensors) {
    if (name != "alpha" && name != "on_input") value = narrowed(value, dtype, layer.layer.name);
  }
  return tensors;
}

}  // namespace lightlora::detail
