// SPDX-License-Identifier: Apache-2.0
// The demo's measures against tests/parity/measure.py; make_measures.py made the pictures and
// numbers.
#include <lightlora/file_io.h>
#include <fstream>
#include <nlohmann/json.hpp>

#include "paths.h"
#include "support.h"
#include "support/images/load.h"
#include "support/images/measures.h"
#include "support/images/resize.h"

namespace {

constexpr int64_t kSide = 64, kColumns = 6;

const std::string kVectors =
    LIGHTLORA_SOURCE_DIR "/examples/stable_diffusion/assets/measures/emoji.safetensors";

const images::EmojiVectors& emoji() {
  static const images::EmojiVectors vectors(kVectors);
  return vectors;
}

images::Image picture(int64_t index) {
  static const auto sheet = images::load_image(LIGHTLORA_TEST_DATA "/images_measures/pictures.png");
  return images::crop(sheet, index % kColumns * kSide, index / kColumns * kSide, kSide, kSide);
}

}  // namespace

TEST_CASE("measure: background, cosine and rank equal the reference implementation's",
          "[measure][parity]") {
  std::ifstream file(LIGHTLORA_TEST_DATA "/images_measures/expected.json");
  const auto expected = nlohmann::json::parse(file);
  REQUIRE(expected.size() == 48);
  int64_t deep_ranks = 0;
  for (int64_t i = 0; i < 48; ++i) {
    INFO(i);
    const auto& want = expected[static_cast<std::size_t>(i)];
    const auto image = picture(i);
    const auto background = images::background(image);
    CHECK(background.name == want["colour"].get<std::string>());
    for (std::size_t c = 0; c < 3; ++c) {
      CHECK(std::abs(background.colour[c] - want["background"][c].get<double>()) < 1e-6);
    }
    const auto match =
        emoji().match(images::subject_vector(image), want["subject"].get<std::string>());
    // What rounding the emoji's vectors to 8 bits may change; make_measures.py checks the same
    // limits.
    CHECK(std::abs(match.cosine - want["cosine"].get<double>()) < 1e-4);
    const auto rank = want["rank"].get<int64_t>();
    CHECK(std::abs(match.rank - rank) <= (rank < 100 ? 0 : 1));
    deep_ranks += rank >= 100 ? 1 : 0;
  }
  CHECK(deep_ranks == 13);
}

TEST_CASE("measure: a bitmap's own vector equals the reference implementation's",
          "[measure][parity]") {
  const lightlora::SafetensorsFile file(LIGHTLORA_TEST_DATA
                                        "/images_measures/reference.safetensors");
  const auto vector = images::reference_vector(file.load("bitmap").to(torch::kFloat) / 255);
  // Two fp32 resamplings: rounding alone.
  CHECK(close(vector, file.load("vector"), 1e-5));
}

TEST_CASE("measure: a picture of the demo's subject is recognised at any size", "[measure]") {
  const std::string folder = LIGHTLORA_SOURCE_DIR "/examples/stable_diffusion/assets/teddy_bear";
  const auto paths = images::list_images(folder).images;
  REQUIRE_FALSE(paths.empty());
  for (const auto& path : paths) {
    INFO(path);
    const auto image = images::load_image(path);
    REQUIRE(image.width != kSide);
    const auto match = emoji().match(images::subject_vector(image), "teddy bear");
    CHECK(match.rank == 0);
    CHECK(match.cosine > 0.85);
    // The file's name is "2_yellow.png".
    CHECK_THAT(path, ContainsSubstring("_" + images::background(image).name + ".png"));
    const auto small = images::resize(image, kSide, kSide, images::Filter::kLanczos);
    CHECK(images::subject_vector(small).equal(images::subject_vector(image)));
  }
}

TEST_CASE("measure: a picture without a subject has a zero vector and the last rank", "[measure]") {
  const auto vector = images::subject_vector(images::Image(kSide, kSide, {200, 45, 45}));
  CHECK(vector.sizes() == at::IntArrayRef({2304}));
  CHECK(vector.count_nonzero().item<int64_t>() == 0);
  CHECK(emoji().match(vector, "robot").rank == 973);
  CHECK(images::background(images::Image(kSide, kSide, {200, 45, 45})).name == "red");
}

TEST_CASE("measure: every emoji's vector is nearest to itself", "[measure]") {
  CHECK(emoji().names().size() == 974);
  const lightlora::SafetensorsFile file(kVectors);
  const auto vectors = file.load("vectors").flatten(1).to(at::kFloat);
  for (const std::size_t i : {0, 100, 500, 973}) {
    const auto vector = vectors[static_cast<int64_t>(i)];
    const auto match = emoji().match(vector / vector.norm(), emoji().names()[i]);
    CHECK(match.rank == 0);
    CHECK(std::abs(match.cosine - 1) < 1e-5);
  }
}

TEST_CASE("measure: wrong files and names are errors", "[measure]") {
  const ScratchFolder folder;
  const std::string path = folder.file("a.safetensors");
  CHECK_THROWS_WITH(images::EmojiVectors(path), ContainsSubstring("'" + path + "'"));
  lightlora::save_safetensors(path, {{"vectors", at::zeros({2, 4, 24, 24})}});
  CHECK_THROWS_WITH(
      images::EmojiVectors(path),
      ContainsSubstring("expected a tensor 'vectors' and metadata 'names', got another file"));
  lightlora::save_safetensors(path, {{"vectors", at::zeros({2, 4, 24, 24})}}, {{"names", "a"}});
  CHECK_THROWS_WITH(
      images::EmojiVectors(path),
      ContainsSubstring("expected vectors of shape [1, 4, 24, 24], got [2, 4, 24, 24]"));
  CHECK_THROWS_WITH(emoji().match(at::zeros({2304}), "bear with a hat"),
                    ContainsSubstring("expected the name of an emoji, got 'bear with a hat'"));
}
