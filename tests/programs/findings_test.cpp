// SPDX-License-Identifier: Apache-2.0
// The study's findings claim what the numbers show and no more.
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "research/study/page.h"
#include "research/study/result.h"
#include "support.h"
#include "support/distributed/fingerprint.h"

namespace {

using study::Result;
using study::Row;
using study::Study;

constexpr double kStart = 0.18;

struct Numbers {
  double loss = 0.11, likeness = 0.92;
};

Result run(double rate, const Numbers& numbers, int64_t seed, double spread) {
  Result result;
  result.rate = rate;
  result.start_loss = kStart;
  result.trainable = 100;
  result.moved = 1;
  const double offset = static_cast<double>(seed - 1) * spread;  // -1, 0 and 1 spreads
  result.quality.loss = numbers.loss + offset;
  result.quality.cosine = numbers.likeness + offset;
  result.curve = {{0, kStart}, {10, numbers.loss + offset}};
  return result;
}

std::vector<Result> runs(double rate, const Numbers& numbers, int64_t seeds,
                         double spread = 0.001) {
  std::vector<Result> all;
  for (int64_t seed = 0; seed < seeds; ++seed) all.push_back(run(rate, numbers, seed, spread));
  return all;
}

// A study in which every row learns alike, at its described rate.
Study make_study(int64_t seeds) {
  Study study;
  study.model.layers = {{128, 128}, {160, 160}};
  study.sd15_layers = {{320, 320}, {1280, 1280}};
  for (const auto& variant : study::variants()) {
    Row row{variant, {}, runs(variant.described_rate, {}, seeds), {}};
    if (variant.init == "both_zero") {
      for (auto& each : row.own) {
        each.moved = 0;
        each.quality = {kStart, 0.7, 0, 0, 0, {}};
      }
    }
    row.tried = {row.own.front()};
    study.rows.push_back(row);
  }
  for (const auto& word : study::words()) {
    Row row{word, {}, runs(word.described_rate, {}, seeds), {}};
    row.tried = {row.own.front()};
    study.words.push_back(row);
  }
  return study;
}

Row& row(Study& study, size_t number) { return study.rows.at(number); }

// The row at another rate than the described one, at which it has been tried once.
void put_own(Row& row, double rate, const Numbers& numbers, int64_t seeds) {
  row.own = runs(rate, numbers, seeds);
  row.tried.push_back(row.own.front());
}

// The verdict on the finding that begins so.
std::string verdict(const Study& study, const std::string& beginning) {
  std::istringstream lines(study::findings(study));
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("| " + beginning, 0) != 0) continue;
    const auto begin = line.find("**") + 2;
    return line.substr(begin, line.rfind("**") - begin);
  }
  return "no such finding";
}

}  // namespace

TEST_CASE("findings: one seed claims nothing beyond what happened in it", "[study]") {
  auto study = make_study(1);
  row(study, 0).own[0].quality.cosine = 0.99;
  row(study, 6).own[0].quality = {0.01, 0.99, 0, 0, 0, {}};
  study.words[1].own[0].quality = {0.01, 0.99, 0, 0, 0, {}};
  for (const char* finding : {"0 (Classic) has", "1 (Light", "2 (Light", "4 (fused core)", "4, cut",
                              "open question", "Light wants", "not described"}) {
    INFO(finding);
    CHECK(verdict(study, finding) == "undecided: one run");
  }
  CHECK(verdict(study, "3 (both zero)") == "reproduces, and is explained");
}

TEST_CASE("findings: a difference within the spread is none", "[study]") {
  auto study = make_study(3);
  for (const char* finding : {"0 (Classic) has", "4, cut", "Light wants"}) {
    INFO(finding);
    CHECK(verdict(study, finding) == "undecided: within the spread");
  }
  CHECK(verdict(study, "open question") == "no difference beyond the spread");
  CHECK(verdict(study, "not described") == "no difference beyond the spread");
  row(study, 6).own = runs(2e-3, {0.1085, 0.9215}, 3);  // less than the two deviations together
  CHECK(verdict(study, "open question") == "no difference beyond the spread");
}

