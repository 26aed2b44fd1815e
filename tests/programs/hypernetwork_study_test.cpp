// SPDX-License-Identifier: Apache-2.0
// The findings about hypernetworks claim what the numbers show and no more, and results are kept.
#include <algorithm>
#include <cmath>
#include <set>
#include <sstream>

#include "research/hypernetwork_study/page.h"
#include "support.h"

namespace {

using hyperstudy::Run;
using hyperstudy::Study;

// Every seed's mean is one tenth of a hundredth from the next one's.
Run run_with(double likeness, uint64_t seed, const std::vector<int64_t>& points, double seconds) {
  Run run;
  run.bytes = 1000;
  for (const auto steps : points) {
    hyperstudy::Point point;
    point.steps = steps;
    point.seconds = seconds;
    point.scores.likeness = point.scores.features = likeness + 0.001 * static_cast<double>(seed);
    point.pictures = {"picture.png"};
    run.points.push_back(point);
  }
  return run;
}

void put(Study& study, const hyperstudy::Method& method, double first, double last,
         double seconds) {
  std::vector<std::vector<Run>> runs;
  for (int64_t seed = 0; seed < study.settings.seeds; ++seed) {
    auto run = run_with(last, static_cast<uint64_t>(seed), method.points, seconds);
    run.points.front().scores.likeness += first - last;
    run.points.front().scores.features += first - last;
    runs.push_back({run, run});
  }
  for (auto& summary : study.summaries) {
    if (summary.method.name != method.name) continue;
    summary = hyperstudy::summarise(method, runs);
    return;
  }
  study.summaries.push_back(hyperstudy::summarise(method, runs));
}

// Everything is alike, and takes as long.
Study level_study(int64_t seeds) {
  Study study;
  study.settings.seeds = seeds;
  study.networks = hyperstudy::networks(study.settings);
  for (const auto& method : hyperstudy::methods(study.settings)) put(study, method, 0.5, 0.5, 4);
  return study;
}

hyperstudy::Method method_of(const Study& study, const std::string& name) {
  return study.of(name).method;
}

// The verdict of the finding that begins so.
std::string verdict_on(const Study& study, const std::string& beginning) {
  std::istringstream lines(hyperstudy::findings(study));
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("| " + beginning, 0) != 0) continue;
    const auto begin = line.find("**") + 2;
    return line.substr(begin, line.rfind("**") - begin);
  }
  return "no such finding";
}

}  // namespace

TEST_CASE("nothing is claimed within the spread, and nothing of one seed") {
  const auto study = level_study(3);
  CHECK(verdict_on(study, "hypernetwork + 40 relaxed steps: at least") ==
        "as alike, within the spread");
  CHECK(verdict_on(study, "in at most a tenth") == "missed");
  CHECK(verdict_on(study, "the prediction alone") == "missed: no difference beyond the spread");
  CHECK(verdict_on(study, "the prediction beats the mean adapter") ==
        "does not beat it beyond the spread");
  CHECK(verdict_on(study, "refining") == "does not reproduce beyond the spread");
  CHECK(verdict_on(level_study(1), "the prediction alone") == "undecided: one seed");
}

TEST_CASE("both sides of a difference beyond the spread are said") {
  auto study = level_study(3);
  put(study, method_of(study, hyperstudy::kRelaxed), 0.7, 0.9, 0.3);
  CHECK(verdict_on(study, "hypernetwork + 40 relaxed steps: at least") == "more alike");
  CHECK(verdict_on(study, "in at most a tenth") == "reached");
  CHECK(verdict_on(study, "the prediction alone") == "reached");
  CHECK(verdict_on(study, "the prediction beats the nearest") == "beats it");
  CHECK(verdict_on(study, "40 steps improve the prediction") == "reproduces");
  put(study, method_of(study, hyperstudy::kMean), 0.8, 0.95, 4);
  CHECK(verdict_on(study, "the prediction beats the mean adapter") == "it is beaten");
  put(study, method_of(study, hyperstudy::kDreamBooth), 0.5, 0.99, 4);
  CHECK(verdict_on(study, "hypernetwork + 40 relaxed steps is more alike than: LoRA DreamBooth") ==
        "does not reproduce: the opposite");
}

