// SPDX-License-Identifier: Apache-2.0
// Weights in four bits: the same bits as bitsandbytes', and models that compute with them as with the
// full weights that they stand for.
#include <lightlora/packing.h>
#include <lightlora/patch.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "support.h"

using lightlora::FourBitWeight;
using lightlora::QuantizeOptions;
using torch::Tensor;

namespace {

constexpr auto kNf4 = lightlora::WeightFormat::nf4;

Tensor wide_of(const Tensor& t) { return t.detach().to(torch::kDouble); }

double distance_of(const Tensor& got, const Tensor& expected) {
  return ((wide_of(got) - wide_of(expected)).norm() / wide_of(expected).norm()).item<double>();
}

// FNV-1a of a tensor's bytes.
uint64_t hash_of(const Tensor& tensor) {
  const Tensor dense = tensor.contiguous();
  const auto* bytes = static_cast<const unsigned char*>(dense.const_data_ptr());
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (std::size_t i = 0; i < dense.nbytes(); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3ULL;
  return hash;
}

// Numbers that every dtype's rounding and every order of a sum leaves alike: row i is 2^-(i mod 5)
// times a generator's. make_bitsandbytes.py of tests/parity has the same.
Tensor weight_of_vectors(int64_t rows, int64_t columns, torch::ScalarType dtype) {
  Tensor weight = torch::empty({rows, columns});
  auto values = weight.accessor<float, 2>();
  int64_t state = 1;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      state = (state * 1103515245 + 12345) % (int64_t{1} << 31);
      values[i][j] = static_cast<float>(state / 2048 % 2001 - 1000) / 512.0F;
    }
  }
  weight = weight.to(dtype).to(torch::kFloat);
  for (int64_t i = 0; i < rows; ++i) weight[i] *= 1.0F / static_cast<float>(1 << (i % 5));
  return weight.to(dtype);
}

struct Vector {
  int64_t rows, columns;
  torch::ScalarType dtype;
  bool double_quant;
  uint64_t packed, absmax, dense;
};

// Of bitsandbytes 0.50.2 on a CPU: quantize_4bit and dequantize_4bit; see make_bitsandbytes.py.
const std::vector<Vector> kVectors{
    {3, 50, torch::kFloat, false, 0xa53dbaefbbfe6692ULL, 0xffc1f82ec0d22c86ULL,
     0x60562b79ae8b4177ULL},
    {3, 50, torch::kFloat, true, 0xa53dbaefbbfe6692ULL, 0xf8d9a41be3d9905cULL,
     0xd50427e2d2d18812ULL},
    {3, 50, torch::kBFloat16, false, 0xa53dbaefbbfe6692ULL, 0x8c510e0995e7cebcULL,
     0x8bfab95c545cf457ULL},
    {3, 50, torch::kBFloat16, true, 0xa53dbaefbbfe6692ULL, 0xf8d9a41be3d9905cULL,
     0x3a44e0c9ddd331fbULL},
    {3, 50, torch::kHalf, false, 0xa53dbaefbbfe6692ULL, 0xffc1f82ec0d22c86ULL,
     0x0938bfadc3da52e0ULL},
    {3, 50, torch::kHalf, true, 0xa53dbaefbbfe6692ULL, 0xf8d9a41be3d9905cULL,
     0xd239cb97056c1f0dULL},
    {7, 13, torch::kFloat, false, 0x7ca47002148f2b3dULL, 0x74b14d349db09abeULL,
     0xb0b09efea1e0866dULL},
    {7, 13, torch::kFloat, true, 0x7ca47002148f2b3dULL, 0x0a99a607b6f60beaULL,
     0x3547f923e1246a50ULL},
    {7, 13, torch::kBFloat16, false, 0x7ca47002148f2b3dULL, 0x6a392367d8dbef67ULL,
     0x3d5fc426cc353657ULL},
    {7, 13, torch::kBFloat16, true, 0x7ca47002148f2b3dULL, 0x0a99a607b6f60beaULL,
     0x3d5fc426cc353657ULL},
    {7, 13, torch::kHalf, false, 0x7ca47002148f2b3dULL, 0x74b14d349db09abeULL,
     0x4f55e65764afef2bULL},
    {7, 13, torch::kHalf, true, 0x7ca47002148f2b3dULL, 0x0a99a607b6f60beaULL,
     0x596365983f3c9554ULL},
    {260, 128, torch::kFloat, false, 0x4616655ccc3dd12dULL, 0xc237f0c5f9d36abfULL,
     0x44aed1cd9933537fULL},
    {260, 128, torch::kFloat, true, 0x4616655ccc3dd12dULL, 0x94e35a61a5125ebdULL,
     0x12a0f5864b8d9c6fULL},
    {260, 128, torch::kBFloat16, false, 0xca9337a5dd333968ULL, 0x8b7cbf15dc85a718ULL,
     0x5c34f2d07a18eb65ULL},
    {260, 128, torch::kHalf, false, 0x4616655ccc3dd12dULL, 0xc237f0c5f9d36abfULL,
     0xc059813c1662e155ULL},
};

