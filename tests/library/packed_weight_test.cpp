// SPDX-License-Identifier: Apache-2.0
// A packed weight must give what the plain one gives, follow every change of it, and be used at
// all.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <lightlora/packing.h>
#include <lightlora/patch.h>

#include <functional>
#include <string>
#include <thread>

#include "support.h"

using torch::Tensor;

namespace {

double tolerance_of(torch::ScalarType dtype) { return dtype == torch::kFloat ? 3e-6 : 1e-2; }

const std::vector<torch::ScalarType> kDtypes{torch::kFloat, torch::kBFloat16};

// Products from packed weights that a call takes.
int64_t& seen() {
  static int64_t count = 0;
  return count;
}

int64_t packed_products(const std::function<void()>& call) {
  seen() = 0;
  const auto handle = at::addGlobalCallback(at::RecordFunctionCallback(
      [](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
        const std::string name = function.name();
        if (name == "mkldnn::_linear_pointwise" || name == "mkldnn::_convolution_pointwise")
          ++seen();
        return nullptr;
      }));
  call();
  at::removeCallback(handle);
  return seen();
}

bool available(torch::ScalarType dtype) {
  // Asked of LibTorch, not of the code under test, which could then refuse everything unseen.
  if (!at::globalContext().hasMKLDNN() || dtype == torch::kFloat)
    return at::globalContext().hasMKLDNN();
  const auto supported =
      c10::Dispatcher::singleton().findSchema({"mkldnn::_is_mkldnn_bf16_supported", ""});
  return supported && supported->typed<bool()>().call();
}

void freeze(torch::nn::Module& module) {
  for (auto& parameter : module.parameters()) parameter.set_requires_grad(false);
}

// Output and gradient of x, with what is packed now.
template <typename Layer>
std::vector<Tensor> run(Layer& layer, const Tensor& x) {
  const Tensor leaf = x.detach().clone().requires_grad_();
  const Tensor y = layer->forward(leaf);
  torch::manual_seed(9);
  return {y.detach(),
          torch::autograd::grad({y}, {leaf}, {torch::randn(y.sizes()).to(y.scalar_type())})[0]};
}

template <typename Layer>
void check_equal(Layer& layer, const Tensor& x) {
  const auto plain = run(layer, x);
  const auto packing = lightlora::pack_weights(*layer).activate();
  const auto packed = run(layer, x);
  for (std::size_t i = 0; i < plain.size(); ++i) {
    INFO((i == 0 ? "output" : "gradient") << " of x " << x.sizes() << " " << x.scalar_type());
    CHECK(packed[i].sizes() == plain[i].sizes());
    CHECK(packed[i].scalar_type() == plain[i].scalar_type());
    CHECK(close(packed[i], plain[i], tolerance_of(x.scalar_type())));
  }
}

}  // namespace

TEST_CASE("a packed Linear equals the plain one, forward and backward", "[packed_weight]") {
  torch::manual_seed(1);
  for (const auto dtype : kDtypes) {
    for (const bool bias : {true, false}) {
      torch::nn::Linear layer(torch::nn::LinearOptions(48, 80).bias(bias));
      layer->to(dtype);
      freeze(*layer);
      const auto input = [&](std::vector<int64_t> sizes) { return torch::randn(sizes).to(dtype); };
      for (const auto& sizes :
           std::vector<std::vector<int64_t>>{{48}, {5, 48}, {2, 3, 48}, {0, 48}}) {
        check_equal(layer, input(sizes));
      }
      check_equal(layer, input({48, 7}).t());
      check_equal(layer, input({3, 2, 48}).transpose(0, 1));
      // Forward and backward, both from the packed weight.
      const auto packing = lightlora::pack_weights(*layer).activate();
      CHECK(packed_products([&] { run(layer, input({5, 48})); }) == (available(dtype) ? 2 : 0));
    }
  }
}

TEST_CASE("a packed Conv2d equals the plain one, forward and backward", "[packed_weight]") {
  torch::manual_seed(1);
  for (const auto dtype : kDtypes) {
    for (const int64_t kernel : {1, 2, 3, 5}) {
      for (const int64_t stride : {1, 2}) {
        for (const int64_t padding : {0, 1, 3}) {
          for (const int64_t dilation : {1, 2}) {
            INFO("kernel " << kernel << ", stride " << stride << ", padding " << padding
                           << ", dilation " << dilation);
            torch::nn::Conv2d layer(torch::nn::Conv2dOptions(6, 10, kernel)
                                        .stride(stride)
                                        .padding(padding)
                                        .dilation(dilation));
            layer->to(dtype);
            freeze(*layer);
            const Tensor x = torch::randn({2, 6, 12, 11}).to(dtype);
            check_equal(layer, x);
            check_equal(layer, x.contiguous(at::MemoryFormat::ChannelsLast));
          }
        }
      }
    }
    torch::nn::Conv2d layer(torch::nn::Conv2dOptions(6, 10, 3).padding(1));
    layer->to(dtype);
    freeze(*layer);
    const auto packing = lightlora::pack_weights(*layer).activate();
    const Tensor x = torch::randn({2, 6, 12, 11}).to(dtype);
    CHECK(packed_products([&] { run(layer, x); }) == (available(dtype) ? 2 : 0));
  }
}