TEST_CASE("findings: what learns, and what does not", "[study]") {
  auto study = make_study(3);
  CHECK(verdict(study, "1 (Light") == "reproduces");
  CHECK(verdict(study, "4 (fused core)") == "reproduces");
  row(study, 1).own = runs(2e-3, {0.25, 0.5}, 3);
  CHECK(verdict(study, "1 (Light") == "does not reproduce");
  row(study, 1).own = runs(2e-3, {0.1795, 0.5}, 3);
  CHECK(verdict(study, "1 (Light") == "undecided: within the spread");
  // A core that learned, but is worse than nothing once it is cut.
  for (auto& each : row(study, 4).own) each.quality.loss += 0.2;
  CHECK(verdict(study, "4 (fused core)") == "does not reproduce");
  row(study, 3).own[1].moved = 1e-9;
  CHECK(verdict(study, "3 (both zero)") == "does not reproduce");
}

TEST_CASE("findings: places count if the neighbours are apart", "[study]") {
  auto study = make_study(3);
  row(study, 0).own = runs(2e-3, {0.11, 0.96}, 3);
  CHECK(verdict(study, "0 (Classic) has") == "reproduces");
  row(study, 4).own = runs(2e-3, {0.11, 0.959}, 3);
  CHECK(verdict(study, "0 (Classic) has") == "undecided: within the spread");
  CHECK(verdict(study, "4, cut") ==
        "undecided: within the spread");  // apart from those behind it only
  row(study, 4).own = runs(2e-3, {0.11, 0.94}, 3);
  CHECK(verdict(study, "4, cut") == "reproduces");
  row(study, 0).own = runs(2e-3, {0.11, 0.80}, 3);
  CHECK(verdict(study, "0 (Classic) has") == "does not reproduce");
}

TEST_CASE("findings: Gaussian bases, and what their rate has to do with it", "[study]") {
  auto study = make_study(3);
  auto& gaussian = row(study, 5);
  const std::string stuck = "5 (N(0,1) bases)", matters = "so orthogonal";
  CHECK(verdict(study, stuck) == "does not reproduce");
  CHECK(verdict(study, matters) == "no such finding");  // nothing is left to explain
  gaussian.tried[0].quality.loss = 0.6;
  put_own(gaussian, 2e-4, {0.11, 0.92}, 3);
  CHECK(verdict(study, stuck) == "reproduces");
  CHECK(verdict(study, matters) == "does not reproduce: at another rate it learns");
  gaussian.own = runs(2e-4, {0.11, 0.80}, 3);
  CHECK(verdict(study, matters) == "in part: at another rate it learns, but less");
  gaussian.own = runs(2e-4, {0.30, 0.80}, 3);
  CHECK(verdict(study, matters) == "reproduces");
  gaussian.own = runs(2e-4, {0.11, 0.92}, 1);
  CHECK(verdict(study, matters) == "undecided: one run");
}

TEST_CASE("findings: the better of two has to be so in both measures or one", "[study]") {
  auto study = make_study(3);
  auto& scaled = row(study, 6);
  scaled.own = runs(2e-3, {0.09, 0.92}, 3);
  CHECK(verdict(study, "open question") == "Gaussian bases are better here");
  scaled.own = runs(2e-3, {0.11, 0.80}, 3);
  CHECK(verdict(study, "open question") == "orthonormal bases are better here");
  scaled.own = runs(2e-3, {0.09, 0.80}, 3);
  CHECK(verdict(study, "open question") == "the two measures disagree");
  study.words[1].own = runs(2e-2, {0.09, 0.95}, 3);
  CHECK(verdict(study, "not described") == "the layer-wise word is better here");
}

TEST_CASE("findings: a higher rate is wanted if the lower one is worse", "[study]") {
  auto study = make_study(3);
  auto& light = row(study, 1);
  put_own(light, 6e-3, {0.10, 0.92}, 3);
  CHECK(verdict(study, "Light wants") == "undecided: one run");
  light.second = runs(2e-3, {0.11, 0.92}, 3);
  CHECK(verdict(study, "Light wants") == "reproduces");
  light.second = runs(2e-3, {0.101, 0.92}, 3);
  CHECK(verdict(study, "Light wants") == "undecided: within the spread");
  // The method's own numbers for the first step.
  CHECK(study::findings(study).find("11 to 45 times the rate on Stable Diffusion 1.5") !=
        std::string::npos);
}

