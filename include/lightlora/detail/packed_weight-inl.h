// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/packed_weight.h>
#include <lightlora/detail/quantised_weight.h>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <string_view>
#include <vector>

namespace lightlora {

namespace detail::packed {

// An operator of LibTorch without a C++ header of its own; nothing in a build without oneDNN.
template <typename Signature>
std::optional<c10::TypedOperatorHandle<Signature>> find_operator(const char* name) {
  const auto found = c10::Dispatcher::singleton().findSchema({name, ""});
  if (!found) return std::nullopt;
  return found->template typed<Signature>();
}

using Scalars = c10::List<std::optional<at::Scalar>>;
using Algorithm = std::optional<std::string_view>;
using OptionalTensor = std::optional<at::Tensor>;

// oneDNN's operators over a packed weight: LibTorch has them for compiled graphs.
struct Operators {
  using PackLinear = at::Tensor(const at::Tensor&, std::optional<int64_t>);
  using Linear = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                            std::string_view, Scalars, Algorithm);
  using Convolution = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                 at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, int64_t,
                                 std::string_view, Scalars, Algorithm);

  std::optional<c10::TypedOperatorHandle<PackLinear>> pack_linear =
      find_operator<PackLinear>("mkldnn::_reorder_linear_weight");
  std::optional<c10::TypedOperatorHandle<Linear>> linear =
      find_operator<Linear>("mkldnn::_linear_pointwise");
  std::optional<c10::TypedOperatorHandle<Convolution>> convolution =
      find_operator<Convolution>("mkldnn::_convolution_pointwise");
  bool complete = pack_linear && linear && convolution;
  bool bfloat16 = complete && [] {
    const auto supported = find_operator<bool()>("mkldnn::_is_mkldnn_bf16_supported");
    return supported && supported->call();
  }();
};

inline const Operators& operators() {
  static const Operators all;
  return all;
}

}  // namespace detail::packed

LIGHTLORA_INLINE bool PackedWeight::usable(const at::Tensor& x, const at::Tensor& weight,
                                           const std::optional<at::Tensor>& bias) {
  const auto& known = detail::packed::operators();
  const auto dtype = weight.scalar_type();
  const bool fits = dtype == at::kFloat || (dtype == at::kBFloat16 && known.bfloat16);
  return known.complete && fits && x.scalar_type() == dtype && x.device().is_cpu() &&
         weight.device().is_cpu() && x.numel() > 0 && !weight.requires_grad() &&
         !is_quantized(weight) && !weight.is_inference() && !(bias && bias->requires_grad());
}

LIGHTLORA_INLINE at::Tensor PackedWeight::linear_weight(const at::Tensor& weight) const {
  return forward_.get({weight}, {},
                      [&] { return std::vector<at::Tensor>{pack_matrix(weight)}; })[0];
}

LIGHTLORA_INLINE at::Tensor PackedWeight::linear_weight_t(const at::Tensor& weight) const {
  return backward_.get({weight}, {},
                       [&] { return std::vector<at::Tensor>{pack_matrix(weight.t())}; })[0];
}

LIGHTLORA_INLINE at::Tensor PackedWeight::linear(const at::Tensor& x, const at::Tensor& packed,
                                                 const std::optional<at::Tensor>& bias) {
  return detail::packed::operators().linear->call(
      x.contiguous(), packed, bias, "none", detail::packed::Scalars(), detail::packed::Algorithm());
}

LIGHTLORA_INLINE at::Tensor PackedWeight::kernels(const at::Tensor& weight) const {
  return forward_.get({weight}, {},
                      [&] { return std::vector<at::Tensor>{pack_kernels(weight)}; })[0];
}

LIGHTLORA_INLINE at::Tensor PackedWeight::kernels_t(const at::Tensor& weight) const {
  return backward_.get({weight}, {}, [&] {
    return std::vector<at::Tensor>{pack_kernels(weight.flip({2, 3}).transpose(0, 1).contiguous())};
  })[0];
}

LIGHTLORA_INLINE at::Tensor PackedWeight::convolution(const at::Tensor& x, const at::Tensor& packed,
                                                      const std::optional<at::Tensor>& bias,
                                                      at::IntArrayRef stride,
                                                      at::IntArrayRef padding,
                                                      at::IntArrayRef dilation) {
  return detail::packed::operators().convolution->call(
      x, packed, bias, padding, stride, dilation,
      /*groups=*/1, "none", detail::packed::Scalars(), detail::packed::Algorithm());
}

