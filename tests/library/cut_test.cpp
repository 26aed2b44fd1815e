// SPDX-License-Identifier: Apache-2.0
#include <lightlora/lightlora.h>

#include "support.h"

using namespace lightlora;

TEST_CASE("ranks are cut by the best approximation", "[cut]") {
  torch::manual_seed(9);
  const LayerInfo info{"layer", 30, 20, {}};
  for (const auto& variant : variants()) {
    INFO(variant.name);
    LoRAOptions options(8);
    if (variant.takes("aux_in")) options.own({{"aux_in", "12"}, {"aux_out", "10"}});
    const auto adapter = variant.make(options, info);
    adapter->prepare(torch::randn({20, 30}));
    torch::NoGradGuard no_grad;
    const auto state = [&] { return AdapterState{state_of(*adapter)}; };
    if (adapter->needs_weight()) {
      CHECK_THROWS_WITH(cut(state(), Keep::rank(3)),
                        ContainsSubstring("'layer': expected the layer's weight"));
      continue;
    }
    for (const auto& item : adapter->trained()) torch::Tensor(item.value()).normal_();
    adapter->set_scale(0.5);
    const auto [u, s, vh] = torch::linalg_svd(adapter->delta().to(torch::kDouble), false);
    const auto best = (u.slice(1, 0, 3) * s.slice(0, 0, 3)).mm(vh.slice(0, 0, 3));
    const auto classic = cut(state(), Keep::rank(3), As::classic)[0];
    const bool fits = adapter->rank() <= 3;  // a variant may have a rank of its own
    CHECK(classic.trained.at("down").size(0) == (fits ? adapter->rank() : 3));
    CHECK(close(make_adapter(classic)->delta(), best, 1e-5));
    for (const Keep& keep : {Keep::rank(3), Keep::energy(1).at_most(3)}) {
      const auto kept = cut(state(), keep)[0];
      const bool is_light = variant.name == "fused" || variant.name == "light";
      CHECK(kept.variant == (fits ? variant.name : is_light ? "light" : "classic"));
      CHECK(close(make_adapter(kept)->delta(), best, 1e-5));
    }
    CHECK(close(make_adapter(cut(state(), Keep::rank(99), As::classic)[0])->delta(),
                adapter->delta(), 1e-6));
  }
}

TEST_CASE("with DoRA what is added is cut, and the lengths of the rows stay", "[cut]") {
  torch::manual_seed(9);
  const auto adapter = find_variant("fused").make(LoRAOptions(4).dora(true), {"layer", 30, 20, {}});
  adapter->prepare(torch::randn({20, 30}));
  {
    torch::NoGradGuard no_grad;
    adapter->trained()["down_up"].normal_();
  }
  const auto kept = cut({state_of(*adapter)}, Keep::rank(3))[0];
  CHECK(kept.variant == "light");
  CHECK(kept.options.dora());
  CHECK(torch::equal(kept.trained.at("magnitude"), adapter->trained()["magnitude"]));
  CHECK(make_adapter(kept)->rank() == 3);
}
