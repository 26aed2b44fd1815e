// SPDX-License-Identifier: Apache-2.0
// Trains every variant of examples/study/variants.h from one learned word and writes a page that
// compares them. `make study` runs it.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <limits>

#include "cli/app.h"
#include "cli/run.h"
#include "study/page.h"

namespace {

using study::Result;
using study::Row;
using study::Variant;

constexpr size_t kFinalists = 2;  // rates that are tried with every seed

struct Flags {
  study::Settings settings;
  std::string output_dir = "docs/study";
  int64_t seeds = 3;
  bool quick = false;
};

void add_flags(cli::App& app, Flags& f) {
  auto& s = f.settings;
  app.group("Files");
  app.add_option("--pretrained_model_name_or_path", s.model, "Model in diffusers layout");
  app.add_option("--instance_data_dir", s.subject, "The subject's pictures with caption files");
  app.add_option("--subject_words", s.subject_words,
                 "The captions' words for the subject, in whose place the learned word is put");
  app.add_option("--initializer_token", s.initializer,
                 "Word of one token that the learned one starts from");
  app.add_option("--emoji_vectors", s.emoji_vectors, "File of emoji to compare with");
  app.add_option("--emoji", s.emoji, "The emoji that the subject is");
  app.add_option("--output_dir", f.output_dir, "Folder for index.md, contact.png and curves.png");
  app.add_option("--work_dir", s.work_dir,
                 "Folder of finished runs; a later study goes on from it");
  app.group("Size of the study");
  app.add_option("--steps", s.steps, "Training steps of each run")->check(cli::at_least(1));
  app.add_option("--inversion_steps", s.inversion_steps, "Steps that learn the word")
      ->check(cli::at_least(1));
  app.add_option("--train_batch_size", s.batch_size, "Pictures of each step")
      ->check(cli::at_least(1));
  app.add_option("--num_inference_steps", s.picture_steps, "Denoising steps of the pictures")
      ->check(cli::at_least(1));
  app.add_option("--seeds", f.seeds, "Runs of each variant at its best rates")
      ->check(cli::at_least(1));
  app.add_flag("--quick", f.quick, "Two steps of everything, one other rate: does it work at all?");
}

// All runs, with a line for each that is not done yet.
class Runner {
 public:
  Runner(study::Experiment& experiment, int64_t total) : experiment_(experiment), total_(total) {}

  Result train(const Variant& variant, double rate, uint64_t seed) {
    ++number_;
    const bool done = experiment_.is_done(variant, rate, seed);
    const auto begin = std::chrono::steady_clock::now();
    const Result result = experiment_.train(variant, rate, seed);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (done) return result;
    seconds_ += took.count();
    ++trained_;
    report(variant, result, seed);
    return result;
  }

 private:
  void report(const Variant& variant, const Result& result, uint64_t seed) const {
    const double left = seconds_ / static_cast<double>(trained_) *
                        static_cast<double>(std::max<int64_t>(0, total_ - number_)) / 60;
    std::cout << "[" << number_ << "/" << total_ << "] " << variant.name << ", rank "
              << variant.rank << ", a " << variant.aux_in << ", b " << variant.aux_out << ", rate "
              << study::rounded(result.rate, -1) << ", seed " << seed << ": ";
    if (result.diverged) {
      std::cout << "diverged";
    } else {
      std::cout << "loss " << study::rounded(result.start_loss, 4) << " -> "
                << study::rounded(result.quality.loss, 4) << ", likeness "
                << study::rounded(result.quality.cosine, 3) << ", background "
                << result.quality.followed << "/" << result.quality.asked;
    }
    std::cout << ", " << study::rounded(result.seconds_per_step, 2) << " s a step; about "
              << study::rounded(left, 0) << " min left" << std::endl;
  }

  study::Experiment& experiment_;
  int64_t total_, number_ = 0, trained_ = 0;
  double seconds_ = 0;
};

struct Plan {
  std::vector<Variant> rows = study::variants();
  std::vector<int64_t> ranks{1, 2, 8, 16}, split_ranks{1, 2, 4, 8, 16, 50};
  std::vector<std::pair<int64_t, int64_t>> sizes{{25, 12}, {50, 25}, {128, 100}};
  int64_t seeds = 1;

