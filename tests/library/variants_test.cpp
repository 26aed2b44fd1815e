// SPDX-License-Identifier: Apache-2.0
// What is particular to one variant, and the initialisations.
#include <lightlora/lightlora.h>

#include "support.h"

using namespace lightlora;
using torch::Tensor;

namespace {

const LayerInfo kLayer{"block.to_q", 320, 640, {}};

double l2(const Tensor& tensor) { return tensor.norm().item<double>(); }

// Gradients of both factors for a random gradient of the delta.
std::pair<double, double> gradient_norms(const std::string& variant, Init init) {
  const auto adapter = find_variant(variant).make(LoRAOptions(4).init(init), kLayer);
  torch::manual_seed(1);
  (adapter->delta() * torch::randn({640, 320})).sum().backward();
  const auto trained = adapter->trained();
  return {l2(trained["down"].grad()), l2(trained["up"].grad())};
}

FusedAdapterImpl trained_fused(const LoRAOptions& options) {
  FusedAdapterImpl fused(options, kLayer);
  torch::NoGradGuard no_grad;
  torch::manual_seed(3);
  fused.down_up.normal_();
  return fused;
}

}  // namespace

TEST_CASE("each initialisation leaves out the factors it names", "[variants]") {
  for (const char* variant : {"classic", "light"}) {
    INFO(variant);
    const auto factors = [&](Init init) {
      const auto trained = find_variant(variant).make(LoRAOptions(4).init(init), kLayer)->trained();
      return std::pair(l2(trained["down"]), l2(trained["up"]));
    };
    CHECK(factors(Init::up_zero).first > 0);
    CHECK(factors(Init::up_zero).second == 0);
    CHECK(factors(Init::down_zero).first == 0);
    CHECK(factors(Init::down_zero).second > 0);
    CHECK(factors(Init::both_zero) == std::pair(0.0, 0.0));
  }
}

TEST_CASE("both factors at zero are an exact saddle, one at zero is not", "[variants]") {
  for (const char* variant : {"classic", "light"}) {
    INFO(variant);
    CHECK(gradient_norms(variant, Init::both_zero) == std::pair(0.0, 0.0));
    CHECK(gradient_norms(variant, Init::up_zero).first == 0);
    CHECK(gradient_norms(variant, Init::up_zero).second > 0);
    CHECK(gradient_norms(variant, Init::down_zero).first > 0);
    CHECK(gradient_norms(variant, Init::down_zero).second == 0);
  }
}

TEST_CASE("a light adapter's delta has exactly the singular values of its core", "[variants]") {
  LightAdapterImpl light(LoRAOptions(4).network_alpha(2), kLayer);
  light.to(torch::kDouble);
  torch::NoGradGuard no_grad;
  light.up.normal_();
  light.down.normal_();
  const auto core = torch::linalg_svdvals(light.up.mm(light.down)).slice(0, 0, 4) * 0.5;
  const auto delta = torch::linalg_svdvals(light.delta()).slice(0, 0, 4);
  CHECK(close(delta, core, 1e-7));  // the bases are rounded to fp32
}

TEST_CASE("composed factors equal the four small layers in sequence", "[variants]") {
  LightAdapterImpl light(LoRAOptions(4), kLayer);
  light.to(torch::kDouble);
  torch::NoGradGuard no_grad;
  light.up.normal_();
  const Tensor x = torch::randn({7, 320}, torch::kDouble);
  const Tensor sequential =
      x.mm(light.down_aux.t()).mm(light.down.t()).mm(light.up.t()).mm(light.up_aux.t());
  CHECK(close(x.mm(light.delta().t()), sequential, 1e-12));
}

TEST_CASE("the bases of an adapter do not depend on rank, variant or order", "[variants]") {
  const LightAdapterImpl one(LightOptions(1).aux_seed(7), kLayer);
  const LightAdapterImpl eight(LightOptions(8).aux_seed(7), kLayer);
  const FusedAdapterImpl fused(LightOptions(4).aux_seed(7), kLayer);
  CHECK(torch::equal(one.down_aux, eight.down_aux));
  CHECK(torch::equal(one.up_aux, eight.up_aux));
  CHECK(torch::equal(one.down_aux, fused.down_aux));
  CHECK(torch::equal(one.up_aux, fused.up_aux));
}

