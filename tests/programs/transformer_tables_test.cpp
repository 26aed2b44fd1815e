// SPDX-License-Identifier: Apache-2.0
// The tables of names of transformer models, and cutting and joining of adapters: what holds for all.
#include <ATen/ATen.h>

#include <algorithm>
#include <set>
#include <string>

#include "lora_files/families.h"
#include "lora_files/layer_places.h"
#include "lora_files/layer_values.h"
#include "support.h"

namespace {

using lora_files::LayerValues;
using lora_files::Place;

std::string flat(std::string name) {
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

LayerValues lora(int64_t out, int64_t in, int64_t rank, double scale = 1) {
  return {
      "layer: ", "LoRA", {{"down", at::randn({rank, in})}, {"up", at::randn({out, rank})}}, scale};
}

at::Tensor delta(const LayerValues& values) {
  return values.parts.at("up").mm(values.parts.at("down")) * values.scale;
}

}  // namespace

TEST_CASE("every name of a family's table stands for one layer, on both sides", "[lora_files]") {
  for (const auto& family : lora_files::families()) {
    CAPTURE(family.name);
    for (const auto& component : family.components) {
      std::set<std::string> originals, others;
      for (const auto& kind : component.kinds) {
        CAPTURE(kind.original);
        CHECK(originals.insert(flat(kind.original)).second);
        for (const auto& name : kind.diffusers) {
          if (!kind.alias) CHECK(others.insert(flat(name)).second);
        }
        const auto blocks = std::count(kind.original.begin(), kind.original.end(), '*');
        for (const auto& name : kind.diffusers) {
          CHECK(std::count(name.begin(), name.end(), '*') == blocks);
        }
      }
    }
  }
}

TEST_CASE("names of layers are found in every spelling", "[lora_files]") {
  const auto& flux = lora_files::families().front();
  for (const char* name :
       {"lora_unet_single_blocks_12_linear1", "diffusion_model.single_blocks.12.linear1",
        "single_blocks.12.linear1", "base_model.model.single_blocks.12.linear1"}) {
    CAPTURE(name);
    const auto found = lora_files::places_of(name);
    REQUIRE(!found.empty());
    CHECK(found.front().family == 0);
    CHECK(found.front().original);
    CHECK(found.front().place.part == Place::kWhole);
    CHECK(lora_files::original_name(flux, found.front().place) == "single_blocks.12.linear1");
  }
  const auto part = lora_files::find_diffusers(flux, 0, "single_transformer_blocks.3.proj_mlp");
  REQUIRE(part.has_value());
  CHECK(part->part == 3);
  CHECK(lora_files::original_name(flux, *part) == "single_blocks.3.linear1");
  CHECK(lora_files::places_of("lora_unet_down_blocks_0_attentions_0_proj_in").empty());
}

TEST_CASE("what is cut and put together has the same delta, and its own form", "[lora_files]") {
  const auto whole = lora(12, 6, 3, 0.5);
  const auto parts = lora_files::split(whole, {4, 4, 4});
  std::vector<const LayerValues*> given;
  std::vector<at::Tensor> deltas;
  for (const auto& part : parts) {
    REQUIRE(part.has_value());
    given.push_back(&*part);
    deltas.push_back(delta(*part));
  }
  CHECK(at::allclose(at::cat(deltas, 0), delta(whole)));
  const auto again = lora_files::joined(given, {4, 4, 4});
  CHECK(again.scale == whole.scale);
  for (const char* part : {"down", "up"})
    CHECK(at::equal(again.parts.at(part), whole.parts.at(part)));

  const auto first = lora(4, 6, 2, 2), last = lora(5, 6, 1);
  const auto blocks = lora_files::joined({&first, nullptr, &last}, {4, 3, 5});
  CHECK(blocks.rank() == 3);
  CHECK(at::allclose(delta(blocks), at::cat({delta(first), at::zeros({3, 6}), delta(last)}, 0)));
  const auto apart = lora_files::split(blocks, {4, 3, 5});
  CHECK((apart[0] && !apart[1] && apart[2]));
  CHECK(apart[0]->rank() == 2);
  CHECK(apart[2]->rank() == 1);
  CHECK(at::allclose(delta(*apart[2]), delta(last)));
}

TEST_CASE("adapters that cannot be cut, or do not go together, are refused", "[lora_files]") {
  LayerValues butterfly{
      "layer: ", "BOFT", {{"boft_R", at::randn({2, 4, 4})}, {"bias", at::ones(8)}}, 1};
  CHECK_THROWS_AS(lora_files::split(butterfly, {4, 4}), c10::Error);
  const auto one = lora(4, 6, 2), other = lora(4, 5, 2);
  CHECK_THROWS_AS(lora_files::joined({&one, &other}, {4, 4}), c10::Error);
  CHECK_THROWS_AS(lora_files::split(one, {3, 3}), c10::Error);
  LayerValues half{"layer: ", "LoRA", {{"up", at::randn({4, 2})}}, 1};
  CHECK_THROWS_AS(lora_files::check(half), c10::Error);
}
