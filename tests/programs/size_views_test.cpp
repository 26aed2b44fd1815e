// SPDX-License-Identifier: Apache-2.0
// What a small model in SDXL's form is told about its pictures.
#include "research/pretraining/size_views.h"

#include <ATen/ATen.h>
#include <torch/optim/adam.h>

#include <nlohmann/json.hpp>

#include "models/unet.h"
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

namespace {

// As small as a UNet in SDXL's form can be.
sd::UNet2DConditionModel small_unet_with_sizes() {
  const json config{{"in_channels", 3},
                    {"out_channels", 3},
                    {"sample_size", 8},
                    {"layers_per_block", 1},
                    {"block_out_channels", {16, 16}},
                    {"norm_num_groups", 4},
                    {"down_block_types", {"DownBlock2D", "CrossAttnDownBlock2D"}},
                    {"up_block_types", {"CrossAttnUpBlock2D", "UpBlock2D"}},
                    {"attention_head_dim", 2},
                    {"cross_attention_dim", 8},
                    {"use_linear_projection", true},
                    {"addition_embed_type", "text_time"},
                    {"addition_time_embed_dim", 8},
                    {"projection_class_embeddings_input_dim", 4 + 6 * 8}};
  return sd::UNet2DConditionModel(sd::UNet2DConditionModelOptions::from_json(config));
}

// Sizes of 16 pictures, and whether each was small.
struct ToldSizes {
  at::Tensor time_ids, small;

  explicit ToldSizes(int64_t first) {
    const auto views = pretraining::with_sizes(at::zeros({16, 3, 16, 16}), first,
                                               json{{"small", 0.5}, {"cut", 0.5}});
    time_ids = views.time_ids;
    small = time_ids.select(1, 0) < 16;
  }
};

// How far the UNet is from saying of noise what it is told: 1 for a small picture, -1 for another.
at::Tensor error_of_told(sd::UNet2DConditionModel& unet, const ToldSizes& told,
                         const at::Tensor& small) {
  const sd::AddedConditions added{at::zeros({16, 4}), told.time_ids};
  const auto said =
      unet->forward(at::randn({16, 3, 8, 8}), at::zeros({16}), at::zeros({16, 1, 8}), added);
  const auto wanted = at::where(small, at::ones({16}), -at::ones({16})).view({16, 1, 1, 1});
  return (said - wanted).square().mean();
}

}  // namespace

TEST_CASE("pretrain: a UNet learns from the sizes that it is told", "[pretrain]") {
  torch::manual_seed(0);
  auto unet = small_unet_with_sizes();
  torch::optim::Adam optimizer(unet->parameters(), torch::optim::AdamOptions(3e-3));
  for (int64_t step = 0; step < 100; ++step) {
    const ToldSizes told(16 * step);
    optimizer.zero_grad();
    error_of_told(unet, told, told.small).backward();
    CHECK(unet->add_embedding->linear_1->weight.grad().abs().max().item<float>() > 0);
    optimizer.step();
  }
  torch::NoGradGuard no_grad;
  const ToldSizes unseen(1'000'000);
  REQUIRE((unseen.small.any().item<bool>() && !unseen.small.all().item<bool>()));
  // Without the sizes nothing better than 1 is possible; with those of others it is wrong.
  CHECK(error_of_told(unet, unseen, unseen.small).item<float>() < 0.5F);
  CHECK(error_of_told(unet, unseen, unseen.small.logical_not()).item<float>() > 2.0F);
}
