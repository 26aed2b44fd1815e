// SPDX-License-Identifier: Apache-2.0
#include "models/gradient_checkpointing.h"

#include <lightlora/patch.h>

#include "models/unet.h"
#include "support.h"

using torch::Tensor;

namespace {

sd::UNet2DConditionModel small_unet(double dropout = 0) {
  torch::manual_seed(1);
  sd::UNet2DConditionModelOptions options;
  options.down_block_types({"CrossAttnDownBlock2D", "DownBlock2D"})
      .up_block_types({"UpBlock2D", "CrossAttnUpBlock2D"})
      .block_out_channels({16, 32})
      .cross_attention_dim({12})
      .attention_head_dim({2})
      .norm_num_groups(4)
      .dropout(dropout);
  return sd::UNet2DConditionModel(options);
}

struct Gradients {
  Tensor output, context;
  std::map<std::string, Tensor> parameters;
};

// One backward pass through a patched UNet; targets include plain layers, whose weight is rebound.
Gradients run(bool checkpointing, double dropout = 0) {
  auto unet = small_unet(dropout);
  torch::manual_seed(2);
  auto lora =
      lightlora::patch<lightlora::LightLoRA>(*unet, lightlora::LightOptions(2).aux_in(6).aux_out(5),
                                             {"to_q", "to_v", "conv1", "conv_out"});
  for (auto& item : lora->named_parameters()) {
    const torch::NoGradGuard no_grad;
    item.value().add_(0.1 * torch::randn_like(item.value()));
  }
  const Tensor x = torch::randn({2, 4, 8, 8}), t = torch::tensor({10, 500});
  const Tensor context = torch::randn({2, 5, 12}).requires_grad_();
  Gradients result;
  // Twice, as gradient accumulation does; each pass has its own activation.
  for (int pass = 0; pass < 2; ++pass) {
    torch::manual_seed(3);
    const auto active = lora->activate();
    const sd::GradientCheckpointing on(checkpointing);
    result.output = unet->forward(x, t, context);
    result.output.square().sum().backward();
  }
  result.context = context.grad();
  for (const auto& item : lora->named_parameters()) {
    REQUIRE(item.value().grad().defined());
    result.parameters[item.key()] = item.value().grad();
  }
  return result;
}

void check_equal(const Gradients& a, const Gradients& b) {
  // The same operations in the same order.
  CHECK(torch::equal(a.output, b.output));
  CHECK(close(a.context, b.context, 1e-6));
  REQUIRE(a.parameters.size() == b.parameters.size());
  for (const auto& [name, gradient] : a.parameters) {
    INFO(name);
    CHECK(gradient.norm().item<double>() > 0);
    CHECK(close(gradient, b.parameters.at(name), 1e-6));
  }
}

}  // namespace

TEST_CASE("checkpointing changes no gradient, of adapters in slots or bound weights",
          "[checkpointing]") {
  check_equal(run(false), run(true));
}

TEST_CASE("checkpointing draws the same dropout twice", "[checkpointing]") {
  check_equal(run(false, 0.3), run(true, 0.3));
}

TEST_CASE("checkpointing keeps inputs only, and computes each segment twice", "[checkpointing]") {
  int64_t calls = 0;
  const auto segment = [&](const std::vector<Tensor>& values) {
    ++calls;
    CHECK_FALSE(sd::GradientCheckpointing::enabled());
    return (values[0] * 3).exp() + (values[1].defined() ? values[1] : torch::zeros({}));
  };
  const Tensor x = torch::ones({4}).requires_grad_();
  const sd::GradientCheckpointing on(true);
  CHECK(sd::GradientCheckpointing::enabled());
  const Tensor y = sd::recomputed(segment, {x, Tensor()});
  CHECK(calls == 1);
  y.sum().backward();
  CHECK(calls == 2);
  CHECK(close(x.grad(), 3 * (x * 3).exp(), 1e-6));
  const torch::NoGradGuard no_grad;
  CHECK_FALSE(sd::GradientCheckpointing::enabled());
}