  int64_t runs() const {
    auto count = static_cast<int64_t>(2 * ranks.size() + sizes.size());
    for (const auto& row : rows) {
      const size_t rates = row.other_rates.size() + 1;
      count += static_cast<int64_t>(rates +
                                    std::min(rates, kFinalists) * static_cast<size_t>(seeds - 1));
    }
    return count;
  }
};

Plan make_plan(Flags& flags) {
  Plan plan;
  plan.seeds = flags.seeds;
  if (!flags.quick) return plan;
  auto& settings = flags.settings;
  settings.steps = settings.inversion_steps = settings.picture_steps = 2;
  settings.batch_size = 1;
  settings.backgrounds = {"blue"};
  plan.ranks = {1};
  plan.split_ranks = {1, 4, 50};
  plan.sizes = {{50, 25}};
  for (auto& row : plan.rows) row.other_rates.resize(std::min<size_t>(1, row.other_rates.size()));
  return plan;
}

// Lower is better; what diverged comes last.
double mean_loss(const std::vector<Result>& runs) {
  double sum = 0;
  for (const auto& run : runs) {
    sum += run.diverged ? std::numeric_limits<double>::infinity() : run.quality.loss;
  }
  return sum / static_cast<double>(runs.size());
}

bool better(const std::vector<Result>& a, const std::vector<Result>& b) {
  return mean_loss(a) < mean_loss(b);
}

// Every rate with the first seed, the two best of them with all seeds; the better one is its own.
Row make_row(Runner& runner, const Variant& variant, int64_t seeds) {
  Row row{variant, {}, {}};
  std::vector<double> rates{variant.described_rate};
  rates.insert(rates.end(), variant.other_rates.begin(), variant.other_rates.end());
  std::vector<std::vector<Result>> finalists;
  for (const double rate : rates) {
    row.tried.push_back(runner.train(variant, rate, 0));
    finalists.push_back({row.tried.back()});
  }
  std::stable_sort(finalists.begin(), finalists.end(), better);
  finalists.resize(std::min(finalists.size(), kFinalists));
  for (auto& runs : finalists) {
    for (int64_t seed = 1; seed < seeds; ++seed) {
      runs.push_back(runner.train(variant, runs.front().rate, static_cast<uint64_t>(seed)));
    }
  }
  row.own = *std::min_element(finalists.begin(), finalists.end(), better);
  return row;
}

// A row with other ranks, its own among them.
std::vector<Result> sweep_ranks(Runner& runner, const Row& row, const std::vector<int64_t>& ranks) {
  std::vector<Result> runs{row.own.front()};
  for (const auto rank : ranks) {
    Variant variant = row.variant;
    variant.rank = rank;
    runs.push_back(runner.train(variant, row.own_rate(), 0));
  }
  std::sort(runs.begin(), runs.end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
  return runs;
}

std::vector<Result> sweep_sizes(Runner& runner, const Row& row,
                                const std::vector<std::pair<int64_t, int64_t>>& sizes) {
  std::vector<Result> runs{row.own.front()};
  for (const auto& [a, b] : sizes) {
    Variant variant = row.variant;
    variant.aux_in = a;
    variant.aux_out = b;
    runs.push_back(runner.train(variant, row.own_rate(), 0));
  }
  std::sort(runs.begin(), runs.end(),
            [](const auto& a, const auto& b) { return a.aux_in < b.aux_in; });
  return runs;
}

void run(Flags& flags) {
  const Plan plan = make_plan(flags);
  std::cout << "study: " << plan.rows.size() << " variants, " << plan.runs() << " runs of "
            << flags.settings.steps << " steps, " << plan.seeds << " seeds; finished runs lie in "
            << flags.settings.work_dir << std::endl;
  study::Experiment experiment(flags.settings);
  Runner runner(experiment, plan.runs());
  study::Study study;
  study.settings = flags.settings;
  for (const auto& variant : plan.rows) {
    if (variant.init == "both_zero") {
      std::cout << "warning: " << variant.name << " starts on a saddle: every gradient is exactly "
                << "zero there, so nothing will be learned\n";
    }
    study.rows.push_back(make_row(runner, variant, plan.seeds));
  }
  if (const auto* light = study.find("light")) {
    study.light_ranks = sweep_ranks(runner, *light, plan.ranks);
    study.basis_sizes = sweep_sizes(runner, *light, plan.sizes);
  }
  if (const auto* classic = study.find("classic")) {
    study.classic_ranks = sweep_ranks(runner, *classic, plan.ranks);
  }
  if (const auto* fused = study.find("fused"); fused && !fused->diverged()) {
    study.unsplit_loss = fused->own.front().curve.back().second;
    study.splits = experiment.split(fused->variant, fused->own_rate(), 0, plan.split_ranks);
  }
  study::write_page(study, flags.output_dir);
  std::cout << "\n"
            << study::findings(study) << "\npage: " << flags.output_dir
            << "/index.md, with contact.png and curves.png\n";
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  cli::App app("compare_variants",
               "Trains every variant from one learned word and writes a page that compares them.",
               "compare_variants --steps 300 --seeds 5 --work_dir study-long");
  add_flags(app, flags);
  return cli::run(argc, argv, app, [&] { run(flags); });
}