TEST_CASE("small layers clamp the bases and say so", "[variants]") {
  const LightAdapterImpl light(LoRAOptions(4), {"conv_out", 36, 8, {3, 3}});
  CHECK(light.down_aux.sizes() == torch::IntArrayRef({36, 36}));
  CHECK(light.up_aux.sizes() == torch::IntArrayRef({8, 8}));
  CHECK_THAT(light.description(), ContainsSubstring("aux_in clamped to 36") &&
                                      ContainsSubstring("aux_out clamped to 8"));
  CHECK_THAT(LightAdapterImpl(LoRAOptions(4), kLayer).description(), !ContainsSubstring("clamped"));
  CHECK_THROWS_WITH(LightAdapterImpl(LoRAOptions(4), LayerInfo{"conv_out", 36, 3, {3, 3}}),
                    ContainsSubstring("'conv_out': expected rank <= 3") &&
                        ContainsSubstring("got 4; hint: lower the rank or leave this layer out"));
}

TEST_CASE("fused: the split at full rank is exact, and a lower one is the best of its rank",
          "[variants]") {
  auto fused = trained_fused(LoRAOptions(4).network_alpha(2));
  fused.to(torch::kDouble);
  torch::NoGradGuard no_grad;
  const Tensor delta = fused.delta();
  CHECK(close(fused.split(50)->delta(), delta, 1e-12));
  const auto values = torch::linalg_svdvals(delta);
  for (int64_t rank : {1, 4, 16}) {
    const auto split = fused.split(rank);
    CHECK(split->rank() == rank);
    CHECK(split->up.sizes() == torch::IntArrayRef({50, rank}));
    CHECK(split->down.sizes() == torch::IntArrayRef({rank, 100}));
    // By Eckart and Young the smallest possible error is the norm of the values left out.
    const double best = values.slice(0, rank).norm().item<double>();
    CHECK(std::abs(l2(split->delta() - delta) / best - 1) < 1e-6);
  }
  CHECK_THROWS_WITH(fused.split(51), ContainsSubstring("expected 1 <= rank <= 50, got 51"));
  CHECK_THROWS_WITH(fused.split(0), ContainsSubstring("got 0"));
}

TEST_CASE("fused: U S goes into up and Vh into down", "[variants]") {
  const auto fused = trained_fused(LoRAOptions(4));
  const auto split = fused.split(3);
  CHECK(close(split->down.mm(split->down.t()), torch::eye(3), 1e-6));
  const Tensor values = split->up.norm(2, 0);
  CHECK(close(values, torch::linalg_svdvals(fused.down_up).slice(0, 0, 3), 1e-6));
}

TEST_CASE("fused: the scale is 1 without network_alpha and network_alpha / rank with it",
          "[variants]") {
  CHECK(FusedAdapterImpl(LoRAOptions(4), kLayer).scale() == 1.0);
  CHECK(FusedAdapterImpl(LoRAOptions(4).network_alpha(2), kLayer).scale() == 0.5);
  CHECK(trained_fused(LoRAOptions(4).network_alpha(2)).split(8)->scale() == 0.5);
}

TEST_CASE("fused: another init than the default is an error", "[variants]") {
  CHECK_THROWS_WITH(
      FusedAdapterImpl(LoRAOptions(4).init(Init::down_zero), kLayer),
      ContainsSubstring("'block.to_q': the init down_zero cannot be combined with the "
                        "fused variant, whose core always starts at zero"));
}

TEST_CASE("fused: cores that are higher than wide compose on the other side", "[variants]") {
  FusedAdapterImpl fused(LightOptions(2).aux_in(20).aux_out(40), kLayer);
  CHECK(fused.rank() == 20);
  CHECK(fused.factors().down.size(0) == 20);
}

TEST_CASE("Gaussian bases: the trained factor starts as the described experiment has it",
          "[variants]") {
  torch::manual_seed(0);
  const LightAdapterImpl normal(LightOptions(4).aux_init(AuxInit::normal), kLayer);
  CHECK(std::abs(normal.down.std().item<double>() - 0.25) < 0.03);
  CHECK(std::abs(normal.down_aux.std().item<double>() - 1) < 0.03);
  const LightAdapterImpl scaled(LightOptions(4).aux_init(AuxInit::normal_scaled), kLayer);
  CHECK(close(scaled.down.mm(scaled.down.t()), torch::eye(4), 1e-6));
  CHECK(std::abs(scaled.up_aux.norm(2, 0).mean().item<double>() - 1) < 0.05);
}

