// SPDX-License-Identifier: Apache-2.0
// A batch whose rows have different adapters, as servers of adapters compute it: forward time of one
// Linear with so many sets, over that of one set for the whole batch. Needs LibTorch alone.
#include <fmt/format.h>
#include <lightlora/lightlora.h>
#include <torch/nn/modules/container/sequential.h>

#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "common/measure.h"
#include "common/options.h"

namespace {

constexpr int64_t kRows = 64, kTokens = 64, kWidth = 640;

struct Flags {
  std::vector<int64_t> adapters{8, 64};
  int64_t rank = 4, threads = 1, rounds = 60;
  bool serve = false, quick = false;
};

// A Linear with so many sets, and which row uses which.
class Batch {
 public:
  Batch(int64_t adapters, int64_t rank) {
    torch::manual_seed(1);
    model_ = torch::nn::Sequential(torch::nn::Linear(kWidth, kWidth));
    model_->eval();
    for (int64_t i = 0; i < adapters; ++i) {
      names_.push_back(fmt::format("set{}", i));
      if (i == 0) {
        lora_ = lightlora::patch<lightlora::ClassicLoRA>(*model_, rank, {"0"}, names_[0]);
      } else {
        lora_->add(names_.back(), "classic", lightlora::LoRAOptions(rank), {"0"});
      }
    }
    const torch::NoGradGuard no_grad;
    for (auto& parameter : lora_->parameters()) parameter.normal_(0, 0.1);
    x_ = torch::randn({kRows, kTokens, kWidth});
    index_ = torch::arange(kRows).remainder(adapters);
  }

  // The whole batch with the first set, or each row with its own.
  torch::Tensor forward(bool mixed) {
    const torch::NoGradGuard no_grad;
    lora_->set_route(
        lightlora::Route::bypass);  // one set would otherwise become a part of the weight
    const auto on =
        mixed ? lora_->activate_rows(names_, index_) : lora_->activate({{names_[0], 1.0}});
    return model_->forward(x_);
  }

  // The largest relative error against each row by itself.
  double error() {
    const torch::NoGradGuard no_grad;
    const torch::Tensor y = forward(true);
    double largest = 0;
    for (int64_t row = 0; row < kRows; ++row) {
      const auto on =
          lora_->activate({{names_[static_cast<std::size_t>(index_[row].item<int64_t>())], 1.0}});
      const torch::Tensor alone = model_->forward(x_[row]);
      largest = std::max(largest, ((y[row] - alone).norm() / alone.norm()).item<double>());
    }
    return largest;
  }

 private:
  torch::nn::Sequential model_;
  lightlora::Patched lora_;
  std::vector<std::string> names_;
  torch::Tensor x_, index_;
};

double seconds(Batch& batch, bool mixed, int64_t repeats, const measure::Clock& clock) {
  return clock.time([&] {
    for (int64_t i = 0; i < repeats; ++i) batch.forward(mixed);
  }) / static_cast<double>(repeats);
}

Batch& checked(std::map<int64_t, std::unique_ptr<Batch>>& batches, int64_t adapters, int64_t rank) {
  auto& batch = batches[adapters];
  if (!batch) {
    TORCH_CHECK_VALUE(adapters >= 1 && adapters <= kRows, "expected 1 to ", kRows,
                      " adapters, got ", adapters);
    batch = std::make_unique<Batch>(adapters, rank);
    const double error = batch->error();
    TORCH_CHECK(error < 1e-5, "expected rows as if computed one by one, got a relative error of ",
                error);
  }
  return *batch;
}

// For rows_vs_peft.py: "<adapters> <one|mixed> <repeats>" is answered with microseconds.
void serve(const Flags& flags) {
  const measure::Clock clock(at::kCPU, static_cast<int>(flags.threads));
  std::map<int64_t, std::unique_ptr<Batch>> batches;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    int64_t adapters = 0, repeats = 0;
    std::string form;
    words >> adapters >> form >> repeats;
    TORCH_CHECK_VALUE(words && repeats > 0, "--serve: expected three fields, got '", line, "'");
    Batch& batch = checked(batches, adapters, flags.rank);
    fmt::print("{:.6g}\n", 1e6 * seconds(batch, form == "mixed", repeats, clock));
    std::fflush(stdout);
  }
}

void run(const Flags& flags) {
  at::set_num_threads(static_cast<int>(flags.threads));
  if (flags.serve) return serve(flags);
  const measure::Clock clock(at::kCPU, static_cast<int>(flags.threads));
  std::map<int64_t, std::unique_ptr<Batch>> batches;
  fmt::print("{} rows of {} tokens, {} wide, rank {}: forward time over that of one set\n", kRows,
             kTokens, kWidth, flags.rank);
  for (const int64_t adapters : flags.adapters) {
    Batch& batch = checked(batches, adapters, flags.rank);
    std::vector<double> ratios;
    for (int64_t i = 0; i < (flags.quick ? 9 : flags.rounds); ++i) {
      const double one = seconds(batch, false, 3, clock), mixed = seconds(batch, true, 3, clock);
      ratios.push_back(mixed / one);
    }
    const auto all = measure::statistics(ratios);
    fmt::print("{:>3} sets  {:.3f}  (quartiles {:.3f} apart)\n", adapters, all.median,
               all.quartile_range);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  bench::Options options("rows_benchmark",
                         "Measures a batch whose rows have different adapters against one adapter.",
                         "rows_benchmark --rank 8");
  options.group("How");
  options.add("--rank", flags.rank, "Rank");
  options.add("--threads", flags.threads, "Threads of LibTorch");
  options.add("--quick", flags.quick, "Few rounds: what the tests run");
  options.add("--serve", flags.serve, "Take cases from standard input, for rows_vs_peft.py");
  return options.run(argc, argv, [&] { run(flags); });
}
