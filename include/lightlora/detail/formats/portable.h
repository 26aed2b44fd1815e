// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <lightlora/detail/dora_state.h>
#include <lightlora/state.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

// What the files for other programs have in common: classic factors that every reader scales alike.

namespace lightlora::detail {

/// Whether the layers of a type are a product with one matrix, or a convolution, for every program.
inline bool is_plain_type(const std::string& type) {
  return type.empty() || type == "Linear" || type == "Conv1d" || type == "Conv2d" ||
         type == "Conv3d";
}

/// Errors: c10::Error for a layer that a format has no names for
inline void require_plain(const LayerInfo& layer, const char* format) {
  TORCH_CHECK(is_plain_type(layer.type) && layer.groups == 1, "'", layer.name,
              "': expected a Linear layer or a convolution, got ",
              is_plain_type(layer.type) ? "a convolution with groups" : layer.type, ", which the ",
              format, " format has no names for; hint: write the native format");
}

/// One layer as other programs' files hold it.
/// Shapes: down (rank, in) and up (out, rank); (rank, in, kh, kw) and (out, rank, 1, 1) for Conv2d;
///         magnitude (out, 1) or (1, in) with DoRA, otherwise undefined
struct PortableLayer {
  std::string component;
  std::string name;
  at::Tensor down, up, magnitude;
  LayerInfo info = {};
};

// fp16 ends at 65504, and below 2^-14 it has fewer digits, so that a factor whose largest value is
// below this loses more than rounding does.
inline constexpr double kLeastInHalf = 0x1p-13;

/// A tensor in a dtype that may be smaller.
/// Errors: c10::Error if a value does not fit
inline at::Tensor narrowed(const at::Tensor& tensor, at::ScalarType dtype,
                           const std::string& name) {
  at::Tensor result = tensor.to(dtype).contiguous();
  const bool lost = result.is_floating_point() && result.element_size() < tensor.element_size() &&
                    !result.isfinite().all().item<bool>();
  TORCH_CHECK(!lost, "'", name, "': expected values that ", dtype, " can hold, got some up to ",
              tensor.abs().max().item<double>(), "; hint: bf16 or fp32");
  return result;
}

/// Moves a power of two, which changes no digit, from one factor to the other where fp16 would turn
/// values into infinities or lose small ones.
inline void balance(at::Tensor& down, at::Tensor& up, at::ScalarType dtype) {
  if (dtype != at::kHalf || down.numel() == 0 || up.numel() == 0) return;
  const double largest_down = down.abs().max().item<double>();
  const double largest_up = up.abs().max().item<double>();
  const auto fits = [](double largest) {
    return largest == 0 || (largest <= 65504 && largest >= kLeastInHalf);
  };
  if (fits(largest_down) && fits(largest_up)) return;
  if (largest_down == 0 || largest_up == 0) {  // the product is zero, whatever the other one is
    down = at::zeros_like(down);
    up = at::zeros_like(up);
    return;
  }
  const double shift = std::round(std::log2(largest_up / largest_down) / 2);
  if (!std::isfinite(shift)) return;
  down = down.to(at::kDouble) * std::exp2(shift);
  up = up.to(at::kDouble) * std::exp2(-shift);
}

// Zero rows or columns up to a common rank: readers before diffusers 0.40 scale files of mixed
// ranks wrongly, and with alpha = rank the padding changes nothing.
inline at::Tensor pad_rank(const at::Tensor& factor, int64_t dim, int64_t rank) {
  const int64_t missing = rank - factor.size(dim);
  return missing == 0
             ? factor
             : at::constant_pad_nd(factor, dim == 0 ? std::vector<int64_t>{0, 0, 0, missing}
                                                    : std::vector<int64_t>{0, missing});
}

/// All layers with the scale folded in and one rank, so that alpha = rank holds everywhere.
inline std::vector<PortableLayer> portable_layers(const Components& components,
                                                  at::ScalarType dtype) {
  int64_t rank = 0;
  std::vector<std::pair<std::string, LayerState>> classic;
  std::vector<at::Tensor> magnitudes;
  for (const auto& [component, state] : components) {
    for (LayerState layer : state) {
      magnitudes.push_back(take_dora(layer).magnitude);
      classic.emplace_back(component, to_classic(*make_adapter(layer)));
      rank = std::max(rank, classic.back().second.options.rank());
    }
  }
  std::vector<PortableLayer> layers;
  for (std::size_t i = 0; i < classic.size(); ++i) {
    const auto& [component, layer] = classic[i];
    at::Tensor down = pad_rank(layer.trained.at("down"), 0, rank);
    at::Tensor up = pad_rank(layer.trained.at("up"), 1, rank);
    const auto& kernel = layer.layer.kernel;
    if (!kernel.empty()) {
      std::vector<int64_t> sizes{rank, -1};
      sizes.insert(sizes.end(), kernel.begin(), kernel.end());
      down = down.reshape(sizes);
      std::vector<int64_t> ones{layer.layer.out, rank};
      ones.resize(2 + kernel.size(), 1);
      up = up.reshape(ones);
    }
    const std::string& name = layer.layer.name;
    balance(down, up, dtype);
    at::Tensor magnitude = magnitudes[i];
    if (magnitude.defined()) magnitude = narrowed(magnitude, dtype, name);
    layers.push_back({component, name, narrowed(down, dtype, name), narrowed(up, dtype, name),
                      magnitude, layer.layer});
  }
  return layers;
}

// PEFT's shape of the magnitude: (out), and for convolutions (1, out, 1, 1).
inline at::Tensor peft_magnitude(const PortableLayer& layer) {
  TORCH_CHECK(layer.magnitude.size(1) == 1, "'", layer.name,
              "': expected DoRA's length of each output, ",
              "got one of each input, which only LyCORIS has; hint: write kohya's or the native ",
              "format");
  std::vector<int64_t> sizes{layer.magnitude.size(0)};
  if (layer.down.dim() > 2) {
    sizes.insert(sizes.begin(), 1);
    sizes.resize(static_cast<std::size_t>(layer.down.dim()), 1);
  }
  return layer.magnitude.reshape(sizes);
}

}  // namespace lightlora::detail
