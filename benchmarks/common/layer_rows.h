// SPDX-License-Identifier: Apache-2.0
// The lines of layer_benchmark's table: from samples to figures, printed and as JSON.
#pragma once

#include <fmt/format.h>
#include <cmath>

#include <string>
#include <vector>

#include "common/json.h"
#include "common/layer_group.h"
#include "common/measure.h"

namespace bench {

/// The name of a dtype in flags and files.
inline std::string dtype_name(at::ScalarType dtype) {
  return dtype == at::kFloat ? "fp32" : dtype == at::kHalf ? "fp16" : "bf16";
}

/// One line of the table; a wrong result has no time.
struct Row {
  std::string variant, route, dtype;
  Shape shape;
  bool correct = false;
  int64_t rank = 0, samples = 0, kernels = 0, kept = 0, extra = 0;
  double error = 0, forward_us = 0, backward_us = 0, total_us = 0, total_iqr_us = 0;
  double ratio_to_bare = 0, ratio_iqr = 0, ratio_to_composed = 0, ratio_to_active = 0;
  double gflops = 0, share_of_peak = 0, floor_us = 0, gap_to_floor = 0;
};

inline Row to_row(const std::vector<Entry>& entries, const Entry& entry, const Peaks& peaks) {
  const auto& setup = entry.layer->setup();
  const auto& s = setup.shape;
  const bool bare = entry.form == Form::bare;
  Row row;
  row.variant = bare ? "bare" : setup.variant;
  row.route = to_string(entry.form);
  row.dtype = dtype_name(setup.dtype);
  row.shape = s;
  row.rank = is_bare(entry.form) ? 0 : entry.layer->inner_rank();
  row.error = entry.error;
  row.correct = entry.error <= tolerance(setup.dtype, entry.form);
  if (!row.correct) return row;
  const auto total = measure::statistics(entry.total);
  const auto ratio = measure::statistics(entry.ratio);
  const auto& composed = find(entries, entry, bare ? Form::bare : Form::composed);
  const double useful =
      4.0 * static_cast<double>(s.n) * static_cast<double>(s.k) * static_cast<double>(s.m);
  const double floor = floor_seconds(
      s, row.rank, static_cast<double>(c10::elementSize(setup.dtype)), peaks, entry.form);
  row.forward_us = 1e6 * measure::statistics(entry.forward).median;
  row.backward_us = 1e6 * measure::statistics(entry.backward).median;
  row.total_us = 1e6 * total.median;
  row.total_iqr_us = 1e6 * total.quartile_range;
  row.samples = total.samples;
  row.ratio_to_bare = ratio.median;
  row.ratio_iqr = ratio.quartile_range;
  row.ratio_to_composed = ratio.median / measure::statistics(composed.ratio).median;
  const auto& active = find(entries, entry, bare ? Form::bare : Form::automatic);
  row.ratio_to_active = ratio.median / measure::statistics(active.ratio).median;
  row.gflops = 1e-9 * useful / total.median;
  row.share_of_peak = useful / total.median / peaks.flops;
  row.floor_us = 1e6 * floor;
  row.gap_to_floor = total.median / floor;
  row.kernels = entry.kernels;
  row.kept = entry.kept;
  row.extra = entry.peak - entries[0].peak;
  return row;
}

/// A row for report.py.
inline measure::Json to_json(const Row& row) {
  measure::Json json;
  json.add("variant", row.variant).add("route", row.route);
  json.add("n", row.shape.n).add("k", row.shape.k).add("m", row.shape.m).add("rank", row.rank);
  json.add("dtype", row.dtype).add("error", row.error);
  if (!row.correct) return json;
  json.add("forward_us", row.forward_us).add("backward_us", row.backward_us);
  json.add("total_us", row.total_us).add("total_iqr_us", row.total_iqr_us);
  json.add("samples", row.samples).add("ratio_to_bare", row.ratio_to_bare);
  json.add("ratio_iqr", row.ratio_iqr).add("ratio_to_composed", row.ratio_to_composed);
  json.add("ratio_to_active", row.ratio_to_active);
  json.add("gflops", row.gflops).add("share_of_gemm_peak", row.share_of_peak);
  json.add("floor_us", row.floor_us).add("gap_to_floor", row.gap_to_floor);
  json.add("kernels", row.kernels).add("kept_for_backward_bytes", row.kept);
  return json.add("peak_bytes_above_bare", row.extra);
}

inline void print_heading() {
  fmt::print(
      "{:<14} {:<7} {:<9} {:>4}  {:>9} {:>9} {:>9} {:>7} | {:>6} {:>6} {:>6} {:>6} | {:>7} {:>5} "
      "{:>6} | {:>3} {:>8} {:>8}  error\n",
      "rows x in x out", "kind", "route", "rank", "fwd us", "bwd us", "total us", "iqr", "/bare",
      "iqr", "/comp.", "/auto", "GFLOP/s", "peak", "gap", "ops", "kept KB", "extra KB");
}

inline void print_row(const Row& row) {
  fmt::print("{:<15} {:<7} {:<9} {:>4}  ",
             fmt::format("{}x{}x{}", row.shape.n, row.shape.k, row.shape.m), row.variant, row.route,
             row.rank);
  if (!row.correct) {
    return fmt::print("wrong: relative error {:.1e}, no time\n", row.error);
  }
  const auto kilobytes = [](int64_t bytes) { return static_cast<double>(bytes) / 1024; };
  fmt::print(
      "{:>9.0f} {:>9.0f} {:>9.0f} {:>7.0f} | {:>6.3f} {:>6.3f} {:>6.3f} {:>6.3f} | {:>7.0f} "
      "{:>4.0f}% {:>6.2f} | {:>3} {:>8.1f} {:>8.1f}  {:.1e}\n",
      row.forward_us, row.backward_us, row.total_us, row.total_iqr_us, row.ratio_to_bare,
      row.ratio_iqr, row.ratio_to_composed, row.ratio_to_active, row.gflops,
      100 * row.share_of_peak, row.gap_to_floor, row.kernels, kilobytes(row.kept),
      kilobytes(row.extra), row.error);
}

/// Whether the library's own form is correct and not slower than the composed operators, beyond what
/// the spread of the samples explains: ratios of one run, so that a busy machine disturbs both.
inline bool acceptable(const std::vector<Row>& rows) {
  bool good = true;
  for (const auto& row : rows) {
    good = good && row.correct;
    // Twice the standard error of a median, about, of a ratio to the composed form.
    const double chance =
        2 * row.ratio_iqr / row.ratio_to_bare / std::sqrt(static_cast<double>(row.samples));
    if (row.route != "auto" || !row.correct || row.ratio_to_composed <= 1.05 + chance) continue;
    fmt::print("too slow: {} at {}\n", row.variant, to_json(row).dump());
    good = false;
  }
  return good;
}

}  // namespace bench
