// SPDX-License-Identifier: Apache-2.0
// Weights in eight bits: products and convolutions against the same numbers in fp64, within the error
// that rounding to eight bits allows; and models whose code and adapters know nothing of it.
#include <ATen/autocast_mode.h>
#include <lightlora/packing.h>
#include <lightlora/patch.h>

#include <array>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "support.h"

using lightlora::Int8Weight;
using torch::Tensor;

namespace {

const std::vector<torch::ScalarType> kDtypes{torch::kFloat, torch::kBFloat16, torch::kHalf};

Tensor wide(const Tensor& t) { return t.detach().to(torch::kDouble); }

double relative(const Tensor& got, const Tensor& expected) {
  return ((wide(got) - wide(expected)).norm() / wide(expected).norm()).item<double>();
}

// Whether every sum of products a b^T is as near as the rounding of a's rows to eight bits allows:
// each number is off by at most half a step. `dtype` rounds the result.
bool within_rounding(const Tensor& got, const Tensor& expected, const Tensor& a, const Tensor& b,
                     torch::ScalarType dtype) {
  const Tensor step = wide(a).abs().amax(-1, true) / 127;
  const Tensor bound = 0.5 * step * wide(b).abs().sum(-1);
  const double unit = dtype == torch::kFloat ? 1e-6 : dtype == torch::kHalf ? 1e-3 : 8e-3;
  const Tensor most = bound * 1.001 + unit * wide(expected).abs() + 1e-6;
  return ((wide(got) - wide(expected)).abs() <= most).all().item<bool>();
}

// A convolution of stride 1, or the gradient of its input.
lightlora::ConvolutionSteps steps_of(const std::vector<int64_t>& padding, bool transposed) {
  lightlora::ConvolutionSteps steps;
  steps.stride = steps.dilation = {1, 1};
  steps.output_padding = {0, 0};
  steps.padding = padding;
  steps.transposed = transposed;
  return steps;
}

void quantize_all(torch::nn::Module& model, std::size_t expected) {
  REQUIRE(lightlora::quantize(model) == expected);
}

// A convolution and linear layers with and without bias, as a model of the user's.
struct Net : torch::nn::Module {
  Net() {
    conv =
        register_module("conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(8, 16, 3).padding(1)));
    first = register_module("first", torch::nn::Linear(16, 24));
    last = register_module("last", torch::nn::Linear(torch::nn::LinearOptions(24, 10).bias(false)));
  }
  Tensor forward(const Tensor& x) {
    return last(torch::silu(first(torch::silu(conv(x)).flatten(2).transpose(1, 2))));
  }
  torch::nn::Conv2d conv{nullptr};
  torch::nn::Linear first{nullptr}, last{nullptr};
};

std::shared_ptr<Net> copy_of(Net& net) {
  auto copy = std::make_shared<Net>();
  const torch::NoGradGuard no_grad;
  const auto from = net.named_parameters();
  for (auto& item : copy->named_parameters()) item.value().copy_(from[item.key()]);
  return copy;
}

}  // namespace

TEST_CASE("a weight in eight bits is off by half a step at most", "[quantized]") {
  torch::manual_seed(1);
  for (const bool native : {true, false}) {
    for (const auto& sizes : std::vector<std::vector<int64_t>>{
             {5, 13}, {64, 64}, {130, 70}, {9, 17, 3, 3}, {8, 8, 1, 1}}) {
      Tensor weight = torch::randn(sizes);
      weight[0].zero_();
      const Tensor dense = Int8Weight(weight, native).dense();
      REQUIRE(dense.sizes() == weight.sizes());
      const Tensor step = weight.flatten(1).abs().amax(1, true) / 127;
      CHECK(((dense - weight).flatten(1).abs() <= 0.5001 * step).all().item<bool>());
      CHECK(dense[0].abs().max().item<double>() == 0);
    }
  }
}

TEST_CASE("products in eight bits are the fp64 ones within the rounding of their rows",
          "[quantized]") {
  torch::manual_seed(2);
  for (const auto dtype : kDtypes) {
    for (const bool native : {true, false}) {
      for (const auto& [rows, in, out] : std::vector<std::array<int64_t, 3>>{
               {7, 13, 5}, {1, 320, 64}, {97, 64, 130}, {12, 70, 65}}) {
        INFO(c10::toString(dtype) << ", kernels " << native << ", " << rows << "x" << in << "->"
                                  << out);
        const Int8Weight weight(torch::randn({out, in}), native);
        const Tensor dense = wide(weight.dense());
        Tensor x = torch::randn({rows, in}).to(dtype), dy = torch::randn({rows, out}).to(dtype);
        x[0].zero_();
        if (rows > 2) x[1][0] = 100;  // one number that takes the others' bits
        const Tensor bias = torch::randn({out}).to(dtype);
        const Tensor y = weight.product(x, bias, false);
        CHECK(y.scalar_type() == dtype);
        const Tensor expected = torch::linear(wide(x), dense, wide(bias));
        CHECK(within_rounding(y, expected, x, dense, dtype));
        CHECK(relative(y[0], bias) < 1e-6);
        // The gradient's rows are rounded with the weight's scales in them.
        const Tensor dx = weight.product(dy, {}, true);
        CHECK(relative(dx, wide(dy).mm(dense)) < 0.02);
      }
    }
  }
}

TEST_CASE("convolutions in eight bits are the fp64 ones", "[quantized]") {
  torch::manual_seed(3);
  // in, out, height, width, kernel, padding
  for (const auto& [in, out, height, width, ky, kx, py, px] :
       std::vector<std::array<int64_t, 8>>{{3, 5, 7, 9, 3, 3, 1, 1},
                                           {17, 9, 4, 4, 3, 3, 1, 1},
                                           {8, 8, 16, 16, 1, 1, 0, 0},
                                           {12, 20, 5, 33, 3, 5, 2, 1},
                                           {6, 7, 20, 3, 5, 3, 0, 2},
                                           {4, 4, 3, 3, 3, 3, 0, 0}}) {
    for (const auto dtype : kDtypes) {
      for (const bool native : {true, false}) {
        INFO(c10::toString(dtype) << " " << in << "->" << out << ", " << height << "x" << width
                                  << ", kernel " << ky << "x" << kx << ", kernels " << native);
        const Int8Weight weight(torch::randn({out, in, ky, kx}).to(dtype), native);
        const Tensor dense = wide(weight.dense());
        const Tensor x = torch::randn({2, in, height, width}).to(dtype);
        const Tensor bias = torch::randn({out}).to(dtype);
        const std::vector<int64_t> one{1, 1}, padding{py, px};
        const Tensor y = weight.convolution(x, bias, steps_of(padding, false));
        CHECK(relative(y, torch::conv2d(wide(x), dense, wide(bias), one, padding)) < 0.02);
        const Tensor dy = torch::randn(y.sizes()).to(dtype);
        const Tensor dx = weight.convolution(dy, {}, steps_of(padding, true));
        REQUIRE(dx.sizes() == x.sizes());
        const Tensor expected = at::conv_transpose2d(wide(dy), dense, {}, one, padding);
        CHECK(relative(dx, expected) < 0.02);
      }
    }
  }
}

TEST_CASE("what is not finite stays so in its own rows", "[quantized]") {
  torch::manual_seed(4);
  for (const bool native : {true, false}) {
    const Int8Weight weight(torch::randn({9, 20}), native);
    for (const float value :
         {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      Tensor x = torch::randn({3, 20});
      x[1][4] = value;
      const Tensor y = weight.product(x, {}, false);
      CHECK(!y[1].isfinite().any().item<bool>());
      CHECK(y[0].isfinite().all().item<bool>());
      CHECK(y[2].isfinite().all().item<bool>());
    }
  }
  const Int8Weight kernels(torch::randn({4, 4, 3, 3}));
  Tensor x = torch::randn({1, 4, 8, 8});
  x[0][1][2][3] = std::numeric_limits<float>::quiet_NaN();
  const Tensor y = kernels.convolution(x, {}, steps_of({1, 1}, false));
  CHECK(!y[0][0][2][3].isfinite().item<bool>());
  CHECK(y[0][0][6][3].isfinite().item<bool>());
}

TEST_CASE("a quantized model computes and hands gradients on without being told", "[quantized]") {
  torch::manual_seed(5);
  Net net;
  const auto quantized = copy_of(net);
  quantize_all(*quantized, 3);
  CHECK(lightlora::quantize(*quantized) == 0);
  for (const auto& item : quantized->named_parameters()) {
    const bool weight = item.value().dim() > 1;
    CHECK(lightlora::is_quantized(item.value()) == weight);
    CHECK(item.value().sizes() == net.named_parameters()[item.key()].sizes());
    if (weight) CHECK(!item.value().requires_grad());
  }
  const Tensor x = torch::randn({2, 8, 6, 7});
  const auto run = [&](Net& model) {
    const Tensor leaf = x.clone().requires_grad_();
    const Tensor y = model.forward(leaf);
    const Tensor bias = model.first->bias;
    const auto grads = torch::autograd::grad({y.square().sum()}, {leaf, bias}, {}, true, true);
    const Tensor second = torch::autograd::grad({grads[0].square().sum()}, {leaf})[0];
    return std::vector<Tensor>{y, grads[0], grads[1], second};
  };
  const auto expected = run(net);
  const auto got = run(*quantized);
  for (std::size_t i = 0; i < got.size(); ++i) {
    INFO("output, gradients of x and of a bias, second derivative: number " << i);
    CHECK(relative(got[i], expected[i]) < 0.1);
  }
  // In a thread of its own, and from one row or none.
  Tensor other;
  std::thread([&] { other = quantized->forward(x); }).join();
  CHECK(torch::equal(other, got[0]));
  CHECK(quantized->first(torch::randn({16})).sizes() == at::IntArrayRef({24}));
  CHECK(quantized->first(torch::randn({0, 16})).sizes() == at::IntArrayRef({0, 24}));
  CHECK(relative(quantized->conv(x[0]), net.conv(x[0])) < 0.02);
  CHECK_THROWS(quantized->first(torch::randn({3, 15})));
}

TEST_CASE("other uses of a quantized weight get it in full", "[quantized]") {
  torch::manual_seed(6);
  torch::nn::Linear layer(12, 20);
  const Tensor before = layer->weight.detach().clone();
  quantize_all(*layer, 1);
  const Tensor& weight = layer->weight;
  CHECK(relative(weight.norm(), before.norm()) < 0.01);
  CHECK(relative(weight + 1, before + 1) < 0.01);
  CHECK(relative(weight.narrow(0, 3, 5).select(1, 2), before.narrow(0, 3, 5).select(1, 2)) < 0.01);
  CHECK(relative(at::linear(torch::ones({2, 12}), weight.narrow(0, 2, 7)),
                 at::linear(torch::ones({2, 12}), before.narrow(0, 2, 7))) < 0.05);
  CHECK(relative(torch::cat({weight, weight}), torch::cat({before, before})) < 0.01);
  CHECK(!lightlora::is_quantized(weight.to(torch::kDouble)));
  const torch::NoGradGuard no_grad;
  CHECK_THROWS_WITH(layer->weight.mul_(2), ContainsSubstring("kept in eight bits"));
  CHECK_THROWS(layer->weight.data_ptr<float>());
  CHECK(lightlora::dequantize(*layer) == 1);
  CHECK(!lightlora::is_quantized(layer->weight));
  CHECK(relative(layer->weight, before) < 0.01);
  CHECK(lightlora::dequantize(*layer) == 0);
}

TEST_CASE("adapters over a quantized model do what they do over the full one", "[quantized]") {
  torch::manual_seed(7);
  Net net;
  const Tensor x = torch::randn({2, 8, 6, 7});
  struct Case {
    const char* variant;
    bool dora;
  };
  for (const auto& [variant, dora] : std::vector<Case>{{"classic", false},
                                                       {"classic", true},
                                                       {"light", false},
                                                       {"lokr", false},
                                                       {"ia3", false},
                                                       {"oft", false},
                                                       {"full", false}}) {
    INFO(variant << ", DoRA " << dora);
    const auto full = copy_of(net), quantized = copy_of(net);
    quantize_all(*quantized, 3);
    const lightlora::Targets targets{"conv", "first", "last"};
    const auto options = lightlora::LoRAOptions(2).dora(dora);
    const auto lora = lightlora::patch(*full, variant, options, targets);
    {
      const torch::NoGradGuard no_grad;
      for (auto& parameter : lora->parameters()) parameter.add_(0.1 * torch::randn_like(parameter));
    }
    const auto same = lightlora::patch(*quantized, lora->state());
    const Tensor expected = lora(*full, x), got = same(*quantized, x);
    CHECK(relative(got, expected) < 0.05);
    CHECK(relative(expected, net.forward(x)) > 0.05);
    expected.square().sum().backward();
    got.square().sum().backward();
    for (std::size_t i = 0; i < lora->parameters().size(); ++i) {
      CHECK(relative(same->parameters()[i].grad(), lora->parameters()[i].grad()) < 0.2);
    }
    CHECK_THROWS_WITH(same->merge(), ContainsSubstring("eight bits"));
    CHECK_THROWS_WITH(same->merge_and_unload(), ContainsSubstring("eight bits"));
    CHECK(torch::equal(same(*quantized, x), got));
  }
}

TEST_CASE("merging into a quantized model goes by way of full weights", "[quantized]") {
  torch::manual_seed(8);
  Net net;
  const auto lora = lightlora::patch(net, "classic", lightlora::LoRAOptions(2), {"first"});
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : lora->parameters()) parameter.add_(0.3 * torch::randn_like(parameter));
  }
  const Tensor x = torch::randn({2, 8, 6, 7});
  const Tensor expected = lora(net, x);
  quantize_all(net, 3);
  CHECK(relative(lora(net, x), expected) < 0.05);
  CHECK(lightlora::dequantize(net) == 3);
  lora->merge_and_unload();
  quantize_all(net, 3);
  CHECK(relative(net.forward(x), expected) < 0.05);
}

