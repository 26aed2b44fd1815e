// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <chrono>

#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/cli/process.h"
#include "support/cuda/cards.h"
#include "training/dry_run.h"

namespace training {

namespace {

// Multiplications and additions a second of this machine, in matrices such as a UNet's.
double cpu_operations_a_second(c10::ScalarType dtype) {
  constexpr int64_t kSize = 768;
  const at::NoGradGuard no_grad;
  const auto a = at::ones({kSize, kSize}, dtype), b = at::ones({kSize, kSize}, dtype);
  at::mm(a, b);
  const auto start = std::chrono::steady_clock::now();
  int64_t products = 0;
  double seconds = 0;
  for (; seconds < 0.3; ++products) {
    at::mm(a, b);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return 2.0 * kSize * kSize * kSize * static_cast<double>(products) / seconds;
}

std::string phase_table(const DryReport& report) {
  std::string text = fmt::format("  {:<24}{:>12}", "part of the run", "tensors");
  if (!report.on_cpu) text += fmt::format("{:>12}{:>10}{:>8}", "needed", "kernels", "waits");
  text += "\n";
  for (const auto& phase : report.phases) {
    text += fmt::format("  {:<24}{:>12}", phase.name, cli::format_bytes(phase.peak));
    if (!report.on_cpu) text += fmt::format("{:>12}", cli::format_bytes(phase.needed));
    if (!report.on_cpu && phase.kernels > 0) {
      text += fmt::format("{:>10}{:>8}", phase.kernels, phase.waits);
    }
    text += "\n";
  }
  return text;
}

std::string verdict(const DryReport& report) {
  const auto cards = cuda::cards();
  const int64_t there =
      report.on_cpu ? cli::machine_memory() : (cards.empty() ? 0 : cards.front().bytes);
  const std::string what = report.on_cpu ? "this machine" : cards.empty() ? "" : cards.front().name;
  if (there == 0) return "";
  const bool fits = report.memory <= there;
  return fmt::format("  {} has {}: it {}\n", what, cli::format_bytes(there),
                     fits ? "fits"
                          : "does not fit; hint: --mixed_precision bf16, --gradient_checkpointing, "
                            "--train_batch_size 1, --cache_latents");
}

}  // namespace

std::string DryReport::text() const {
  std::string text = fmt::format(
      "***** Dry run for {}: nothing was loaded, computed or written *****\n"
      "  Num examples = {}\n  Total optimization steps = {}, {} each epoch, {:.4g} epochs\n",
      on_cpu ? "a CPU" : "a GPU", samples_per_epoch, steps, steps_per_epoch,
      static_cast<double>(steps) / static_cast<double>(steps_per_epoch));
  for (const auto& [size, count] : buckets) {
    text += fmt::format("  Bucket {} = {} pictures\n", size, count);
  }
  text += fmt::format("  Trained values = {}\n", trained_values) + phase_table(*this);
  text += fmt::format("  Memory = {} {}\n", cli::format_bytes(memory),
                      on_cpu ? "of the process" : "of the GPU, of which 0.6 GB are CUDA itself");
  text += verdict(*this);
  if (!on_cpu) {
    text += fmt::format("  A step is {}\n",
                        recorded ? "replayed as one CUDA graph" : "launched kernel by kernel");
  }
  text += fmt::format("  Work of a step = {:.3g} TFLOP", operations / 1e12);
  if (on_cpu) {
    const double rate = cpu_operations_a_second(dtype);
    text += fmt::format(": about {} here, as matrices are multiplied at {:.0f} GFLOP/s",
                        cli::format_duration(operations / rate), rate / 1e9);
  }
  text += "\n";
  for (const auto& [name, bytes] : files) {
    text += fmt::format("  {} = {}\n", name, cli::format_bytes(bytes));
  }
  for (const auto& line : notices) text += fmt::format("notice: {}\n", line);
  return text;
}

}  // namespace training