// A layer of each kind that is kept in four bits, with odd sizes.
struct Kinds : torch::nn::Module {
  Kinds() {
    namespace nn = torch::nn;
    line = register_module("line", nn::Conv1d(nn::Conv1dOptions(6, 10, 4).stride(3).padding(1)));
    grouped = register_module("grouped", nn::Conv2d(nn::Conv2dOptions(10, 14, {3, 2})
                                                        .stride({2, 1})
                                                        .padding({2, 0})
                                                        .dilation({1, 2})
                                                        .groups(2)));
    reflected = register_module(
        "reflected", nn::Conv2d(nn::Conv2dOptions(14, 7, 3).padding(1).bias(false).padding_mode(
                         torch::kReflect)));
    volume = register_module("volume", nn::Conv3d(nn::Conv3dOptions(7, 5, 2).padding(1)));
    last = register_module("last", nn::Linear(13, 11));
  }
  // (B, 6, 40) -> (B, ..., 11)
  Tensor forward(const Tensor& x) {
    Tensor y = torch::silu(line(x)).reshape({x.size(0), 10, -1, 1}).expand({-1, -1, -1, 6});
    y = reflected(torch::silu(grouped(y)));
    y = torch::silu(volume(y.unsqueeze(2)));
    return last(torch::adaptive_avg_pool2d(y.flatten(2, 3), {2, 13}));
  }
  torch::nn::Conv1d line{nullptr};
  torch::nn::Conv2d grouped{nullptr}, reflected{nullptr};
  torch::nn::Conv3d volume{nullptr};
  torch::nn::Linear last{nullptr};
};

template <typename Model>
std::shared_ptr<Model> same_values(Model& model) {
  auto copy = std::make_shared<Model>();
  const torch::NoGradGuard no_grad;
  const auto from = model.named_parameters();
  for (auto& item : copy->named_parameters()) item.value().copy_(from[item.key()]);
  return copy;
}

}  // namespace

TEST_CASE("weights in four bits are bitsandbytes' to the bit", "[quantized]") {
  for (const auto& v : kVectors) {
    INFO(v.rows << "x" << v.columns << " " << c10::toString(v.dtype) << ", nested "
                << v.double_quant);
    const Tensor weight = weight_of_vectors(v.rows, v.columns, v.dtype);
    const FourBitWeight four(weight, v.double_quant);
    CHECK(hash_of(four.parts().packed) == v.packed);
    CHECK(hash_of(four.parts().absmax) == v.absmax);
    const Tensor dense = four.dense();
    CHECK(dense.scalar_type() == v.dtype);
    CHECK(hash_of(dense) == v.dense);
  }
  CHECK(hash_of(lightlora::detail::dynamic_code()) == 15454086911070985156ULL);
  CHECK(hash_of(lightlora::detail::nf4_code()) == 4098563014678817905ULL);
}

