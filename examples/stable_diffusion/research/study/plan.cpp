// SPDX-License-Identifier: Apache-2.0
#include "research/study/plan.h"

#include <c10/util/Exception.h>
#include <lightlora/variants/variants.h>

#include <algorithm>
#include <limits>

#include "support/cli/app.h"
#include "support/cli/fmt.h"

namespace study {

namespace {

constexpr size_t kFinalists = 2;  // rates that are tried with every seed

// Lower is better; what diverged comes last.
double mean_loss(const Runs& runs) {
  double sum = 0;
  for (const auto& run : runs) {
    sum += run.diverged ? std::numeric_limits<double>::infinity() : run.quality.loss;
  }
  return sum / static_cast<double>(runs.size());
}

bool better(const Runs& a, const Runs& b) { return mean_loss(a) < mean_loss(b); }

std::vector<double> rates_of(const Variant& variant) {
  std::vector<double> rates{variant.described_rate};
  rates.insert(rates.end(), variant.other_rates.begin(), variant.other_rates.end());
  return rates;
}

using Finalists = std::vector<Runs>;  // runs of one rate each

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

// A row at its own rate with other ranks or bases, with every seed.
class Sweep {
 public:
  Sweep(const Row& row, int64_t seeds) : row_(row), seeds_(seeds) {}

  void add(int64_t rank, int64_t aux_in, int64_t aux_out) {
    Variant variant = row_.variant;
    variant.rank = rank;
    variant.aux_in = aux_in;
    variant.aux_out = aux_out;
    for (int64_t seed = 0; seed < seeds_; ++seed) {
      jobs_.push_back({variant, row_.own_rate(), static_cast<uint64_t>(seed)});
    }
  }
  const std::vector<Job>& jobs() const { return jobs_; }

  // What the jobs came to, the row itself among them.
  std::vector<Runs> sorted(const Result*& next) const {
    std::vector<Runs> points{row_.own};
    for (size_t done = 0; done < jobs_.size(); done += static_cast<size_t>(seeds_)) {
      points.emplace_back(next, next + seeds_);
      next += seeds_;
    }
    std::sort(points.begin(), points.end(), [](const Runs& a, const Runs& b) {
      return std::pair(a[0].rank, a[0].aux_in) < std::pair(b[0].rank, b[0].aux_in);
    });
    return points;
  }

 private:
  const Row& row_;
  int64_t seeds_;
  std::vector<Job> jobs_;
};

Sweep rank_sweep(const Row& row, const Plan& plan) {
  Sweep sweep(row, plan.seeds);
  for (const auto rank : plan.ranks) sweep.add(rank, row.variant.aux_in, row.variant.aux_out);
  return sweep;
}

Sweep size_sweep(const Row& row, const Plan& plan) {
  Sweep sweep(row, plan.seeds);
  for (const auto& [a, b] : plan.sizes) sweep.add(row.variant.rank, a, b);
  return sweep;
}

}  // namespace

Plan::Plan() : rows(variants()) { rows.insert(rows.end(), words().begin(), words().end()); }

void Plan::only(const std::vector<std::string>& names) {
  rows = choose_rows(names);
  ranks.clear();
  sizes.clear();
}

std::vector<Variant> choose_rows(const std::vector<std::string>& names) {
  auto all = variants();
  for (const auto& entry : lightlora::variants()) {
    const bool known = std::any_of(all.begin(), all.end(),
                                   [&](const Variant& row) { return row.variant == entry.name; });
    if (known) continue;
    auto row = variants().front();  // Classic's
    row.name = row.variant = entry.name;
    all.push_back(std::move(row));
  }
  all.insert(all.end(), words().begin(), words().end());
  std::vector<std::string> known;
  for (const auto& row : all) {
    known.push_back(row.name);
    if (!row.is_word()) known.push_back(row.variant);
  }
  for (const auto& name : names) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    const auto near = cli::closest(name, known);
    TORCH_CHECK_VALUE(
        false, fmt::format("--only: expected one of '{}', got '{}'{}", fmt::join(known, "', '"),
                           name, near.empty() ? "" : "; hint: did you mean '" + near + "'?"));
  }
  std::vector<Variant> rows;
  bool adapters = false;
  for (const auto& row : all) {
    const auto chosen = [&](const std::string& name) {
      return name == row.name || (!row.is_word() && name == row.variant);
    };
    if (std::none_of(names.begin(), names.end(), chosen)) continue;
    adapters = adapters || !row.is_word();
    rows.push_back(row);
  }
  TORCH_CHECK_VALUE(adapters,
                    "--only: expected a variant with adapters among them, got words alone");
  return rows;
}

int64_t Plan::runs() const {
  auto count = static_cast<int64_t>(2 * ranks.size() + sizes.size()) * seeds;
  for (const auto& row : rows) {
    const size_t rates = row.other_rates.size() + 1;
    count +=
        static_cast<int64_t>(rates + std::min(rates, kFinalists) * static_cast<size_t>(seeds - 1));
  }
  return count;
}

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
    std::stable_sort(finalists[i].begin(), finalists[i].end(), better);
    rows[i].own = finalists[i][0];
    if (finalists[i].size() > 1) rows[i].second = finalists[i][1];
  }
  return rows;
}

void run_sweeps(Runner& runner, const Plan& plan, Study& study) {
  if (plan.ranks.empty() && plan.sizes.empty()) return;
  std::vector<std::pair<Sweep, std::vector<Runs>*>> sweeps;
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

}  // namespace study