TEST_CASE("classic: the factor that is not zero starts as N(0, 1/rank)", "[variants]") {
  torch::manual_seed(0);
  const ClassicAdapterImpl classic(LoRAOptions(8), kLayer);
  CHECK(std::abs(classic.down.std().item<double>() - 0.125) < 0.01);
}

TEST_CASE("rank 0 and unknown names are errors", "[variants]") {
  for (const auto& variant : variants()) {
    CHECK_THROWS_WITH(variant.make(LoRAOptions(0), kLayer),
                      ContainsSubstring("'block.to_q': expected rank > 0, got 0"));
  }
  CHECK_THROWS_WITH(find_variant("lokr2"),
                    ContainsSubstring("expected a variant among adalora, boft, classic, diag_oft, "
                                      "full, fused, glora, gralora") &&
                        ContainsSubstring("got 'lokr2'"));
  CHECK_THROWS_WITH(parse_init("zero"), ContainsSubstring("up_zero, down_zero, both_zero"));
  CHECK_THROWS_WITH(parse_aux_init("gauss"),
                    ContainsSubstring("orthogonal, normal, normal_scaled"));
  CHECK(to_string(parse_aux_init("normal_scaled")) == "normal_scaled");
}

TEST_CASE("trained and frozen counts follow from the shapes", "[variants]") {
  const auto counts = [](const char* variant, const LoRAOptions& options) {
    const auto adapter = find_variant(variant).make(options, kLayer);  // 320 -> 640
    return std::pair(adapter->trained_count(), adapter->frozen_count());
  };
  using Counts = std::pair<int64_t, int64_t>;
  CHECK(counts("classic", 4) == Counts(4 * 960, 0));
  CHECK(counts("light", 4) == Counts(4 * 150, 100 * 320 + 50 * 640));
  CHECK(counts("fused", 4) == Counts(100 * 50, 100 * 320 + 50 * 640));
  CHECK(counts("loha", 4) == Counts(2 * 4 * 960, 0));
  // 640 = 20 x 32 and 320 = 16 x 20.
  CHECK(counts("lokr", 4) == Counts(20 * 16 + 4 * (32 + 20), 0));
  CHECK(counts("lokr", LoKrOptions(4).decompose_both(true)) ==
        Counts(4 * (20 + 16) + 4 * (32 + 20), 0));
  CHECK(counts("lokr", LoRAOptions(16)) == Counts(20 * 16 + 32 * 20, 0));
  CHECK(counts("lokr", LoKrOptions(4).decompose_factor(8)) == Counts(8 * 8 + 4 * (80 + 40), 0));
  CHECK(counts("lokr", LoKrOptions(4).lokr_shape({2, 5})) == Counts(10 + 4 * (320 + 64), 0));
  CHECK(counts("vera", 16) == Counts(16 + 640, 16 * 960));
  CHECK(counts("ia3", 4) == Counts(640, 0));
  CHECK(counts("ia3", IA3Options(4).scale_input(true)) == Counts(320, 0));
  CHECK(counts("lora_xs", 4) == Counts(16, 4 * 960));
  CHECK(counts("classic", LoRAOptions(4).dora(true)) == Counts(4 * 960 + 640, 0));
}

TEST_CASE("loha: the product is that of two low-rank matrices, dense or as factors", "[variants]") {
  torch::manual_seed(2);
  for (const int64_t rank : {3, 20}) {
    LoHaAdapterImpl loha(LoRAOptions(rank).network_alpha(rank * 0.5), kLayer);
    loha.to(torch::kDouble);
    torch::NoGradGuard no_grad;
    for (auto& parameter : loha.parameters()) parameter.normal_();
    const Tensor expected =
        0.5 * loha.hada_w1_a.mm(loha.hada_w1_b) * loha.hada_w2_a.mm(loha.hada_w2_b);
    CHECK(close(loha.delta(), expected, 1e-12));
    CHECK(loha.has_factors() == (rank == 3));  // 9 directions are cheap, 400 are not
    CHECK(loha.rank() == (rank == 3 ? 9 : 20));
    const Factors factors = loha.factors();
    CHECK(close(0.5 * factors.up.mm(factors.down), expected, 1e-12));
  }
}