TEST_CASE("findings: sizes are counted", "[study]") {
  auto study = make_study(3);
  study.sizes = {{"classic, rank 4", 1000, 3000, 1500, 3}, {"light, rank 4", 90, 500, 250, 1}};
  CHECK(verdict(study, "Light trains under a tenth") == "reproduces");
  CHECK(verdict(study, "the sizes") == "reproduced, and smaller");
  study.sizes[1].values = 100;
  study.sizes[0].fp32 = 3 * 1024;
  CHECK(verdict(study, "Light trains under a tenth") == "does not reproduce");
  CHECK(verdict(study, "the sizes") == "1 of 2 are smaller");
}

TEST_CASE("findings: the ends of a sweep are compared with their spreads", "[study]") {
  auto study = make_study(3);
  const std::string more = "not described: does Classic learn better with more rank";
  CHECK(verdict(study, more) == "no such finding");
  study.classic_ranks = {runs(2e-3, {0.11, 0.92}, 3), runs(2e-3, {0.05, 0.92}, 3),
                         runs(2e-3, {0.10, 0.92}, 3)};
  CHECK(verdict(study, more) == "yes, here");
  study.classic_ranks[2] = runs(2e-3, {0.1085, 0.92}, 3);
  CHECK(verdict(study, more) == "no difference beyond the spread");
  study.classic_ranks[2] = runs(2e-3, {0.12, 0.92}, 3);
  CHECK(verdict(study, more) == "no, here it hurts");
  study.classic_ranks = {runs(2e-3, {0.11, 0.92}, 1), runs(2e-3, {0.05, 0.92}, 1)};
  CHECK(verdict(study, more) == "undecided: one run");
  study.classic_ranks[1][0].diverged = true;
  CHECK(verdict(study, more) == "no such finding");
}

TEST_CASE("study: another model under the same path is another study", "[study]") {
  const ScratchFolder folder;
  std::filesystem::create_directories(folder.path() / "model/unet");
  const auto write = [&](const std::string& name, const std::string& text) {
    std::ofstream(folder.file(name), std::ios::binary) << text;
  };
  const auto print = [&] { return study::weights_fingerprint(folder.file("model")); };
  write("model/unet/a.safetensors", std::string(3 << 20, 'a'));
  const auto first = print();
  CHECK(print() == first);
  write("model/unet/config.json", "{}");
  CHECK(print() == first);
  write("model/unet/a.safetensors", std::string((3 << 20) - 1, 'a') + "b");
  CHECK(print() != first);
  write("alone.safetensors", std::string(3 << 20, 'a'));
  CHECK(study::weights_fingerprint(folder.file("alone.safetensors")) == first);
}

TEST_CASE("study: results that cannot be read are made again", "[study]") {
  const ScratchFolder folder;
  const auto path = folder.file("result.json");
  for (const std::string text : {R"({"settings":"s"})", R"({"settings":"s","rate":"x"})", "{", "[]",
                                 R"({"settings":"s","splits":[1]})"}) {
    INFO(text);
    std::ofstream(path) << text;
    CHECK_FALSE(study::load_result(path, "s").has_value());
    CHECK_FALSE(study::load_splits(path, "s").has_value());
  }
}

TEST_CASE("study: a pipe among a model's weights is not waited for", "[study]") {
  const ScratchFolder folder;
  REQUIRE(mkfifo(folder.file("a.safetensors").c_str(), 0600) == 0);
  const auto none = study::weights_fingerprint(folder.path().string());
  CHECK(none == distributed::Fingerprint().hexadecimal());
  CHECK_THROWS_WITH(study::weights_fingerprint(folder.file("a.safetensors")),
                    ContainsSubstring("got a device or a pipe"));
}
