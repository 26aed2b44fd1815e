// SPDX-License-Identifier: Apache-2.0
#include "kernels/winograd.h"

#include <ATen/ATen.h>
#include <ATen/TracerMode.h>
#include <ATen/autocast_mode.h>
#include <ATen/record_function.h>
#include <lightlora/patch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

#include "kernels/passes.h"
#include "kernels/winograd_kernels.h"

#if SD_SIMD
#include <cpuid.h>
#endif

namespace sd {

namespace {

#if SD_SIMD

// With fewer tiles the kernels are not read often enough to pay for being larger.
constexpr int64_t kLeastTiles = 12, kLeastChannels = 16;

// With matrix units the plain sum is several times as fast.
bool has_matrix_units() {
  static const bool has = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr unsigned kAmxBf16 = 1U << 22;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kAmxBf16) != 0;
  }();
  return has;
}

// G g G^T of each kernel, (outputs, inputs, 16 points).
at::Tensor to_points(const at::Tensor& kernels) {
  const at::Tensor g = at::tensor({1.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, -0.5, 0.5, 0.0, 0.0, 1.0})
                           .to(at::kFloat)
                           .view({4, 3});
  return kernels.to(at::kFloat)
      .reshape({-1, 9})
      .matmul(at::kron(g, g).t())
      .view({kernels.size(0), kernels.size(1), 16});
}

// (outputs, inputs, 3, 3) as the kernels of winograd_kernels.h want them.
at::Tensor in_panels(const at::Tensor& weight) {
  const auto dtype = weight.scalar_type();
  const int64_t pair = dtype == at::kFloat ? 1 : 2, inputs = weight.size(1);
  std::vector<at::Tensor> panels;
  for (int64_t first = 0; first < weight.size(0); first += simd::kPanel) {
    const int64_t count = std::min(simd::kPanel, weight.size(0) - first);
    const int64_t lanes = (count + simd::kLanes - 1) / simd::kLanes * simd::kLanes;
    const at::Tensor points = to_points(weight.narrow(0, first, count)).to(dtype);
    panels.push_back(at::constant_pad_nd(points, {0, 0, 0, 0, 0, lanes - count})
                         .view({lanes, inputs / pair, pair, 16})
                         .permute({3, 1, 0, 2})
                         .flatten());
  }
  return at::cat(panels);
}

at::Tensor convolve(const at::Tensor& given, const at::Tensor& panels, const at::Tensor& bias,
                    int64_t out) {
  RECORD_FUNCTION("sd::winograd", c10::ArrayRef<c10::IValue>{});
  const at::Tensor x = given.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor y = at::empty({x.size(0), out, x.size(2), x.size(3)},
                                 x.options().memory_format(at::MemoryFormat::ChannelsLast));
  const at::Tensor wide = bias.defined() ? bias.detach().to(at::kFloat).contiguous() : at::Tensor();
  passes::with_type_of(x, [&](auto type) {
    using T = decltype(type);
    simd::winograd<T>({{x.size(0), x.size(2), x.size(3), x.size(1), out},
                       passes::data_of<T>(x),
                       passes::data_of<T>(panels),
                       wide.defined() ? wide.const_data_ptr<float>() : nullptr,
                       passes::mutable_data_of<T>(y)});
  });
  return y;
}

struct WinogradConvolution : torch::autograd::Function<WinogradConvolution> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weight, const at::Tensor& bias,
                            WinogradKernels* kernels) {
    context->save_for_backward({weight});
    context->saved_data["kernels"] = kernels->backward(weight);
    return convolve(x, kernels->forward(weight), bias, weight.size(0));
  }

  // The convolution with the kernels turned round and inputs and outputs exchanged.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const at::Tensor weight = context->get_saved_variables()[0], none;
    const at::Tensor dx =
        at::GradMode::is_enabled()
            ? at::conv_transpose2d(grads[0], weight, {}, /*stride=*/1, /*padding=*/1)
            : convolve(grads[0], context->saved_data["kernels"].toTensor(), none, weight.size(1));
    return {dx, none, none, none};
  }
};

bool takes_winograd(const torch::nn::Conv2dImpl& layer, const at::Tensor& x) {
  const at::Tensor &weight = layer.weight, &bias = layer.bias;
  if (!passes::readable(x) || x.dim() != 4 || !has_winograd(x) || weight.dim() != 4 ||
      weight.scalar_type() != x.scalar_type() || !weight.device().is_cpu() ||
      weight.requires_grad() || weight.is_inference() || lightlora::is_quantized(weight) ||
      lightlora::is_adapted(weight) ||
      (bias.defined() && (bias.requires_grad() || lightlora::is_adapted(bias)))) {
    return false;
  }
  if (at::autocast::is_autocast_enabled(at::kCPU) || at::tracer::impl::is_dispatch_enabled()) {
    return false;
  }
  const int64_t tiles = x.size(0) * ((x.size(2) + 1) / 2) * ((x.size(3) + 1) / 2);
  const auto fits = [](int64_t channels) {
    return channels >= kLeastChannels && channels % 2 == 0;
  };
  return tiles >= kLeastTiles && weight.size(2) == 3 && weight.size(3) == 3 &&
         weight.size(1) == x.size(1) && fits(weight.size(0)) && fits(weight.size(1));
}

#endif

}  // namespace

at::Tensor WinogradKernels::forward(const at::Tensor& weight) {
#if SD_SIMD
  return forward_.get({weight}, {}, [&] { return std::vector<at::Tensor>{in_panels(weight)}; })[0];
#else
  return weight;
#endif
}

at::Tensor WinogradKernels::backward(const at::Tensor& weight) {
#if SD_SIMD
  return backward_.get({weight}, {}, [&] {
    return std::vector<at::Tensor>{in_panels(weight.flip({2, 3}).transpose(0, 1))};
  })[0];
#else
  return weight;
#endif
}

bool has_winograd(const at::Tensor& map) {
#if SD_SIMD
  if (!map.device().is_cpu()) return false;
  if (map.scalar_type() == at::kFloat) return simd::has_avx512();
  return map.scalar_type() == at::kBFloat16 && simd::has_avx512_bf16() && !has_matrix_units();
#else
  (void)map;
  return false;
#endif
}

at::Tensor winograd_convolution(torch::nn::Conv2dImpl& layer, const at::Tensor& x,
                                WinogradKernels* kernels) {
#if SD_SIMD
  if (kernels && takes_winograd(layer, x)) {
    if (x.requires_grad() && at::GradMode::is_enabled()) {
      return WinogradConvolution::apply(x, layer.weight, layer.bias, kernels);
    }
    return convolve(x, kernels->forward(layer.weight), layer.bias, layer.weight.size(0));
  }
#else
  (void)kernels;
#endif
  return layer.forward(x);
}

}  // namespace sd
