// SPDX-License-Identifier: Apache-2.0
#include "training/inversion.h"

#include <set>

#include "paths.h"
#include "support.h"
#include "training/captions.h"

using torch::Tensor;
using namespace training;

namespace {

const std::string kModel = LIGHTLORA_SOURCE_DIR "/examples/stable_diffusion/assets/base";

InversionOptions small_run() {
  InversionOptions options;
  options.model.path = kModel;
  options.train_data_dir = LIGHTLORA_SOURCE_DIR "/examples/stable_diffusion/assets/teddy_bear";
  options.placeholder_token = "<toy>";
  options.initializer_token = "bear";
  options.num_vectors = 2;
  options.optimization.train_batch_size = 2;
  options.optimization.max_train_steps = 2;
  options.machine.device = "cpu";
  return options;
}

// The rows that the file has; a learned word adds more of them.
void check_unchanged(const torch::nn::Module& now, const torch::nn::Module& before) {
  const auto expected = before.named_parameters();
  for (const auto& item : now.named_parameters()) {
    INFO(item.key());
    const Tensor was = expected[item.key()];
    CHECK(torch::equal(item.value().narrow(0, 0, was.size(0)), was));
    CHECK_FALSE(item.value().requires_grad());
  }
}

}  // namespace

TEST_CASE("only the new word's vectors change, bit for bit", "[inversion]") {
  for (const bool layerwise : {false, true}) {
    auto options = small_run();
    options.layerwise = layerwise;
    Inversion inversion(options);
    const Tensor start = inversion.embedding().vectors;
    CHECK(start.dim() == (layerwise ? 3 : 2));
    for (int i = 0; i < 2; ++i) CHECK(inversion.trainer().step().gradient_norm > 0);
    const Tensor moved = inversion.embedding().vectors - start;
    CHECK(moved.abs().flatten(0, -2).sum(-1).gt(0).all().item<bool>());
    sd::StableDiffusion fresh(kModel);
    check_unchanged(*inversion.pipeline().text_encoder(), *fresh.text_encoder());
    check_unchanged(*inversion.pipeline().unet(), *fresh.unet());
    check_unchanged(*inversion.pipeline().vae(), *fresh.vae());
    const Tensor others = inversion.pipeline().encode_prompt({"a red apple"}).states;
    const Tensor expected = fresh.encode_prompt({"a red apple"}).states;
    CHECK(torch::equal(layerwise ? others.select(1, 3) : others, expected));
  }
}

TEST_CASE("templates put the word into captions of objects and styles", "[inversion]") {
  for (const auto property : {Property::object, Property::style}) {
    const auto captions = caption_templates(property, "<toy>");
    CHECK(captions.size() >= 10);
    CHECK(std::set<std::string>(captions.begin(), captions.end()).size() == captions.size());
    for (const auto& caption : captions) {
      INFO(caption);
      CHECK(caption.find("<toy>") != std::string::npos);
      CHECK((caption.find("style of <toy>") != std::string::npos) == (property == Property::style));
    }
  }
}
