// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <algorithm>
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
      numbers_(track("numbers", torch::tensor({0.0, kFirstD, kFirstD, 0.0}, torch::kDouble))) {}

double Prodigy::d() const { return numbers_.data_ptr<double>()[kD]; }

// Follows how far the values have come along the gradients, against how far they could have.
bool Prodigy::estimate(const Tensor& values, const Tensor& gradients, double rate) {
  double* const numbers = numbers_.data_ptr<double>();
  const double d = numbers[kD], in_first_d = d / kFirstD;
  const double travelled = gradients.dot(start_ - values).item<double>();
  first_moment_.mul_(options_.beta1).add_(gradients, d * (1 - options_.beta1));
  second_moment_.mul_(beta2_).addcmul_(gradients, gradients, d * d * (1 - beta2_));
  direction_sum_.mul_(beta3_).add_(gradients, in_first_d * (options_.safeguard_warmup ? d : rate));
  const double possible = direction_sum_.abs().sum().item<double>();
  if (possible == 0) return false;
  numbers[kNumerator] = beta3_ * numbers[kNumerator] + in_first_d * rate * travelled;
  const double estimated = options_.d_coef * numbers[kNumerator] / possible;
  const double base = d == kFirstD ? std::max(d, estimated) : d;
  numbers[kLargestD] = std::max({numbers[kLargestD], base, estimated});
  numbers[kD] = numbers[kLargestD];
  return true;
}

void Prodigy::step(const Tensor& values, const Tensor& gradients, double learning_rate) {
  if (learning_rate <= 0) return;  // during warm-up there is nothing to learn a rate from
  const torch::NoGradGuard no_grad;
  double* const numbers = numbers_.data_ptr<double>();
  const double next = numbers[kSteps] + 1;
  const double correction = options_.bias_correction
                                ? std::sqrt(1 - std::pow(beta2_, next)) /
                                      (1 - std::pow(options_.beta1, next))
                                : 1.0;
  const double rate = numbers[kD] * learning_rate * correction;
  if (!estimate(values, gradients, rate)) return;
  const Tensor denominator = second_moment_.sqrt().add_(numbers[kD] * options_.epsilon);
  values.mul_(1 - decay_ * rate);
  values.addcdiv_(first_moment_, denominator, -rate);
  numbers[kSteps] = next;
}

}  // namespace training
