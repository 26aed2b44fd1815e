// SPDX-License-Identifier: Apache-2.0
// Convolutions by Winograd's way against the plain sum in fp64.
#include "kernels/winograd.h"

#include <ATen/Parallel.h>
#include <lightlora/lightlora.h>

#include <vector>

#include "models/blocks.h"
#include "support.h"

namespace {

struct ConvolutionCase {
  int64_t batch, height, width, in, out;
};

torch::nn::Conv2d frozen_conv(int64_t in, int64_t out, torch::Dtype dtype) {
  auto layer = sd::make_conv(in, out, /*kernel=*/3);
  layer->to(dtype);
  for (auto& parameter : layer->parameters()) parameter.set_requires_grad(false);
  return layer;
}

at::Tensor plain_sum(const torch::nn::Conv2d& layer, const at::Tensor& x) {
  return at::conv2d(x, layer->weight.to(x.scalar_type()), layer->bias.to(x.scalar_type()),
                    /*stride=*/1, /*padding=*/1);
}

bool is_by_rows(const at::Tensor& x) { return x.is_contiguous(at::MemoryFormat::ChannelsLast); }

}  // namespace

TEST_CASE("winograd: results and gradients are the plain sum's", "[winograd]") {
  const auto dtype = GENERATE(torch::kFloat, torch::kBFloat16);
  // Whole panels of 64 outputs and rests, odd sides, rows of tiles that are no multiple of six, and
  // more input channels than are multiplied at once.
  const auto sizes =
      GENERATE(ConvolutionCase{2, 8, 8, 64, 64}, ConvolutionCase{1, 7, 9, 16, 36},
               ConvolutionCase{3, 5, 5, 18, 16}, ConvolutionCase{1, 1, 30, 32, 130},
               ConvolutionCase{1, 9, 8, 700, 20}, ConvolutionCase{1, 30, 31, 22, 100});
  CAPTURE(dtype, sizes.height, sizes.width, sizes.in, sizes.out);
  torch::manual_seed(3);
  auto layer = frozen_conv(sizes.in, sizes.out, dtype);
  const auto x = at::randn({sizes.batch, sizes.in, sizes.height, sizes.width}).to(dtype);
  const auto dy = at::randn({sizes.batch, sizes.out, sizes.height, sizes.width}).to(dtype);
  sd::WinogradKernels kernels;
  const auto leaf = x.detach().requires_grad_(), wide = x.to(torch::kDouble).requires_grad_();
  const auto y = sd::winograd_convolution(*layer, leaf, &kernels), exact = plain_sum(layer, wide);
  const auto dx = torch::autograd::grad({y}, {leaf}, {dy})[0];
  const auto exact_dx = torch::autograd::grad({exact}, {wide}, {dy.to(torch::kDouble)})[0];
  CHECK(y.scalar_type() == dtype);
  if (sd::has_winograd(x)) CHECK(is_by_rows(y));
  // fp32: seen 6e-7 with 700 inputs. bf16: each of two factors and the result rounded, which the
  // sums at both ends enlarge; seen 4.4e-3.
  const double tolerance = dtype == torch::kFloat ? 1e-6 : 6e-3;
  CHECK(close(y, exact, tolerance));
  CHECK(close(dx, exact_dx, tolerance));
  const at::NoGradGuard no_grad;
  const auto by_rows = x.contiguous(at::MemoryFormat::ChannelsLast);
  if (sd::has_winograd(x)) CHECK(sd::winograd_convolution(*layer, by_rows, &kernels).equal(y));
}

TEST_CASE("winograd: threads change no bit", "[winograd]") {
  const auto dtype = GENERATE(torch::kFloat, torch::kBFloat16);
  const at::NoGradGuard no_grad;
  auto layer = frozen_conv(64, 192, dtype);
  const auto x = at::randn({2, 64, 33, 40}).to(dtype);
  sd::WinogradKernels kernels;
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto alone = sd::winograd_convolution(*layer, x, &kernels);
  at::set_num_threads(3);
  const auto together = sd::winograd_convolution(*layer, x, &kernels);
  at::set_num_threads(threads);
  CHECK(alone.equal(together));
}

TEST_CASE("winograd: a changed kernel is seen", "[winograd]") {
  const at::NoGradGuard no_grad;
  auto layer = frozen_conv(16, 16, torch::kFloat);
  const auto x = at::randn({1, 16, 8, 8});
  sd::WinogradKernels kernels;
  const auto once = sd::winograd_convolution(*layer, x, &kernels);
  layer->weight.mul_(2);
  layer->bias.mul_(2);
  CHECK(close(sd::winograd_convolution(*layer, x, &kernels), 2 * once, 1e-6));
}

TEST_CASE("winograd: gradients of gradients", "[winograd]") {
  auto layer = frozen_conv(16, 16, torch::kFloat);
  sd::WinogradKernels kernels;
  const auto second = [](const auto& f, const at::Tensor& x) {
    const auto leaf = x.clone().requires_grad_();
    const auto first = torch::autograd::grad({f(leaf).pow(3).sum()}, {leaf}, {},
                                             /*retain_graph=*/true, /*create_graph=*/true)[0];
    return torch::autograd::grad({first.pow(2).sum()}, {leaf})[0];
  };
  const auto x = at::randn({1, 16, 8, 8});
  const auto ours = [&](const at::Tensor& from) {
    return sd::winograd_convolution(*layer, from, &kernels);
  };
  const auto exact = [&](const at::Tensor& from) { return plain_sum(layer, from); };
  CHECK(close(second(ours, x), second(exact, x.to(torch::kDouble)), 1e-5));  // derivatives in fp32
}

TEST_CASE("winograd: layers that train, adapters and everything else are called", "[winograd]") {
  sd::WinogradKernels kernels;
  const auto x = at::randn({1, 16, 8, 8});
  auto layer = frozen_conv(16, 16, torch::kFloat);
  const auto is_plain = [&](const at::Tensor& input) {
    CHECK(sd::winograd_convolution(*layer, input, &kernels).equal(layer->forward(input)));
  };
  CHECK(sd::winograd_convolution(*layer, x, nullptr).equal(layer->forward(x)));
  is_plain(at::randn({1, 16, 4, 4}));  // few tiles
  layer->weight.set_requires_grad(true);
  is_plain(x);
  layer->weight.set_requires_grad(false);
  torch::nn::Sequential model(layer);
  const auto lora = lightlora::patch(*model, "classic", lightlora::LoRAOptions(2), {"0"});
  for (const auto& parameter : lora->parameters()) parameter.detach().normal_();
  const auto before = layer->forward(x);
  const auto active = lora->activate();
  CHECK_FALSE(layer->forward(x).equal(before));
  is_plain(x);
}
