// SPDX-License-Identifier: Apache-2.0
#include <lightlora/detail/basis.h>
#include <lightlora/detail/basis_kernels.h>
#include <lightlora/lightlora.h>
#include <torch/torch.h>

#include <cstring>
#include <memory>

#include "support.h"

using lightlora::AuxInit;
using lightlora::make_basis;
using lightlora::Side;

namespace {

// A fingerprint of every bit of a tensor.
uint64_t fingerprint(const at::Tensor& tensor) {
  const at::Tensor dense = tensor.contiguous();
  const auto* bytes = static_cast<const unsigned char*>(dense.data_ptr());
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (std::size_t i = 0; i < dense.nbytes(); ++i) hash = (hash ^ bytes[i]) * 0x100000001B3ULL;
  return hash;
}

const char* const kLayer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";

}  // namespace

TEST_CASE("Philox gives the known answers of its algorithm", "[basis]") {
  // Counter 0, key 0: the first vector that the algorithm's authors publish.
  lightlora::Philox zeros(0, 0);
  CHECK(zeros.next() == 0xE169C58D6627E8D5ULL);
  CHECK(zeros.next() == 0x9B00DBD8BC57AC4CULL);
  // Block 1 of the stream and key of their third vector, from a separate implementation.
  lightlora::Philox other(0x299F31D0A4093822ULL, 0x0370734413198A2EULL);
  other.next();
  other.next();
  CHECK(other.next() == 0xAB83527314DDB4BULL);
  CHECK(other.next() == 0x3FC8CF4C9FC3CABEULL);
}

TEST_CASE("uniform values lie strictly inside (0, 1) with mean one half", "[basis]") {
  lightlora::Philox random(3, 4);
  double sum = 0;
  for (int i = 0; i < 10000; ++i) {
    const double u = random.uniform();
    REQUIRE(u > 0);
    REQUIRE(u < 1);
    sum += u;
  }
  CHECK(std::abs(sum / 10000 - 0.5) < 0.01);  // 3.5 standard deviations
}

TEST_CASE("the logarithm made of basic operations equals libm's", "[basis]") {
  lightlora::Philox random(1, 2);
  for (int i = 0; i < 1000; ++i) {
    const double x = random.uniform();
    CHECK(std::abs(lightlora::detail::exact_log(x) - std::log(x)) <=
          4e-16 * std::max(1.0, std::abs(std::log(x))));
  }
}

TEST_CASE("a basis has orthonormal rows or columns to fp32 rounding", "[basis]") {
  const auto down = make_basis(Side::down, 100, 320, 0, kLayer).to(torch::kDouble);
  const auto up = make_basis(Side::up, 50, 320, 0, kLayer).to(torch::kDouble);
  REQUIRE(down.sizes() == torch::IntArrayRef({100, 320}));
  REQUIRE(up.sizes() == torch::IntArrayRef({320, 50}));
  // Rounding 320 values of size 1/18 to fp32 leaves an error of about 1e-8 in a dot product.
  CHECK((down.mm(down.t()) - torch::eye(100, torch::kDouble)).abs().max().item<double>() < 5e-8);
  CHECK((up.t().mm(up) - torch::eye(50, torch::kDouble)).abs().max().item<double>() < 5e-8);
}

TEST_CASE("bases of algorithm version 1 never change", "[basis]") {
  // If this fails, files in the world no longer load: raise kBasisVersion and keep version 1.
  REQUIRE(lightlora::kBasisVersion == 1);
  const auto hash = [](Side side, AuxInit kind) {
    return fingerprint(make_basis(side, side == Side::down ? 100 : 50, 320, 0, kLayer, kind));
  };
  CHECK(hash(Side::down, AuxInit::orthogonal) == 0x27C418715A5D59A3ULL);
  CHECK(hash(Side::down, AuxInit::normal) == 0x6AB2067FC4375F18ULL);
  CHECK(hash(Side::down, AuxInit::normal_scaled) == 0xCE7C31809FEDC2CEULL);
  CHECK(hash(Side::up, AuxInit::orthogonal) == 0x9E6160828939BD90ULL);
  CHECK(hash(Side::up, AuxInit::normal) == 0xB96EF1269F083FFCULL);
  CHECK(hash(Side::up, AuxInit::normal_scaled) == 0x79E765164DD0D3BFULL);
  CHECK(fingerprint(make_basis(Side::down, 3, 7, 0xFFFFFFFFFFFFFFFFULL, "")) ==
        0xEBA891BABC47CA63ULL);
  const auto basis = make_basis(Side::down, 100, 320, 0, kLayer).flatten();
  CHECK(basis[0].item<float>() == -0.0301115215F);
  CHECK(basis[1].item<float>() == 0.114229091F);
}

