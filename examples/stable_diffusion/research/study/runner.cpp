// SPDX-License-Identifier: Apache-2.0
#include "research/study/runner.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "research/study/page.h"
#include "support/cli/fmt.h"

namespace study {

namespace {

// A network file system may show a file of another machine a little later.
constexpr auto kFolderPatience = std::chrono::seconds(60);
constexpr auto kFolderPause = std::chrono::milliseconds(200);

template <typename Ready>
bool appears(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + kFolderPatience;
  while (!ready()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(kFolderPause);
  }
  return true;
}

}  // namespace

std::unique_ptr<Experiment> make_experiment(const Settings& settings,
                                            const distributed::Group& group) {
  // A result is known by these; pictures are by their path.
  group.require_same("the study's settings", settings.to_string());
  group.require_same("--work_dir", settings.work_dir);
  std::unique_ptr<Experiment> experiment;
  if (group.is_main()) experiment = std::make_unique<Experiment>(settings);
  group.barrier();
  if (group.is_main()) return experiment;
  const auto word = settings.word_file();
  TORCH_CHECK(
      appears([&] { return std::filesystem::exists(word); }), "'", word,
      "': expected the word that rank 0 learned, got no such file; hint: --work_dir must be one ",
      "folder that all processes share");
  return std::make_unique<Experiment>(settings);
}

// Rank 0 looks, so that all agree.
std::vector<size_t> Runner::not_done(const std::vector<Job>& jobs) const {
  const auto open = at::zeros({static_cast<int64_t>(jobs.size())}, at::kLong);
  for (size_t i = 0; group_.is_main() && i < jobs.size(); ++i) {
    const auto& job = jobs[i];
    if (!experiment_.is_done(job.variant, job.rate, job.seed)) open[static_cast<int64_t>(i)] = 1;
  }
  group_.broadcast({open});
  std::vector<size_t> indices;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (open[static_cast<int64_t>(i)].item<int64_t>() != 0) indices.push_back(i);
  }
  return indices;
}

std::vector<Result> Runner::train(const std::vector<Job>& jobs) {
  const auto open = not_done(jobs);
  const auto rank_of = [&](size_t turn) { return static_cast<int64_t>(turn) % group_.size(); };
  for (size_t turn = 0; turn < open.size(); ++turn) {
    if (rank_of(turn) != group_.rank()) continue;
    const auto& job = jobs[open[turn]];
    const auto begin = std::chrono::steady_clock::now();
    const Result result = experiment_.train(job.variant, job.rate, job.seed);
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    ++trained_;
    report(job, result, open[turn], group_.rank());
  }
  group_.barrier();
  for (size_t turn = 0; turn < open.size(); ++turn) {
    if (rank_of(turn) == group_.rank()) continue;
    const auto& job = jobs[open[turn]];
    report(job, result_of_other(job, rank_of(turn)), open[turn], rank_of(turn));
  }
  finished_ += static_cast<int64_t>(jobs.size());
  std::vector<Result> results;
  for (const auto& job : jobs) {  // all are done: this reads them
    results.push_back(experiment_.train(job.variant, job.rate, job.seed));
  }
  return results;
}

Result Runner::result_of_other(const Job& job, int64_t rank) const {
  TORCH_CHECK(appears([&] { return experiment_.is_done(job.variant, job.rate, job.seed); }), "'",
              experiment_.result_file(job.variant, job.rate, job.seed),
              "': expected the result of rank ", rank,
              ", got none; hint: --work_dir must be one folder that all processes share");
  return experiment_.train(job.variant, job.rate, job.seed);
}

void Runner::report(const Job& job, const Result& result, size_t index, int64_t rank) const {
  const auto& variant = job.variant;
  const int64_t number = finished_ + static_cast<int64_t>(index) + 1;
  std::string line = fmt::format("[{}/{}] {}", number, total_, variant.name);
  if (!variant.is_word()) {
    line += fmt::format(", rank {}, a {}, b {}", variant.rank, variant.aux_in, variant.aux_out);
  }
  line += fmt::format(", rate {}, seed {}: ", rounded(result.rate, -1), job.seed);
  line += result.diverged
              ? "diverged"
              : fmt::format("loss {} -> {}, likeness {}, background {}/{}",
                            rounded(result.start_loss, 4), rounded(result.quality.loss, 4),
                            rounded(result.quality.cosine, 3), result.quality.followed,
                            result.quality.asked);
  line += fmt::format(", {} s a step", rounded(result.seconds_per_step, 2));
  if (group_.size() > 1) line += fmt::format(", by process {}", rank);
  if (trained_ > 0) {
    const double left = seconds_ / static_cast<double>(trained_ * group_.size()) *
                        static_cast<double>(std::max<int64_t>(0, total_ - number)) / 60;
    line += fmt::format("; about {} min left", rounded(left, 0));
  }
  fmt::print("{}\n", line);
  std::fflush(stdout);  // a run takes minutes
}

}  // namespace study
