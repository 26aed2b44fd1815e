// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <cmath>
#include <map>

#include "support/cli/fmt.h"
#include "training/optimizer.h"

namespace training {

using torch::Tensor;

namespace {

// transformers' values: added to squared gradients; largest root mean square of an update; power of
// the step in the decay of the second moment.
constexpr double kAddedToSquares = 1e-30, kClipThreshold = 1.0, kDecayRate = -0.8;

}  // namespace

Adafactor::Adafactor(const ParameterBank::Slice& slice, const OptimizerOptions& options)
    : decay_(options.decay.value_or(0)),
      steps_(track("steps", at::zeros({}, at::TensorOptions().dtype(torch::kDouble)))) {
  const auto like = slice.values.options();
  for (const auto& shape : slice.shapes) {
    Moments own{shape, {}, {}, {}};
    const auto prefix = fmt::to_string(moments_.size());
    if (shape.size() >= 2) {
      auto rows = shape, columns = shape;
      rows.pop_back();
      columns.erase(columns.end() - 2);
      own.row = track(prefix + ".row", at::zeros(rows, like));
      own.column = track(prefix + ".column", at::zeros(columns, like));
    } else {
      own.full = track(prefix + ".full", at::zeros(shape, like));
    }
    moments_.push_back(std::move(own));
  }
}

Tensor Adafactor::direction(Moments& moments, const Tensor& gradient, double beta2) const {
  const Tensor squares = gradient.square() + kAddedToSquares;
  if (moments.full.defined()) {
    return moments.full.mul_(beta2).add_(squares, 1 - beta2).rsqrt() * gradient;
  }
  moments.row.mul_(beta2).add_(squares.mean(-1), 1 - beta2);
  moments.column.mul_(beta2).add_(squares.mean(-2), 1 - beta2);
  const Tensor rows = (moments.row / moments.row.mean(-1, /*keepdim=*/true)).rsqrt().unsqueeze(-1);
  return rows * moments.column.unsqueeze(-2).rsqrt() * gradient;
}

namespace {

std::vector<Tensor> picked(const std::vector<std::size_t>& which, const std::vector<Tensor>& all) {
  std::vector<Tensor> result;
  for (const auto i : which) result.push_back(all[i]);
  return result;
}

// One part of the moments of several tensors; empty if they have none.
template <typename Moments>
std::vector<Tensor> parts(const std::vector<std::size_t>& which, std::vector<Moments>& all,
                          Tensor Moments::* part) {
  std::vector<Tensor> result;
  for (const auto i : which) {
    if ((all[i].*part).defined()) result.push_back(all[i].*part);
  }
  return result;
}

// Tensors of one shape take each operation together: by themselves they would be 20 launches each
// on a GPU, thousands for a UNet's adapters.
template <typename Moments>
Moments stacked(const std::vector<std::size_t>& which, std::vector<Moments>& all) {
  Moments result{all[which.front()].shape, {}, {}, {}};
  for (auto part : {&Moments::row, &Moments::column, &Moments::full}) {
    const auto own = parts(which, all, part);
    if (!own.empty()) result.*part = at::stack(own);
  }
  return result;
}

template <typename Moments>
void unstack(const Moments& from, const std::vector<std::size_t>& which,
             std::vector<Moments>& all) {
  for (auto part : {&Moments::row, &Moments::column, &Moments::full}) {
    if ((from.*part).defined()) at::_foreach_copy_(parts(which, all, part), (from.*part).unbind());
  }
}

}  // namespace

void Adafactor::step(const Tensor& values, const Tensor& gradients, double learning_rate) {
  const torch::NoGradGuard no_grad;
  steps_.add_(1);
  const double beta2 = 1 - std::pow(steps_.item<double>(), kDecayRate);
  std::vector<Tensor> own(moments_.size()), updates(moments_.size());
  std::map<std::vector<int64_t>, std::vector<std::size_t>> same;
  int64_t start = 0;
  for (std::size_t i = 0; i < moments_.size(); ++i) {
    const auto& shape = moments_[i].shape;
    own[i] = gradients.narrow(0, start, c10::multiply_integers(shape)).view(shape);
    start += own[i].numel();
    same[shape].push_back(i);
  }
  for (const auto& [shape, which] : same) {
    auto together = stacked(which, moments_);
    const Tensor update = direction(together, at::stack(picked(which, own)), beta2);
    unstack(together, which, moments_);
    const double size = static_cast<double>(update[0].numel());
    const Tensor rms = update.flatten(1).norm(2, {1}, /*keepdim=*/true) / std::sqrt(size);
    const Tensor clipped = update.flatten(1) / (rms / kClipThreshold).clamp_min(1.0);
    const auto rows = clipped.unbind();
    for (std::size_t i = 0; i < which.size(); ++i) updates[which[i]] = rows[i];
  }
  values.mul_(1 - learning_rate * decay_).sub_(at::cat(updates), learning_rate);
}

}  // namespace training