TEST_CASE("what cannot be packed is computed as ever", "[packed_weight]") {
  torch::manual_seed(1);
  torch::nn::Conv2d grouped(torch::nn::Conv2dOptions(6, 12, 3).groups(3).padding(1));
  freeze(*grouped);
  check_equal(grouped, torch::randn({2, 6, 8, 8}));
  check_equal(grouped, torch::randn({6, 8, 8}));  // one picture without a batch
  torch::nn::Conv2d reflecting(
      torch::nn::Conv2dOptions(6, 12, 3).padding(1).padding_mode(torch::kReflect));
  freeze(*reflecting);
  check_equal(reflecting, torch::randn({2, 6, 8, 8}));
  torch::nn::Conv2d same(torch::nn::Conv2dOptions(6, 12, 3).padding(torch::kSame));
  freeze(*same);
  check_equal(same, torch::randn({2, 6, 8, 8}));
  torch::nn::Linear wide(16, 8);
  wide->to(torch::kDouble);
  freeze(*wide);
  check_equal(wide, torch::randn({5, 16}, torch::kDouble));

  // A weight that trains gets its gradient.
  torch::nn::Linear trains(16, 8);
  const auto packing = lightlora::pack_weights(*trains).activate();
  const Tensor x = torch::randn({5, 16});
  trains->forward(x).sum().backward();
  CHECK(close(trains->weight.grad(), x.sum(0).expand({8, 16}), 1e-6));

  // Autocast computes in its own dtype.
  freeze(*trains);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, torch::kBFloat16);
  const auto dtype = trains->forward(x).scalar_type();
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCPU, false);
  CHECK(dtype == torch::kBFloat16);
}

TEST_CASE("a packed weight follows every change of the weight", "[packed_weight]") {
  torch::manual_seed(1);
  const Tensor x = torch::randn({5, 16}), picture = torch::randn({1, 4, 6, 6});
  torch::nn::Linear linear(16, 8);
  torch::nn::Conv2d conv(torch::nn::Conv2dOptions(4, 8, 3));
  for (auto* module : std::vector<torch::nn::Module*>{linear.get(), conv.get()}) freeze(*module);
  const auto packed_linear = lightlora::pack_weights(*linear);
  const auto packed_conv = lightlora::pack_weights(*conv);
  REQUIRE((packed_linear.size() == 1 && packed_conv.size() == 1));
  const torch::NoGradGuard no_grad;
  const auto outputs = [&] {
    const auto first = packed_linear.activate(), second = packed_conv.activate();
    std::vector<Tensor> both;
    CHECK(packed_products([&] { both = {linear(x), conv(picture)}; }) ==
          (available(torch::kFloat) ? 2 : 0));
    return both;
  };
  const auto before = outputs();
  linear->weight.mul_(2);
  conv->weight.set_data(conv->weight * 2);
  const auto after = outputs();
  CHECK(close(after[0], torch::linear(x, linear->weight, linear->bias), 3e-6));
  CHECK(close(after[1], torch::conv2d(picture, conv->weight, conv->bias), 3e-6));
  CHECK_FALSE(close(after[0], before[0], 1e-2));
  CHECK_FALSE(close(after[1], before[1], 1e-2));
  CHECK(packed_products([&] { linear(x); }) == 0);  // nothing is active any more
}

TEST_CASE("packed weights are those of their model, in their thread, as chosen",
          "[packed_weight]") {
  torch::manual_seed(1);
  const torch::NoGradGuard no_grad;
  const Tensor x = torch::randn({5, 16});
  torch::nn::Sequential model(torch::nn::Linear(16, 16), torch::nn::Linear(16, 16));
  freeze(*model);
  const auto copy = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(model->clone());
  const int64_t one = available(torch::kFloat) ? 1 : 0;
  const auto first = lightlora::pack_weights(
      *model, [](const std::string& path, const Tensor&) { return path == "0"; });
  CHECK(first.size() == 1);
  CHECK(lightlora::PackedWeights().size() == 0);
  const auto nothing = lightlora::PackedWeights().activate();
  CHECK(packed_products([&] { model->forward(x); }) == 0);
  {
    const auto packing = first.activate();
    CHECK(packed_products([&] { model->forward(x); }) == one);
    CHECK(packed_products([&] { copy->forward(x); }) == 0);
    CHECK(packed_products([&] { std::thread([&] { model->forward(x); }).join(); }) == 0);
    const auto both = lightlora::pack_weights(*model).activate();
    CHECK(packed_products([&] { model->forward(x); }) == 2 * one);
  }
  CHECK(packed_products([&] { model->forward(x); }) == 0);
}

TEST_CASE("an adapted layer learns the same from a packed weight", "[packed_weight]") {
  for (const auto dtype : kDtypes) {
    for (const char* variant : {"classic", "light", "loha"}) {
      for (const auto route : {lightlora::Route::automatic, lightlora::Route::merged}) {
        INFO(variant << " " << dtype << " " << lightlora::to_string(route));
        torch::manual_seed(2);
        torch::nn::Sequential model(torch::nn::Linear(40, 24), torch::nn::Linear(24, 40));
        model->to(dtype);
        const auto lora = lightlora::patch(*model, variant, lightlora::LoRAOptions(4), {"0", "1"});
        lora->set_route(route);
        {
          const torch::NoGradGuard no_grad;
          for (auto& parameter : lora->parameters()) parameter.normal_(0, 0.1);
        }
        const Tensor x = torch::randn({6, 40}).to(dtype).requires_grad_();
        const Tensor gradient = torch::randn({6, 40}).to(dtype);
        const auto learn = [&](bool packs) {
          const auto packing =
              packs ? lightlora::pack_weights(*model).activate() : lightlora::Packing();
          std::vector<Tensor> leaves{x};
          for (const auto& parameter : lora->parameters()) leaves.push_back(parameter);
          const Tensor y = lora(model, x);
          auto results = torch::autograd::grad({y}, leaves, {gradient});
          results.push_back(y.detach());
          return results;
        };
        const auto plain = learn(false), packed = learn(true);
        for (std::size_t i = 0; i < plain.size(); ++i) {
          CHECK(close(packed[i], plain[i], dtype == torch::kFloat ? 5e-6 : 3e-2));
        }
      }
    }
  }
}