TEST_CASE("a study without a network says nothing of it") {
  Study study;
  study.settings.without = {"once", "fused"};
  study.networks = hyperstudy::networks(study.settings);
  CHECK(study.networks.size() == 6);
  for (const auto& method : hyperstudy::methods(study.settings)) put(study, method, 0.5, 0.5, 4);
  CHECK(hyperstudy::findings(study).find("k = 1") == std::string::npos);
  CHECK(verdict_on(study, "the prediction alone") == "missed: no difference beyond the spread");
  study.settings.without = {"twice"};
  study.settings.train.validation_dir = "somewhere";
  CHECK_THROWS_WITH(study.settings.check(),
                    ContainsSubstring("--without: expected one of 'word', 'once'"));
}

TEST_CASE("two likenesses that point apart decide nothing") {
  auto study = level_study(3);
  for (auto& summary : study.summaries) {
    if (summary.method.name != hyperstudy::kRelaxed) continue;
    summary.points.front().likeness.mean += 0.2;
    summary.points.front().features.mean -= 0.2;
  }
  CHECK(verdict_on(study, "the prediction alone") == "the two likenesses disagree");
}

TEST_CASE("of one network the things' own differences decide") {
  using hyperstudy::compare_by_thing;
  // Things differ by far more than the two ways do.
  CHECK(compare_by_thing({0.50, 0.70, 0.91}, {0.48, 0.68, 0.88}) == 1);
  CHECK(compare_by_thing({0.48, 0.68, 0.88}, {0.50, 0.70, 0.91}) == -1);
  CHECK(compare_by_thing({0.50, 0.70, 0.90}, {0.48, 0.75, 0.88}) == 0);
  CHECK(compare_by_thing({0.9}, {0.1}) == 0);

  hyperstudy::Settings settings;
  settings.network_dir = "network";
  CHECK(hyperstudy::networks(settings).size() == 1);
  const auto all = hyperstudy::methods(settings);
  settings.without = {hyperstudy::kWord};
  CHECK(hyperstudy::methods(settings).size() + 1 == all.size());
  // Means over two seeds of each thing: 0.3 and 0.5.
  const std::vector<std::vector<Run>> runs{
      {run_with(0.2, 0, {0}, 1), run_with(0.4, 0, {0}, 1)},
      {run_with(0.399, 1, {0}, 1), run_with(0.599, 1, {0}, 1)}};
  hyperstudy::Method method = all.front();
  method.points = {0};
  const auto point = hyperstudy::summarise(method, runs, /*by_things=*/true).first();
  REQUIRE(point.likeness_of.size() == 2);
  CHECK(std::abs(point.likeness_of[0] - 0.3) < 1e-9);
  CHECK(std::abs(point.likeness.mean - 0.4) < 1e-9);
  // The standard deviation of 0.3 and 0.5, over the root of two.
  CHECK(std::abs(point.likeness.deviation - 0.1) < 1e-6);
  CHECK(hyperstudy::summarise(method, runs).first().likeness_of.empty());
}

TEST_CASE("rates are doubled from the lowest to the highest") {
  hyperstudy::Settings settings;
  CHECK(settings.rate_factors() == std::vector<double>{0.5, 1, 2, 4});
  settings.lowest_rate_factor = 4;
  CHECK(settings.rate_factors() == std::vector<double>{4});
  settings.lowest_rate_factor = 8;
  CHECK_THROWS_WITH(settings.check(), ContainsSubstring("--highest_rate_factor: expected"));
}

TEST_CASE("a run is found again with its settings, and not with others") {
  const ScratchFolder folder;
  const auto path = folder.file("run.json");
  auto run = run_with(0.25, 1, {0, 40}, 2);
  run.settings = "these";
  hyperstudy::save_run(path, run);
  const auto found = hyperstudy::load_run(path, "these");
  REQUIRE(found.has_value());
  CHECK(found->points.size() == 2);
  CHECK(found->points[1].scores.likeness == run.points[1].scores.likeness);
  CHECK_FALSE(hyperstudy::load_run(path, "others").has_value());
  CHECK_FALSE(hyperstudy::load_run(folder.file("none.json"), "these").has_value());
}

TEST_CASE("prompts ask for backgrounds that the picture shown does not have") {
  hyperstudy::Settings settings;
  settings.train.instance_prompt = "a sks thing";
  const auto prompts = settings.prompts("a sks thing on a black background");
  REQUIRE(prompts.size() == 4);
  CHECK(prompts[0] == "a sks thing on a blue background");
  CHECK(prompts[1] == "a sks thing on a teal background");
  // Every way has a name of its own, and steps that ascend.
  std::set<std::string> names;
  for (const auto& method : hyperstudy::methods(settings)) {
    CHECK(names.insert(method.name).second);
    CHECK(std::is_sorted(method.points.begin(), method.points.end()));
  }
}
