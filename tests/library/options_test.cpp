// SPDX-License-Identifier: Apache-2.0
// Options of single variants: typed, as text, and refused where they do not belong.
#include <lightlora/lightlora.h>

#include "support.h"

using namespace lightlora;

namespace {

const LayerInfo kLayer{"block.to_q", 320, 640, {}};

template <template <typename> class Variant, typename Options>
constexpr bool patches_with =
    lightlora::detail::takes_options<typename Variant<torch::nn::Linear>::AdapterType, Options>;

}  // namespace

TEST_CASE("an option that a variant does not take does not compile, or is refused by name",
          "[variants]") {
  STATIC_REQUIRE(std::is_constructible_v<LoKr<torch::nn::Linear>::Impl, torch::nn::Linear,
                                         LoKrOptions, std::string>);
  STATIC_REQUIRE_FALSE(std::is_constructible_v<ClassicLoRA<torch::nn::Linear>::Impl,
                                               torch::nn::Linear, LoKrOptions, std::string>);
  STATIC_REQUIRE(patches_with<LoKr, LoKrOptions>);
  STATIC_REQUIRE(patches_with<LoKr, LoRAOptions>);
  STATIC_REQUIRE(patches_with<FusedDownUpLoRA, LightOptions>);
  STATIC_REQUIRE(patches_with<ClassicLoRA, int>);
  STATIC_REQUIRE_FALSE(patches_with<ClassicLoRA, LoKrOptions>);
  STATIC_REQUIRE_FALSE(patches_with<LightLoRA, LoKrOptions>);

  const auto make = [](const char* variant, const LoRAOptions& options) {
    return find_variant(variant).make(options, kLayer);
  };
  CHECK_THROWS_WITH(
      make("hira", LoRAOptions(4).own({{"decompose_factor", "4"}})),
      ContainsSubstring("'block.to_q': expected an option that the hira variant takes "
                        "(it has none of its own), got 'decompose_factor'"));
  CHECK_THROWS_WITH(make("lokr", LightOptions(4).aux_in(8)),
                    ContainsSubstring("the lokr variant takes (decompose_factor, decompose_both, "
                                      "full_matrix, lokr_shape), got 'aux_in'"));
  CHECK_THROWS_WITH(
      make("lokr", LoRAOptions(4).own({{"decompose_factor", "four"}})),
      ContainsSubstring("'block.to_q': decompose_factor: expected a whole number, got "
                        "'four'"));
  CHECK_THROWS_WITH(make("lokr", LoRAOptions(4).own({{"full_matrix", "maybe"}})),
                    ContainsSubstring("full_matrix: expected true or false, got 'maybe'"));
  CHECK_THROWS_WITH(
      make("light", LoRAOptions(4).own({{"aux_init", "gauss"}})),
      ContainsSubstring("aux_init: expected one of orthogonal, normal, normal_scaled"));
}

TEST_CASE("a variant's own options are the same typed and as text, and in its description",
          "[variants]") {
  const auto typed = find_variant("lokr").make(
      LoKrOptions(4).decompose_factor(8).network_alpha(2).lokr_shape({2, 5}), kLayer);
  const auto text = find_variant("lokr").make(
      LoRAOptions(4).own(
          {{"decompose_factor", "8"}, {"lokr_shape", "2 5"}, {"full_matrix", "false"}}),
      kLayer);
  CHECK(typed->options().own() == OwnOptions{{"decompose_factor", "8"}, {"lokr_shape", "2 5"}});
  CHECK(text->options().own() == typed->options().own());
  CHECK(typed->scale() == 0.5);
  CHECK_THAT(typed->description(), ContainsSubstring(", decompose_factor 8, lokr_shape 2 5"));
  CHECK(find_variant("vera").takes("aux_seed"));
  CHECK_FALSE(find_variant("vera").takes("aux_in"));
}

TEST_CASE("values tell of their layer what only their own variant knows", "[options]") {
  const LayerInfo convolution{"conv", 36, 6, {3, 3}};
  const TrainedValues by_channel{{"l", torch::ones({1, 36})}};
  CHECK(find_variant("ia3").layer_of(convolution, by_channel).kernel.empty());
  for (const auto& variant : variants()) {
    if (variant.name == "ia3") continue;
    INFO(variant.name);
    CHECK(variant.layer_of(convolution, by_channel).kernel == convolution.kernel);
  }
}