TEST_CASE("a model in four bits is the one with the weights that they stand for", "[quantized]") {
  torch::manual_seed(1);
  Kinds four;
  const auto options = QuantizeOptions().format(kNf4).double_quant(true);
  CHECK(lightlora::quantize(four, {}, options) == 5);
  CHECK(lightlora::quantize(four, {}, options) == 0);
  const auto full = same_values(four);
  for (const auto& item : four.named_parameters()) {
    CHECK(lightlora::is_quantized(item.value()) == (item.value().dim() > 1));
    CHECK(!lightlora::is_quantized(full->named_parameters()[item.key()]));
  }
  const Tensor x = torch::randn({2, 6, 40});
  const auto run = [&](Kinds& model) {
    const Tensor leaf = x.clone().requires_grad_();
    const Tensor y = model.forward(leaf);
    const auto grads =
        torch::autograd::grad({y.square().sum()}, {leaf, model.line->bias}, {}, true, true);
    const Tensor second = torch::autograd::grad({grads[0].square().sum()}, {leaf})[0];
    return std::vector<Tensor>{y, grads[0], grads[1], second};
  };
  const auto expected = run(*full), got = run(four);
  for (std::size_t i = 0; i < got.size(); ++i) {
    INFO("output, gradients of x and of a bias, second derivative: number " << i);
    CHECK(distance_of(got[i], expected[i]) < 1e-5);
  }
  Tensor other;
  std::thread([&] { other = four.forward(x); }).join();
  CHECK(torch::equal(other, got[0]));
  CHECK_THROWS(four.last(torch::randn({3, 12})));
  CHECK_THROWS(four.grouped(torch::randn({1, 9, 8, 8})));
}

TEST_CASE("a weight in four bits takes a seventh of its memory", "[quantized]") {
  const FourBitWeight plain(torch::randn({256, 320})), nested(torch::randn({256, 320}), true);
  const double numbers = 256.0 * 320.0;
  CHECK(static_cast<double>(plain.nbytes()) < numbers * 4.5 / 8 + 100);
  CHECK(static_cast<double>(nested.nbytes()) < numbers * 4.13 / 8 + 1200);
}

TEST_CASE("adapters over a model in four bits; merging goes by way of full weights",
          "[quantized]") {
  torch::manual_seed(2);
  Kinds four;
  lightlora::quantize(four, {}, QuantizeOptions().format(kNf4));
  const auto full = same_values(four);
  const lightlora::Targets targets{"line", "grouped", "last"};
  const Tensor x = torch::randn({2, 6, 40});
  for (const char* variant : {"classic", "light", "ia3"}) {
    INFO(variant);
    const auto lora = lightlora::patch(*full, variant, lightlora::LoRAOptions(2), targets);
    {
      const torch::NoGradGuard no_grad;
      for (auto& parameter : lora->parameters()) parameter.add_(0.1 * torch::randn_like(parameter));
    }
    const auto same = lightlora::patch(four, lora->state());
    const Tensor expected = lora(*full, x), got = same(four, x);
    CHECK(distance_of(got, expected) < 1e-5);
    expected.square().sum().backward();
    got.square().sum().backward();
    for (std::size_t i = 0; i < lora->parameters().size(); ++i) {
      CHECK(distance_of(same->parameters()[i].grad(), lora->parameters()[i].grad()) < 1e-4);
    }
    CHECK_THROWS_WITH(same->merge(), ContainsSubstring("four bits"));
    CHECK_THROWS_WITH(same->merge_and_unload(), ContainsSubstring("four bits"));
  }
  CHECK(lightlora::dequantize(four) == 5);
  const auto lora = lightlora::patch(four, "classic", lightlora::LoRAOptions(2), targets);
  lora->merge_and_unload();
  CHECK(distance_of(four.forward(x), full->forward(x)) < 1e-5);
}

TEST_CASE("weights come one by one from a source", "[quantized]") {
  torch::manual_seed(3);
  torch::nn::Sequential model(torch::nn::Linear(8, 6), torch::nn::Linear(6, 4));
  const Tensor first = torch::randn({6, 8}), second = torch::randn({4, 6});
  const auto held = c10::make_intrusive<FourBitWeight>(second, true);
  auto options = QuantizeOptions().format(kNf4).source([&](const std::string& path, const Tensor&) {
    return path == "0" ? first : lightlora::QuantisedWeight::stand_in(held);
  });
  CHECK(lightlora::quantize(*model, {}, options) == 2);
  const auto parameters = model->named_parameters();
  CHECK(torch::equal(parameters["0.weight"] + 0, FourBitWeight(first).dense()));
  CHECK(torch::equal(parameters["1.weight"] + 0, held->dense()));
  lightlora::dequantize(*model);
  options.source([&](const std::string&, const Tensor&) { return first; });
  CHECK_THROWS_WITH(lightlora::quantize(*model, {}, options), ContainsSubstring("'1'"));
}
