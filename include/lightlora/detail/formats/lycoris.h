// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <lightlora/detail/dora_state.h>
#include <lightlora/detail/formats/portable.h>
#include <lightlora/file_io.h>
#include <lightlora/state.h>
#include <lightlora/variants/lokr.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

// LoHa and LoKr under the names of LyCORIS, which sd-scripts, A1111, ComfyUI and PEFT share. Their
// products are of high rank: as plain factors they need many times the values.

namespace lightlora::detail {

inline bool has_own_names(const LayerState& layer) {
  return layer.variant == "loha" || layer.variant == "lokr";
}

/// One LoHa or LoKr layer as other programs hold it, with `alpha / rank` for its scale.
struct OwnTensors {
  TensorMap tensors;  ///< by names such as hada_w1_a
  double alpha = 1;
  int64_t rank = 0;  ///< of what is of low rank; 0 if nothing is: no reader of LyCORIS' scales that
};

// Shapes: as in the adapters, and for a LoKr matrix in full (k, n, kernel...)
inline OwnTensors own_tensors(const LayerState& layer, at::ScalarType dtype) {
  OwnTensors own;
  for (const auto& [name, value] : layer.trained) {
    at::Tensor tensor = value;
    if (name == "lokr_w2" && !layer.layer.kernel.empty()) {
      std::vector<int64_t> sizes{tensor.size(0), -1};
      sizes.insert(sizes.end(), layer.layer.kernel.begin(), layer.layer.kernel.end());
      tensor = tensor.reshape(sizes);
    }
    const bool low = name == "hada_w1_b" || name == "lokr_w1_b" || name == "lokr_w2_b";
    if (low) own.rank = tensor.size(0);
    own.tensors[name] = narrowed(tensor, dtype, layer.layer.name);
  }
  own.alpha = layer.scale * static_cast<double>(std::max<int64_t>(own.rank, 1));
  return own;
}

/// What PEFT's configuration of such layers says beside their names.
struct LycorisMethod {
  std::string type;  ///< LOHA or LOKR
  int64_t decompose_factor = -1;
  bool decompose_both = false;
  std::map<std::string, int64_t> ranks = {};  ///< by layer
  std::map<std::string, double> alphas = {};  ///< by layer
};

// Rows and columns of a LoKr layer's left matrix and, without the kernel, its right one.
struct KroneckerShape {
  int64_t l, m, k, n;
};

inline KroneckerShape kronecker_shape(const LayerState& layer) {
  const auto& trained = layer.trained;
  const auto size = [&](const char* full, const std::string& part, int64_t dim) {
    const auto found = trained.find(full);
    return found != trained.end() ? found->second.size(dim) : trained.at(full + part).size(dim);
  };
  int64_t kernel = 1;
  for (const int64_t side : layer.layer.kernel) kernel *= side;
  return {size("lokr_w1", "_a", 0), size("lokr_w1", "_b", 1), size("lokr_w2", "_a", 0),
          size("lokr_w2", "_b", 1) / kernel};
}

// The rank by which PEFT makes the same sides of low rank as the layer has; none if there is none.
inline std::optional<int64_t> peft_lokr_rank(const LayerState& layer, const KroneckerShape& shape,
                                             bool both) {
  const bool left_low = layer.trained.count("lokr_w1") == 0;
  const bool right_low = layer.trained.count("lokr_w2") == 0;
  const int64_t left = std::max(shape.l, shape.m), right = std::max(shape.k, shape.n);
  int64_t rank = layer.options.rank();
  if (right_low) {
    rank = layer.trained.at("lokr_w2_b").size(0);
  } else if (2 * rank < right) {
    rank = (right + 1) / 2;
  }
  const bool fits = (2 * rank < right) == right_low && (both && 2 * rank < left) == left_low &&
                    (!left_low || layer.trained.at("lokr_w1_b").size(0) == rank);
  return fits ? std::optional(rank) : std::nullopt;
}

// PEFT splits all layers by one factor. None of the candidates need do.
inline std::optional<LycorisMethod> peft_lokr(const AdapterState& state) {
  LycorisMethod method{"LOKR"};
  std::set<int64_t> candidates{-1};
  for (const auto& layer : state) {
    const auto shape = kronecker_shape(layer);
    candidates.insert({shape.l, shape.m});
    method.decompose_both = method.decompose_both || layer.trained.count("lokr_w1") == 0;
  }
  for (const auto& layer : state) {
    const auto rank = peft_lokr_rank(layer, kronecker_shape(layer), method.decompose_both);
    if (!rank) return std::nullopt;
    method.ranks[layer.layer.name] = *rank;
    method.alphas[layer.layer.name] = layer.scale * static_cast<double>(*rank);
  }
  for (const int64_t factor : candidates) {
    const bool fits = std::all_of(state.begin(), state.end(), [&](const LayerState& layer) {
      const auto shape = kronecker_shape(layer);
      return kronecker_split(shape.l * shape.k, factor).first == shape.l &&
             kronecker_split(shape.m * shape.n, factor).first == shape.m;
    });
    method.decompose_factor = factor;
    if (fits) return method;
  }
  return std::nullopt;
}

/// How PEFT would be told of these layers, if it can be: all of them are of one method, without
/// DoRA, and plain layers.
inline std::optional<LycorisMethod> lycoris_method(const AdapterState& state) {
  const auto all = [&](const char* variant) {
    return !state.empty() && std::all_of(state.begin(), state.end(), [&](const auto& layer) {
      return layer.variant == variant && !layer.options.dora() && layer.layer.groups == 1 &&
             is_plain_type(layer.layer.type) && layer.layer.kernel.size() % 2 == 0;
    });
  };
  if (all("lokr")) return peft_lokr(state);
  if (!all("loha")) return std::nullopt;
  LycorisMethod method{"LOHA"};
  for (const auto& layer : state) {
    const int64_t rank = layer.trained.at("hada_w1_b").size(0);
    method.ranks[layer.layer.name] = rank;
    method.alphas[layer.layer.name] = layer.scale * static_cast<double>(rank);
  }
  return method;
}

}  // namespace lightlora::detail