TEST_CASE("autocast decides on the dtype of a quantized layer's result", "[quantized]") {
  torch::manual_seed(9);
  torch::nn::Linear layer(32, 48);
  quantize_all(*layer, 1);
  const Tensor x = torch::randn({5, 32});
  const Tensor plain = layer->forward(x);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const Tensor cast = at::linear(x, layer->weight, layer->bias);
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCPU, false);
  CHECK(cast.scalar_type() == torch::kBFloat16);
  CHECK(relative(cast, plain) < 0.02);
}

TEST_CASE("layers that do not fit stay as they are", "[quantized]") {
  struct Others : torch::nn::Module {
    Others() {
      register_module("strided", torch::nn::Conv2d(torch::nn::Conv2dOptions(4, 4, 3).stride(2)));
      register_module("groups", torch::nn::Conv2d(torch::nn::Conv2dOptions(4, 4, 3).groups(2)));
      register_module("far", torch::nn::Conv2d(torch::nn::Conv2dOptions(4, 4, 3).padding(3)));
      register_module("reflected",
                      torch::nn::Conv2d(torch::nn::Conv2dOptions(4, 4, 3).padding(1).padding_mode(
                          torch::kReflect)));
      register_module("volume", torch::nn::Conv3d(4, 4, 3));
      register_module("table", torch::nn::Embedding(8, 4));
      register_module("double", torch::nn::Linear(4, 4))->to(torch::kDouble);
    }
  };
  Others others;
  quantize_all(others, 0);
  torch::nn::Sequential two(torch::nn::Linear(4, 4), torch::nn::Linear(4, 4));
  CHECK(lightlora::quantize(
            *two, [](const std::string& path, const Tensor&) { return path == "1"; }) == 1);
  CHECK(!lightlora::is_quantized(two->named_parameters()["0.weight"]));
  CHECK(lightlora::is_quantized(two->named_parameters()["1.weight"]));
  // Packed weights and these do not get into each other's way.
  const Tensor x = torch::randn({3, 4}), expected = two->forward(x);
  const auto packing = lightlora::pack_weights(*two).activate();
  CHECK(relative(two->forward(x), expected) < 1e-5);
}
