// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <cmath>

#include "training/optimizer.h"

namespace training {

using torch::Tensor;

namespace {

constexpr double kFirstD = 1e-6;

// Places in the tensor of numbers.
enum ProdigyNumber { kSteps, kD, kLargestD, kNumerator, kNumbers };

}  // namespace

Prodigy::Prodigy(const Tensor& values, const OptimizerOptions& options)
    : options_(options),
      beta2_(options.beta2.value_or(0.999)),
      beta3_(options.beta3.value_or(std::sqrt(beta2_))),
      decay_(options.decay.value_or(1e-2)),
      first_moment_(track("first_moment", at::zeros_like(values))),
      second_moment_(track("second_moment", at::zeros_like(values))),
      direction_sum_(track("direction_sum", at::zeros_like(values))),
      start_(track("start", values.detach().clone())),
      numbers_(track("numbers", torch::tensor({0.0, kFirstD, kFirstD, 0.0},
                                              values.options().dtype(torch::kDouble)))) {}

double Prodigy::d() const { return numbers_[kD].item<double>(); }

// Follows how far the values have come along the gradients, against how far they could have.
// Without any gradient so far nothing moves: then the result, 1 or 0, is 0.
Tensor Prodigy::estimate(const Tensor& values, const Tensor& gradients, const Tensor& rate) {
  const Tensor before = numbers_.clone();
  const Tensor d = before[kD], in_first_d = d / kFirstD;
  const Tensor travelled = gradients.dot(start_ - values);
  first_moment_.mul_(options_.beta1).add_(gradients * (d * (1 - options_.beta1)));
  second_moment_.mul_(beta2_).add_(gradients.square() * (d * d * (1 - beta2_)));
  direction_sum_.mul_(beta3_).add_(gradients *
                                   (in_first_d * (options_.safeguard_warmup ? d : rate)));
  const Tensor possible = direction_sum_.abs().sum().to(torch::kDouble);
  const Tensor numerator = beta3_ * before[kNumerator] + in_first_d * rate * travelled;
  const Tensor estimated = options_.d_coef * numerator / possible;
  const Tensor base = at::where(d == kFirstD, at::maximum(d, estimated), d);
  const Tensor largest = at::maximum(at::maximum(before[kLargestD], base), estimated);
  const Tensor moved = possible > 0;
  numbers_.copy_(
      at::where(moved, at::stack({before[kSteps] + 1, largest, largest, numerator}), before));
  return moved.to(torch::kDouble);
}

// All numbers stay where the values are, as reading one would wait for a GPU.
void Prodigy::step(const Tensor& values, const Tensor& gradients, double learning_rate) {
  if (learning_rate <= 0) return;  // during warm-up there is nothing to learn a rate from
  const torch::NoGradGuard no_grad;
  Tensor rate = numbers_[kD] * learning_rate;
  if (options_.bias_correction) {
    const Tensor next = numbers_[kSteps] + 1;
    rate = rate * (1 - at::pow(beta2_, next)).sqrt() / (1 - at::pow(options_.beta1, next));
  }
  const Tensor taken = rate * estimate(values, gradients, rate);
  const Tensor denominator = second_moment_.sqrt().add_(numbers_[kD] * options_.epsilon);
  values.mul_(1 - decay_ * taken);
  values.sub_(first_moment_ / denominator * taken);
}

}  // namespace training
