// SPDX-License-Identifier: Apache-2.0
// What a small model in SDXL's form is told about its pictures.
#include "research/pretraining/size_views.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "support.h"

using nlohmann::json;

TEST_CASE("pretrain: pictures are made small or cut out as their numbers say", "[pretrain]") {
  torch::manual_seed(0);
  const auto pictures = at::rand({40, 3, 16, 16});
  const json options{{"small", 0.5}, {"cut", 0.5}};
  const auto all = pretraining::with_sizes(pictures, 7, options);
  const auto part = pretraining::with_sizes(pictures.narrow(0, 10, 5), 17, options);
  CHECK(at::equal(all.pictures.narrow(0, 10, 5), part.pictures));
  CHECK(at::equal(all.time_ids.narrow(0, 10, 5), part.time_ids));
  const auto sharpness = [](const at::Tensor& x) { return x.diff(1, -1).abs().mean({1, 2, 3}); };
  const auto plain = (all.time_ids == pretraining::plain_sizes(16)).all(1);
  CHECK(at::equal(all.pictures.index({plain}), pictures.index({plain})));
  const auto small = all.time_ids.select(1, 0) < 16;
  const auto share = small.to(at::kFloat).mean().item<double>();
  CHECK((share > 0.2 && share < 0.8));
  CHECK(sharpness(all.pictures).index({small}).max().item<float>() <
        sharpness(pictures).min().item<float>());
}
