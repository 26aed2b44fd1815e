// SPDX-License-Identifier: Apache-2.0
#include <lightlora/detail/formats/diffusers.h>
#include <lightlora/lightlora.h>

#include "support.h"

using namespace lightlora;

namespace {

std::shared_ptr<Adapter> random_adapter(const std::string& variant, const LoRAOptions& options,
                                        const LayerInfo& layer) {
  const auto adapter = find_variant(variant).make(options, layer);
  torch::NoGradGuard no_grad;
  torch::manual_seed(1);
  adapter->prepare(torch::randn({layer.out, layer.in}));
  for (const auto& item : adapter->trained()) torch::Tensor(item.value()).normal_();
  return adapter;
}

const LayerInfo kQuery{"mid_block.attentions.0.transformer_blocks.0.attn1.to_q", 300, 200, {}};
const LayerInfo kOut{"mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0", 200, 200, {}};

torch::Tensor delta_in_file(const TensorMap& tensors, const std::string& down,
                            const std::string& up) {
  return tensors.at(up).flatten(1).mm(tensors.at(down).flatten(1));
}

}  // namespace

TEST_CASE("attention layers get diffusers' names, folded scale and no alpha", "[diffusers]") {
  for (const auto& variant : variants()) {
    INFO(variant.name);
    const auto options = LoRAOptions(2).network_alpha(1);
    if (variant.make(options, kQuery)->needs_weight()) {
      const auto state = state_of(*random_adapter(variant.name, options, kQuery));
      CHECK_THROWS_WITH(lightlora::detail::to_diffusers({{"unet", {state}}}),
                        ContainsSubstring("expected the layer's weight"));
      continue;
    }
    const auto query = random_adapter(variant.name, options, kQuery);
    const auto out = random_adapter(variant.name, options, kOut);
    const auto tensors =
        lightlora::detail::to_diffusers({{"unet", {state_of(*query), state_of(*out)}}});
    CHECK(tensors.size() == 4);
    for (const auto& [adapter, path] : {std::pair(query, kQuery.name), {out, kOut.name}}) {
      const auto delta = delta_in_file(tensors, "unet." + path + ".lora.down.weight",
                                       "unet." + path + ".lora.up.weight");
      CHECK(close(delta, adapter->delta(), 1e-5));
    }
  }
}

TEST_CASE("a component never mixes spellings", "[diffusers]") {
  const auto query = random_adapter("classic", 2, kQuery);
  const auto feed_forward =
      random_adapter("classic", 2, {"mid_block.attentions.0.proj_in", 300, 200, {1, 1}});
  const auto text =
      random_adapter("classic", 2, {"text_model.encoder.layers.0.mlp.fc1", 100, 200, {}});
  const auto tensors = lightlora::detail::to_diffusers(
      {{"unet", {state_of(*query), state_of(*feed_forward)}}, {"text_encoder", {state_of(*text)}}});
  CHECK(tensors.count("unet." + kQuery.name + ".lora_A.weight"));
  CHECK(tensors.at("unet.mid_block.attentions.0.proj_in.lora_A.weight").sizes() ==
        torch::IntArrayRef({2, 300, 1, 1}));
  CHECK(tensors.at("unet.mid_block.attentions.0.proj_in.lora_B.weight").sizes() ==
        torch::IntArrayRef({200, 2, 1, 1}));
  CHECK(tensors.count(
      "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight"));
}

TEST_CASE("3x3 convolutions keep their kernel in down", "[diffusers]") {
  const auto conv = random_adapter("classic", 2, {"conv_in", 36, 20, {3, 3}});
  const auto tensors = lightlora::detail::to_diffusers({{"unet", {state_of(*conv)}}});
  CHECK(tensors.at("unet.conv_in.lora_A.weight").sizes() == torch::IntArrayRef({2, 4, 3, 3}));
  CHECK(close(delta_in_file(tensors, "unet.conv_in.lora_A.weight", "unet.conv_in.lora_B.weight"),
              conv->delta(), 1e-6));
}

TEST_CASE("mixed ranks are padded to one, which changes no delta", "[diffusers]") {
  const auto query = random_adapter("classic", 2, kQuery);
  const auto out = random_adapter("classic", 5, kOut);
  const auto tensors =
      lightlora::detail::to_diffusers({{"unet", {state_of(*query), state_of(*out)}}});
  const auto& down = tensors.at("unet." + kQuery.name + ".lora.down.weight");
  CHECK(down.size(0) == 5);
  CHECK(close(delta_in_file(tensors, "unet." + kQuery.name + ".lora.down.weight",
                            "unet." + kQuery.name + ".lora.up.weight"),
              query->delta(), 1e-6));
}

TEST_CASE("a small scale is split over both factors, so that fp16 keeps the values",
          "[diffusers]") {
  const auto adapter = random_adapter("classic", LoRAOptions(2).network_alpha(2e-6), kQuery);
  const auto tensors = lightlora::detail::to_diffusers({{"unet", {state_of(*adapter)}}});
  for (const auto& item : tensors) {
    CHECK(item.second.to(torch::kHalf).count_nonzero().item<int64_t>() >
          0.99 * item.second.numel());
  }
}

TEST_CASE("cutting fused adapters gives light ones of the rank", "[diffusers]") {
  const auto fused = random_adapter("fused", 4, kQuery);
  const auto classic = random_adapter("classic", 4, kOut);
  const auto cut_both = cut({state_of(*fused), state_of(*classic)}, Keep::rank(7));
  CHECK(cut_both[0].variant == "light");
  CHECK(cut_both[0].options.rank() == 7);
  CHECK(cut_both[1].variant == "classic");
  CHECK(close(make_adapter(cut({state_of(*fused)}, Keep::rank(49))[0])->delta(), fused->delta(),
              1e-1));
  CHECK(close(make_adapter(cut({state_of(*fused)}, Keep::rank(50))[0])->delta(), fused->delta(),
              1e-5));
}
