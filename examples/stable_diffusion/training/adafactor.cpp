// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <cmath>

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

void Adafactor::step(const Tensor& values, const Tensor& gradients, double learning_rate) {
  const torch::NoGradGuard no_grad;
  steps_.add_(1);
  const double beta2 = 1 - std::pow(steps_.item<double>(), kDecayRate);
  int64_t start = 0;
  for (auto& moments : moments_) {
    const int64_t size = c10::multiply_integers(moments.shape);
    const Tensor value = values.narrow(0, start, size).view(moments.shape);
    const Tensor gradient = gradients.narrow(0, start, size).view(moments.shape);
    const Tensor update = direction(moments, gradient, beta2);
    const Tensor rms = update.norm() / std::sqrt(static_cast<double>(size));
    value.mul_(1 - learning_rate * decay_);
    value.sub_(update / (rms / kClipThreshold).clamp_min(1.0) * learning_rate);
    start += size;
  }
}

}  // namespace training