LIGHTLORA_INLINE at::Tensor PackedWeight::pack_matrix(const at::Tensor& weight) {
  constexpr int64_t kRows = 1024;
  return detail::packed::operators().pack_linear->call(weight.contiguous(), kRows);
}

LIGHTLORA_INLINE at::Tensor PackedWeight::pack_kernels(const at::Tensor& weight) {
  return at::mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), /*padding=*/1);
}

namespace detail {

// A linear layer with a packed weight: of the gradients only that of x is wanted, which is such a
// layer again, of the transpose.
struct PackedLinear : torch::autograd::Function<PackedLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            const at::Tensor& packed, const at::Tensor& packed_t,
                            const std::optional<at::Tensor>& bias) {
    ctx->saved_data["packed"] = packed;
    ctx->saved_data["packed_t"] = packed_t;
    auto sizes = x.sizes().vec();
    const at::Tensor y = PackedWeight::linear(x.reshape({-1, sizes.back()}), packed, bias);
    sizes.back() = y.size(1);
    return at::_unsafe_view(y, sizes);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const at::Tensor dx = apply(grads[0], ctx->saved_data["packed_t"].toTensor(),
                                ctx->saved_data["packed"].toTensor(), std::optional<at::Tensor>());
    return {dx, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// A convolution with packed kernels. Its gradient is one more convolution where the stride is 1,
// and LibTorch's own otherwise and where it is differentiated again.
struct PackedConvolution : torch::autograd::Function<PackedConvolution> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            const at::Tensor& weight, const PackedWeight& packed,
                            const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation) {
    std::vector<int64_t> padding_t;
    for (int64_t i = 0; i < 2; ++i) {
      padding_t.push_back(dilation[i] * (weight.size(2 + i) - 1) - padding[i]);
    }
    const auto ones = [](at::IntArrayRef values) {
      return std::all_of(values.begin(), values.end(), [](int64_t value) { return value == 1; });
    };
    if (x.requires_grad()) {
      ctx->saved_data["stride"] = stride;
      ctx->saved_data["padding"] = padding;
      ctx->saved_data["dilation"] = dilation;
      const bool packs = ones(stride) && padding_t[0] >= 0 && padding_t[1] >= 0;
      ctx->save_for_backward({packs ? at::Tensor() : x, weight});
      if (packs) {
        ctx->saved_data["x_sizes"] = x.sizes();
        ctx->saved_data["padding_t"] = padding_t;
        ctx->saved_data["kernels_t"] = packed.kernels_t(weight);
      }
    }
    return PackedWeight::convolution(x, packed.kernels(weight), bias, stride, padding, dilation);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto sizes = [&](const char* name) { return ctx->saved_data[name].toIntVector(); };
    const auto packed = ctx->saved_data.find("kernels_t");
    at::Tensor dx;
    if (packed != ctx->saved_data.end() && !at::GradMode::is_enabled()) {
      dx = PackedWeight::convolution(grads[0], packed->second.toTensor(), std::nullopt,
                                     sizes("stride"), sizes("padding_t"), sizes("dilation"));
    } else {
      const auto saved = ctx->get_saved_variables();
      // Of x only the sizes count here.
      const at::Tensor x =
          saved[0].defined() ? saved[0] : grads[0].detach().new_zeros(sizes("x_sizes"));
      dx = std::get<0>(at::convolution_backward(
          grads[0], x, saved[1], at::OptionalIntArrayRef(), sizes("stride"), sizes("padding"),
          sizes("dilation"), /*transposed=*/false, /*output_padding=*/{0, 0},
          /*groups=*/1, {true, false, false}));
    }
    const at::Tensor none;
    return {dx, none, none, none, none, none, none};
  }
};

}  // namespace detail

LIGHTLORA_INLINE at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& weight,
                                          const std::optional<at::Tensor>& bias,
                                          const PackedWeight& packed) {
  const bool differentiates = x.requires_grad() && at::GradMode::is_enabled();
  const at::Tensor forward = packed.linear_weight(weight);
  return detail::PackedLinear::apply(
      x, forward, differentiates ? packed.linear_weight_t(weight) : forward, bias);
}

LIGHTLORA_INLINE at::Tensor packed_conv2d(const at::Tensor& x, const at::Tensor& weight,
                                          const std::optional<at::Tensor>& bias,
                                          const PackedWeight& packed, at::IntArrayRef stride,
                                          at::IntArrayRef padding, at::IntArrayRef dilation) {
  return detail::PackedConvolution::apply(x, weight, packed, bias, stride, padding, dilation);
}

}  // namespace lightlora