TEST_CASE("every instruction set gives a basis the same bits", "[basis]") {
  namespace exact = lightlora::detail::exact;
  struct Shape {
    int64_t count, width;
  };
  // Rows that registers hold whole and in part, and points that are left over at the end.
  for (const auto& [count, width] : {Shape{100, 320}, {7, 101}, {5, 5}, {2, 9}, {1, 3}, {1, 1}}) {
    for (const bool orthonormal : {false, true}) {
      CAPTURE(count, width, orthonormal);
      const auto made = [&, count = count, width = width](exact::Isa isa) {
        std::vector<double> values(static_cast<std::size_t>(count * width));
        exact::make({0xFFFFFFFFFFFFFFFFULL, 7, values.data(), count, width, orthonormal}, isa);
        return values;
      };
      const auto plain = made(exact::Isa::base);
      for (const auto isa : exact::available()) {
        CHECK(std::memcmp(made(isa).data(), plain.data(), plain.size() * sizeof(double)) == 0);
      }
    }
  }
}

TEST_CASE("adapters that are made together have the bases that each has alone", "[basis]") {
  torch::nn::Sequential model;
  for (int i = 0; i < 5; ++i) model->push_back(torch::nn::Linear(24, 20 + i));
  const auto options = lightlora::LightOptions(2).aux_in(8).aux_out(6).aux_seed(3);
  const auto same = [](const lightlora::Adapter& adapter) {
    const auto alone =
        lightlora::find_variant(adapter.variant()).make(adapter.options(), adapter.layer());
    for (const auto& item : alone->frozen()) {
      CHECK(at::equal(item.value(), adapter.frozen()[item.key()]));
    }
    CHECK_FALSE(alone->frozen().is_empty());
  };
  const auto lora =
      lightlora::patch<lightlora::LightLoRA>(*model, options, {"0", "1", "2", "3", "4"});
  lora->add<lightlora::FusedDownUpLoRA>("fused", options, {"0", "1", "2"});
  lora->add("read", lora->state());
  // VeRA looks into its bases while it is made.
  static int number = 0;
  const lightlora::AdapterFactory turns = [](lightlora::LoRAOptions own,
                                             lightlora::LayerInfo layer) {
    return lightlora::find_variant(number++ % 2 == 0 ? "light" : "vera").make(own, layer);
  };
  lora->add("mixed", turns, lightlora::LoRAOptions(2), lightlora::Targets({"0", "1", "2", "3"}));
  for (const auto& set : lora->sets()) {
    CAPTURE(set);
    for (const auto& adapter : lora->adapters(set)) same(*adapter);
  }
}

TEST_CASE("a basis depends on seed, layer name, side and shape, and on nothing else", "[basis]") {
  const auto basis = make_basis(Side::down, 8, 20, 1, "layer");
  CHECK_FALSE(torch::equal(basis, make_basis(Side::down, 8, 20, 2, "layer")));
  CHECK_FALSE(torch::equal(basis, make_basis(Side::down, 8, 20, 1, "other")));
  CHECK_FALSE(torch::equal(basis, make_basis(Side::up, 8, 20, 1, "layer").t()));
  CHECK_FALSE(torch::equal(basis[0], make_basis(Side::down, 7, 20, 1, "layer")[0]));
  torch::manual_seed(99);
  const auto state = at::globalContext().defaultGenerator(at::kCPU).get_state();
  CHECK(torch::equal(basis, make_basis(Side::down, 8, 20, 1, "layer")));
  CHECK(torch::equal(state, at::globalContext().defaultGenerator(at::kCPU).get_state()));
}

TEST_CASE("Gaussian bases have the stated standard deviation", "[basis]") {
  const auto normal = make_basis(Side::down, 100, 640, 0, kLayer, AuxInit::normal);
  CHECK(std::abs(normal.std().item<double>() - 1) < 0.02);
  CHECK(std::abs(normal.mean().item<double>()) < 0.02);
  CHECK(std::abs(normal.pow(4).mean().item<double>() - 3) < 0.2);
  const auto scaled = make_basis(Side::down, 100, 640, 0, kLayer, AuxInit::normal_scaled);
  CHECK(std::abs(scaled.norm(2, 1).mean().item<double>() - 1) < 0.02);
}

TEST_CASE("a full-width basis is a rotation, and a wider one is an error", "[basis]") {
  const auto full = make_basis(Side::up, 6, 6, 0, "layer").to(torch::kDouble);
  CHECK((full.mm(full.t()) - torch::eye(6, torch::kDouble)).abs().max().item<double>() < 1e-6);
  CHECK_THROWS_WITH(
      make_basis(Side::up, 7, 6, 0, "layer"),
      ContainsSubstring("'layer': expected 1 <= directions <= 6") && ContainsSubstring("got 7"));
}