TEST_CASE("lokr: sizes are split as LyCORIS splits them", "[variants]") {
  const auto split = [](int64_t size, int64_t factor) { return kronecker_split(size, factor); };
  using Pair = std::pair<int64_t, int64_t>;
  CHECK(split(256, -1) == Pair(16, 16));
  CHECK(split(128, -1) == Pair(8, 16));
  CHECK(split(127, -1) == Pair(1, 127));
  CHECK(split(128, 4) == Pair(4, 32));
  CHECK(split(320, 7) == Pair(5, 64));
  CHECK_THROWS_WITH(split(320, 0), ContainsSubstring("got 320 and 0"));
  CHECK_THROWS_WITH(LoKrAdapterImpl(LoKrOptions(4).lokr_shape({3, 2}), kLayer),
                    ContainsSubstring("'block.to_q': expected a lokr_shape"));
}

TEST_CASE("ia3: at scale 1 outputs, or inputs, are multiplied by l", "[variants]") {
  torch::manual_seed(2);
  const Tensor weight = torch::randn({640, 320}), x = torch::randn({3, 320});
  for (const bool input : {false, true}) {
    IA3AdapterImpl ia3(IA3Options(4).scale_input(input), kLayer);
    torch::NoGradGuard no_grad;
    ia3.l.normal_();
    const Tensor expected =
        input ? (x * ia3.l).mm(weight.t()) : x.mm(weight.t()) * ia3.l.view({1, 640});
    CHECK(close(x.mm((weight + ia3.delta(weight)).t()), expected, 1e-5));
  }
  CHECK_THROWS_WITH(
      IA3AdapterImpl(LoRAOptions(4).dora(true), kLayer),
      ContainsSubstring("'block.to_q': DoRA cannot be combined with the ia3 variant"));
}

TEST_CASE("ia3: a convolution has one number for each channel, as in PEFT and LyCORIS",
          "[variants]") {
  torch::manual_seed(2);
  torch::NoGradGuard no_grad;
  const Tensor x = torch::randn({2, 4, 6, 6});
  const auto options = IA3Options(1).scale_input(true);
  torch::nn::Sequential model(torch::nn::Conv2d(torch::nn::Conv2dOptions(4, 6, 3).bias(false)));
  const auto inputs = patch<IA3>(*model, options, {"0"});
  Tensor l = inputs->parameters()[0];
  CHECK(l.sizes() == torch::IntArrayRef({1, 4}));
  l.normal_();
  CHECK(close(inputs(model, x), model->forward(x * l.view({1, 4, 1, 1})), 1e-5));
  // A file of the time when each place of the kernel had its own number still loads.
  auto old = inputs->state();
  old[0].trained["l"] = torch::randn({1, 36});
  torch::nn::Sequential twin(torch::nn::Conv2d(torch::nn::Conv2dOptions(4, 6, 3).bias(false)));
  CHECK(patch(*twin, old)->parameters()[0].sizes() == torch::IntArrayRef({1, 36}));

  torch::nn::Sequential up(
      torch::nn::ConvTranspose2d(torch::nn::ConvTranspose2dOptions(4, 6, 3).bias(false)));
  const auto outputs = patch<IA3>(*up, 1, {"0"});
  Tensor o = outputs->parameters()[0];
  CHECK(o.sizes() == torch::IntArrayRef({6, 1}));
  o.normal_();
  CHECK(close(outputs(up, x), up->forward(x) * o.view({1, 6, 1, 1}), 1e-5));
}

TEST_CASE("lora_xs: the bases are the leading singular vectors of the weight", "[variants]") {
  torch::manual_seed(2);
  const Tensor weight = torch::randn({640, 320}, torch::kDouble);
  LoRAXSAdapterImpl xs(LoRAOptions(5), kLayer);
  xs.to(torch::kDouble);
  xs.prepare(weight);
  torch::NoGradGuard no_grad;
  xs.core.copy_(torch::eye(5));
  // With the identity as its core the delta is the weight's best approximation of that rank.
  const auto values = torch::linalg_svdvals(weight);
  const double best = values.slice(0, 5).norm().item<double>();
  CHECK(std::abs(l2(weight - xs.delta()) / best - 1) < 1e-10);
}

