// SPDX-License-Identifier: Apache-2.0
// The runs of a study: which there are, who makes them, and what they come to.
#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <thread>

#include "research/hypernetwork_study/runner.h"
#include "research/study/page.h"
#include "support/cli/fmt.h"
#include "support/cli/interrupt.h"

namespace hyperstudy {
namespace {

void report(const Job& job, const Run& run, size_t number, size_t count, const Thing& thing,
            double minutes_left) {
  const auto &first = run.points.front(), &last = run.points.back();
  fmt::print("[{}/{}] {}, {}, seed {}, rate {}: likeness {} -> {}, {} s; about {} min left\n",
             number, count, job.method.title, thing.name, job.seed, study::rounded(job.rate, -1),
             study::rounded(first.scores.likeness, 3), study::rounded(last.scores.likeness, 3),
             study::rounded(last.seconds, 1), study::rounded(minutes_left, 0));
  std::fflush(stdout);  // a run takes a while
}

// Another machine's file may show a little later.
std::optional<Run> load_soon(const Job& job) {
  for (int i = 0; i < 300; ++i) {
    if (auto run = load_run(job.stem + ".json", job.settings)) return run;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
  return std::nullopt;
}

const Tried& best_of(const std::vector<Tried>& tried) {
  return *std::max_element(tried.begin(), tried.end(),
                           [](const Tried& a, const Tried& b) { return a.score < b.score; });
}

}  // namespace

// Rank 0 looks, so that all agree.
std::vector<size_t> Runner::not_done(const std::vector<Job>& jobs) const {
  const auto open = at::zeros({static_cast<int64_t>(jobs.size())}, at::kLong);
  for (size_t i = 0; group_.is_main() && i < jobs.size(); ++i) {
    if (!load_run(jobs[i].stem + ".json", jobs[i].settings)) open[static_cast<int64_t>(i)] = 1;
  }
  group_.broadcast({open});
  std::vector<size_t> indices;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (open[static_cast<int64_t>(i)].item<int64_t>() != 0) indices.push_back(i);
  }
  return indices;
}

std::vector<Run> Runner::make(const std::vector<Job>& jobs) {
  const auto open = not_done(jobs);
  const auto begin = std::chrono::steady_clock::now();
  const auto size = static_cast<size_t>(group_.size());
  for (size_t turn = 0; turn < open.size(); ++turn) {
    if (turn % size != static_cast<size_t>(group_.rank())) continue;
    TORCH_CHECK(!cli::interrupted(),
                "stopped by request between two runs; hint: the same command goes on");
    const auto& job = jobs[open[turn]];
    const Run run = workshop_->make(job);
    save_run(job.stem + ".json", run);
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
    const auto done = static_cast<double>(turn + 1), all = static_cast<double>(open.size());
    report(job, run, turn + 1, open.size(), things_[job.thing],
           passed.count() / 60 * (all - done) / done);
  }
  group_.barrier();
  std::vector<Run> runs;
  for (const auto& job : jobs) {
    auto run = load_soon(job);
    TORCH_CHECK(run.has_value(), "'", job.stem, ".json': expected the result of another process, ",
                "got none; hint: --work_dir must be one folder that all processes share");
    runs.push_back(std::move(*run));
  }
  return runs;
}

std::vector<Tried> Runner::try_rates(const Method& method) {
  const auto factors = settings_.rate_factors();
  if (factors.size() == 1) return {{factors[0] * usual_rate(method), 0}};
  std::vector<Job> jobs;
  for (const double factor : factors) {
    for (size_t thing = held_out_; thing < things_.size(); ++thing) {
      jobs.push_back(job(method, factor * usual_rate(method), /*seed=*/0, thing));
    }
  }
  const auto runs = make(jobs);
  std::vector<Tried> tried;
  const size_t each = things_.size() - held_out_;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (i % each == 0) tried.push_back({jobs[i].rate, 0});
    const auto& scores = runs[i].points.back().scores;
    tried.back().score += (scores.likeness + scores.features) / 2 / static_cast<double>(each);
  }
  return tried;
}

// Networks, and the adapters that runs begin with.
void Runner::make_starts(Study& study) {
  const auto seeds = static_cast<uint64_t>(settings_.seeds);
  for (const auto& network : networks_) {
    study.trained.emplace_back();
    for (uint64_t seed = 0; seed < seeds; ++seed) {
      study.trained.back().push_back(train(network, seed));
    }
  }
  find_nearest();
  workshop_.emplace(settings_, things_, *judge_);
  int64_t turn = 0;
  for (const auto& network : networks_) {
    for (uint64_t seed = 0; seed < seeds; ++seed) {
      if (turn++ % group_.size() == group_.rank()) predict(network, seed);
    }
  }
  group_.barrier();
}

// Each way at the best rate of its family.
void Runner::make_runs(Study& study) {
  const auto ways = methods(settings_);
  std::map<std::string, std::vector<Tried>> by_family;
  for (const auto& method : ways) {
    auto& tried = by_family[method.family()];
    if (tried.empty()) tried = try_rates(method);
    study.tried.push_back(tried);
  }
  const auto seeds = static_cast<uint64_t>(settings_.seeds);
  std::vector<Job> jobs;
  for (size_t i = 0; i < ways.size(); ++i) {
    const double rate = best_of(study.tried[i]).rate;
    for (uint64_t seed = 0; seed < seeds; ++seed) {
      for (const auto thing : measured_) jobs.push_back(job(ways[i], rate, seed, thing));
    }
  }
  const auto runs = make(jobs);
  auto next = runs.begin();
  for (const auto& method : ways) {
    std::vector<std::vector<Run>> of_method;
    for (uint64_t seed = 0; seed < seeds; ++seed) {
      const auto end = next + static_cast<std::ptrdiff_t>(measured_.size());
      of_method.emplace_back(next, end);
      next = end;
    }
    study.summaries.push_back(summarise(method, of_method, settings_.by_things()));
  }
}

Study Runner::run() {
  Study study;
  study.settings = settings_;
  study.networks = networks_;
  study.learned = static_cast<int64_t>(learned_.size());
  study.held_out = static_cast<int64_t>(held_out_);
  for (const auto i : measured_) study.things.push_back(things_[i]);
  make_starts(study);
  study.resolution = workshop_->pipeline().default_size()[0];
  make_runs(study);
  return study;
}

}  // namespace hyperstudy
