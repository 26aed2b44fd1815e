// SPDX-License-Identifier: Apache-2.0
// Samples of every form of a layer, interleaved, and what the machine could do at best.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/layer_case.h"
#include "common/measure.h"

namespace bench {

// What this machine can do, measured in this run.
struct Peaks {
  double flops = 0, bytes = 0;  // per second
};

inline Peaks measure_peaks(at::ScalarType dtype, at::Device device, const measure::Clock& clock) {
  const int64_t n = device.is_cuda() ? 8192 : 1536;
  const auto options = at::TensorOptions(device).dtype(dtype);
  const auto a = at::randn({n, n}, options), b = at::randn({n, n}, options);
  const auto from = at::randn({32 << 20}, options), to = at::empty_like(from);
  auto result = at::empty_like(a);
  double product = 1e9, copy = 1e9;
  for (int i = 0; i < 5; ++i) {
    product = std::min(product, clock.time([&] { at::mm_out(result, a, b); }));
    copy = std::min(copy, clock.time([&] { to.copy_(from); }));
  }
  const auto cube = static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
  return {2 * cube / product, 2.0 * static_cast<double>(from.nbytes()) / copy};
}

// The least time of a step: two products at the peaks, plus the adapter's smallest work, one more
// read of x and the operations of the cheaper route.
inline double floor_seconds(const Shape& s, int64_t rank, double size, const Peaks& peaks,
                            Form form) {
  const auto n = static_cast<double>(s.n), k = static_cast<double>(s.k),
             m = static_cast<double>(s.m), r = static_cast<double>(rank);
  const double product =
      std::max(2 * n * k * m / peaks.flops, (n * k + n * m + k * m) * size / peaks.bytes);
  if (is_bare(form)) return 2 * product;
  const double extra =
      std::min(6 * n * r * (k + m), 4 * n * r * (k + m) + 4 * k * m * r) / peaks.flops;
  return 2 * product + std::max(extra, n * k * size / peaks.bytes);
}

struct Entry {
  std::shared_ptr<LayerCase> layer;
  Form form = Form::bare;
  int64_t kernels = 0, kept = 0, peak = 0;
  double error = 0;
  std::vector<double> forward = {}, backward = {}, total = {}, ratio = {};
};

inline double tolerance(at::ScalarType dtype, Form form) {
  return at::isReducedFloatingType(dtype) || is_int8(form) ? 3e-2 : 1e-5;
}

// One sample: the mean of `repeats` steps.
inline void sample(Entry& entry, const measure::Clock& clock, int64_t repeats) {
  double forward = 0, backward = 0;
  for (int64_t i = 0; i < repeats; ++i) {
    at::Tensor y;
    forward += clock.time([&] { y = entry.layer->forward(entry.form); });
    backward += clock.time([&] { entry.layer->backward(y, entry.form); });
  }
  entry.forward.push_back(forward / static_cast<double>(repeats));
  entry.backward.push_back(backward / static_cast<double>(repeats));
  entry.total.push_back(entry.forward.back() + entry.backward.back());
}

// Everything that is not a time.
inline void inspect(Entry& entry, at::Device device) {
  entry.error = entry.layer->error(entry.form);
  entry.kernels = measure::count_kernels(
      [&] { entry.layer->backward(entry.layer->forward(entry.form), entry.form); });
  // An activation must begin and end with LibTorch's scope around it, and what observes memory is one.
  entry.layer->rest();
  const measure::Memory memory(device);
  const at::Tensor y = entry.layer->forward(entry.form);
  entry.kept = memory.live() - static_cast<int64_t>(y.nbytes());
  const auto gradients = entry.layer->backward(y, entry.form);
  entry.peak = memory.peak();
  entry.layer->rest();
}

/// What is measured together, in one table.
struct Group {
  std::vector<std::string> variants;
  int64_t rank = 4;
  Shape shape;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  double seconds = 12;
};

// The bare layer and every form of every variant, in random order in each round.
inline std::vector<Entry> measure_group(const Group& group, const measure::Clock& clock) {
  std::vector<Entry> entries;
  for (const auto& variant : group.variants) {
    auto layer = std::make_shared<LayerCase>(
        LayerSetup{variant, group.rank, group.shape, group.dtype, group.device});
    if (entries.empty()) entries.push_back({layer, Form::bare});
    for (const Form form : {Form::composed, Form::inactive, Form::bypass, Form::merged,
                            Form::automatic, Form::switched, Form::int8_bare, Form::int8}) {
      entries.push_back({layer, form});
    }
    if (layer->can_pack()) entries.push_back({layer, Form::packed});
  }
  for (auto& entry : entries) inspect(entry, group.device);
  for (auto& entry : entries) sample(entry, clock, 1);
  double sum = 0;
  for (auto& entry : entries) {
    sum += entry.total[0];
    entry.forward.clear(), entry.backward.clear(), entry.total.clear();
  }
  // Samples of a few milliseconds; as many rounds as the time allows.
  const double step = sum / static_cast<double>(entries.size());
  const auto repeats = std::max<int64_t>(1, static_cast<int64_t>(3e-3 / step));
  const auto rounds = static_cast<int64_t>(group.seconds / (sum * static_cast<double>(repeats)));
  std::vector<std::size_t> order(entries.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::mt19937 random(7);
  for (int64_t round = 0; round < std::clamp<int64_t>(rounds, 7, 101); ++round) {
    std::shuffle(order.begin(), order.end(), random);
    for (const std::size_t i : order) sample(entries[i], clock, repeats);
    for (auto& entry : entries) {
      entry.ratio.push_back(entry.total.back() / entries[0].total.back());
    }
  }
  return entries;
}

// The entry of the same layer in another form; the bare one is shared by all.
inline const Entry& find(const std::vector<Entry>& entries, const Entry& like, Form form) {
  for (const auto& entry : entries) {
    if (entry.form == form && (form == Form::bare || entry.layer == like.layer)) return entry;
  }
  TORCH_INTERNAL_ASSERT(false);
}

}  // namespace bench