TEST_CASE("dora: the adapted weight has rows of the trained lengths", "[variants]") {
  torch::manual_seed(2);
  const Tensor weight = torch::randn({640, 320}, torch::kDouble);
  ClassicAdapterImpl dora(LoRAOptions(4).network_alpha(2).dora(true), kLayer);
  dora.to(torch::kDouble);
  dora.prepare(weight);
  CHECK(torch::equal(dora.trained()["magnitude"], weight.norm(2, 1, true)));
  torch::NoGradGuard no_grad;
  dora.up.normal_();
  const Tensor moved = weight + 0.5 * dora.up.mm(dora.down);
  const Tensor lengths = weight.norm(2, 1, true);
  CHECK(close(weight + dora.delta(weight), lengths * moved / moved.norm(2, 1, true), 1e-12));
  dora.trained()["magnitude"].mul_(3);
  CHECK(close((weight + dora.delta(weight)).norm(2, 1, true), 3 * lengths, 1e-12));
  CHECK_THAT(dora.description(), ContainsSubstring(", DoRA"));
}

TEST_CASE("rslora: the scale falls with the root of the rank", "[variants]") {
  const auto scale = [](const LoRAOptions& options) {
    return ClassicAdapterImpl(options, kLayer).scale();
  };
  CHECK(scale(LoRAOptions(16).network_alpha(8)) == 0.5);
  CHECK(scale(LoRAOptions(16).network_alpha(8).rslora(true)) == 2.0);
  CHECK(scale(LoRAOptions(16).rslora(true)) == 1.0);
}

TEST_CASE("a layer with its adapter as one module clones, prints and stays frozen", "[variants]") {
  LightLoRA<torch::nn::Linear> layer(torch::nn::Linear(120, 80), LoRAOptions(4), "head");
  {
    torch::NoGradGuard no_grad;
    layer->adapter->up.normal_();
  }
  const Tensor x = torch::randn({3, 120});
  const Tensor expected = layer->base(x) + x.mm(layer->adapter->delta().t());
  CHECK(close(layer(x), expected, 1e-5));
  CHECK(layer->parameters().size() == 4);
  const auto copy = std::dynamic_pointer_cast<LightLoRA<torch::nn::Linear>::Impl>(layer->clone());
  REQUIRE(copy);
  CHECK(torch::equal(copy->forward(x), layer(x)));
  CHECK_FALSE(copy->base->weight.requires_grad());
  CHECK(copy->adapter->up.requires_grad());
  {
    torch::NoGradGuard no_grad;
    layer->adapter->up.zero_();
  }
  CHECK_FALSE(torch::equal(copy->forward(x), layer(x)));
  std::ostringstream text;
  text << *layer;
  CHECK_THAT(text.str(), ContainsSubstring("light adapter of 'head' (120 -> 80): rank 4"));
  CHECK_THROWS_WITH(layer(torch::randn({3, 121})),
                    ContainsSubstring("'head': expected x (..., 120), got [3, 121]"));
}

TEST_CASE("an adapted convolution equals the convolution with the summed weight", "[variants]") {
  ClassicLoRA<torch::nn::Conv2d> layer(
      torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 8, 3).padding(1)), LoRAOptions(2));
  torch::NoGradGuard no_grad;
  layer->adapter->up.normal_();
  const Tensor x = torch::randn({2, 3, 5, 5});
  const Tensor weight = layer->base->weight + layer->adapter->delta().view({8, 3, 3, 3});
  CHECK(close(layer(x), torch::conv2d(x, weight, layer->base->bias, 1, 1), 1e-5));
}

TEST_CASE("modules save and load through torch::serialize", "[variants]") {
  LightLoRA<torch::nn::Linear> layer(torch::nn::Linear(120, 80), LoRAOptions(4), "head");
  {
    torch::NoGradGuard no_grad;
    layer->adapter->up.normal_();
  }
  std::stringstream stream;
  torch::save(layer, stream);
  LightLoRA<torch::nn::Linear> other(torch::nn::Linear(120, 80), LoRAOptions(4), "other");
  torch::load(other, stream);
  const Tensor x = torch::randn({3, 120});
  CHECK(torch::equal(other(x), layer(x)));
}
