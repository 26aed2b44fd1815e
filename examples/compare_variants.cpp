// SPDX-License-Identifier: Apache-2.0
// Trains every variant of examples/study/variants.h from one learned word and writes a page that
// compares them. `make study` runs it; under torchrun or mpirun its runs are dealt out.
#include <algorithm>
#include <iostream>
#include <limits>
#include <utility>
#include <vector>

#include "cli/app.h"
#include "cli/run.h"
#include "distributed/group.h"
#include "study/page.h"
#include "study/runner.h"

namespace {

using study::Job;
using study::Result;
using study::Row;
using study::Runner;
using study::Variant;

constexpr size_t kFinalists = 2;  // rates that are tried with every seed

struct Flags {
  study::Settings settings;
  std::string output_dir = "docs/study";
  int64_t seeds = 3;
  bool quick = false;
  distributed::GroupOptions group;
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
  distributed::add_group_flags(app, f.group);
}

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

std::vector<double> rates_of(const Variant& variant) {
  std::vector<double> rates{variant.described_rate};
  rates.insert(rates.end(), variant.other_rates.begin(), variant.other_rates.end());
  return rates;
}

using Finalists = std::vector<std::vector<Result>>;  // runs of one rate each

// Every rate with the first seed; the best come first.
Finalists first_runs(Row& row, const Result*& next) {
  Finalists finalists;
  for (size_t i = 0; i < rates_of(row.variant).size(); ++i) {
    row.tried.push_back(*next++);
    finalists.push_back({row.tried.back()});
  }
  std::stable_sort(finalists.begin(), finalists.end(), better);
  finalists.resize(std::min(finalists.size(), kFinalists));
  return finalists;
}

// Every rate with the first seed, the two best of them with all seeds; the better one is its own.
std::vector<Row> make_rows(Runner& runner, const Plan& plan) {
  std::vector<Job> jobs;
  for (const auto& variant : plan.rows) {
    for (const double rate : rates_of(variant)) jobs.push_back({variant, rate, 0});
  }
  const auto first = runner.train(jobs);
  const Result* next = first.data();
  std::vector<Row> rows;
  std::vector<Finalists> finalists;
  jobs.clear();
  for (const auto& variant : plan.rows) {
    rows.push_back({variant, {}, {}});
    finalists.push_back(first_runs(rows.back(), next));
    for (const auto& runs : finalists.back()) {
      for (int64_t seed = 1; seed < plan.seeds; ++seed) {
        jobs.push_back({variant, runs.front().rate, static_cast<uint64_t>(seed)});
      }
    }
  }
  const auto more = runner.train(jobs);
  next = more.data();
  for (size_t i = 0; i < rows.size(); ++i) {
    for (auto& runs : finalists[i]) {
      for (int64_t seed = 1; seed < plan.seeds; ++seed) runs.push_back(*next++);
    }
    rows[i].own = *std::min_element(finalists[i].begin(), finalists[i].end(), better);
  }
  return rows;
}

// A row at its own rate with other ranks or bases.
class Sweep {
 public:
  explicit Sweep(const Row& row) : row_(row) {}

  void add(int64_t rank, int64_t aux_in, int64_t aux_out) {
    Variant variant = row_.variant;
    variant.rank = rank;
    variant.aux_in = aux_in;
    variant.aux_out = aux_out;
    jobs_.push_back({variant, row_.own_rate(), 0});
  }
  const std::vector<Job>& jobs() const { return jobs_; }

  // What the jobs came to, the row itself among them.
  std::vector<Result> sorted(const Result*& next) const {
    std::vector<Result> runs{row_.own.front()};
    runs.insert(runs.end(), next, next + jobs_.size());
    next += jobs_.size();
    std::sort(runs.begin(), runs.end(), [](const auto& a, const auto& b) {
      return std::pair(a.rank, a.aux_in) < std::pair(b.rank, b.aux_in);
    });
    return runs;
  }

 private:
  const Row& row_;
  std::vector<Job> jobs_;
};

Sweep rank_sweep(const Row& row, const Plan& plan) {
  Sweep sweep(row);
  for (const auto rank : plan.ranks) sweep.add(rank, row.variant.aux_in, row.variant.aux_out);
  return sweep;
}

Sweep size_sweep(const Row& row, const Plan& plan) {
  Sweep sweep(row);
  for (const auto& [a, b] : plan.sizes) sweep.add(row.variant.rank, a, b);
  return sweep;
}

void run_sweeps(Runner& runner, const Plan& plan, study::Study& study) {
  std::vector<std::pair<Sweep, std::vector<Result>*>> sweeps;
  if (const auto* light = study.find("light")) {
    sweeps.emplace_back(rank_sweep(*light, plan), &study.light_ranks);
    sweeps.emplace_back(size_sweep(*light, plan), &study.basis_sizes);
  }
  if (const auto* classic = study.find("classic")) {
    sweeps.emplace_back(rank_sweep(*classic, plan), &study.classic_ranks);
  }
  std::vector<Job> jobs;
  for (const auto& [sweep, results] : sweeps) {
    jobs.insert(jobs.end(), sweep.jobs().begin(), sweep.jobs().end());
  }
  const auto runs = runner.train(jobs);
  const Result* next = runs.data();
  for (const auto& [sweep, results] : sweeps) *results = sweep.sorted(next);
}

void run(Flags& flags, const distributed::Group& group) {
  const Plan plan = make_plan(flags);
  std::cout << "study: " << plan.rows.size() << " variants, " << plan.runs() << " runs of "
            << flags.settings.steps << " steps, " << plan.seeds << " seeds; finished runs lie in "
            << flags.settings.work_dir << std::endl;
  for (const auto& variant : plan.rows) {
    if (variant.init == "both_zero") {
      std::cout << "warning: " << variant.name << " starts on a saddle: every gradient is exactly "
                << "zero there, so nothing will be learned\n";
    }
  }
  const auto experiment = study::make_experiment(flags.settings, group);
  Runner runner(*experiment, group, plan.runs());
  study::Study study;
  study.settings = flags.settings;
  study.rows = make_rows(runner, plan);
  run_sweeps(runner, plan, study);
  if (!group.is_main()) return;  // what is left takes seconds
  if (const auto* fused = study.find("fused"); fused && !fused->diverged()) {
    study.unsplit_loss = fused->own.front().curve.back().second;
    study.splits = experiment->split(fused->variant, fused->own_rate(), 0, plan.split_ranks);
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
  return cli::run(argc, argv, app, [&] {
    distributed::run(app, flags.group, [&](const distributed::Group& group) { run(flags, group); });
  });
}
