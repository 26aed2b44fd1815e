// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <cmath>

#include "schedulers/solver.h"

namespace sd {
namespace {

constexpr int64_t few_steps = 15;  // below this diffusers ends with a first-order step

/// DPM-Solver++ of second order with one model call a step, diffusers' DPMSolverMultistepScheduler.
/// Equation: x_next = s_next / s x - a_next (e^-h - 1) (D0 + D1 / 2)  (midpoint),
///           a = 1 / sqrt(sigma^2 + 1), s = sigma a, lambda = log(a / s), h = lambda_next - lambda,
///           D0 the predicted clean sample, D1 its change since the step before over h_before / h
/// Paper:    Lu et al. 2022, arXiv:2211.01095, algorithm 2
class DPMSolverMultistepScheduler : public SolverScheduler {
 public:
  DPMSolverMultistepScheduler(const SchedulerConfig& config, bool karras)
      : SolverScheduler(config, karras, has_even_betas(config)),
        heun_(config.text("solver_type", "midpoint",
                          {"midpoint", "heun", "logrho", "bh1", "bh2"}) == "heun"),
        lower_order_final_(config.flag("lower_order_final", true)),
        euler_at_final_(config.flag("euler_at_final", false)),
        order_(config.integer("solver_order", 2)) {
    config.text("algorithm_type", "dpmsolver++", {"dpmsolver++", "deis"});
    TORCH_CHECK_VALUE(order_ == 1 || order_ == 2, "'", config.source(),
                      "': expected solver_order 1 or 2, got ", order_);
    clip_lambda(config, config.number("lambda_min_clipped", -INFINITY));  // for cosine schedules
  }

  void set_timesteps(int64_t n) override {
    SolverScheduler::set_timesteps(n);
    previous_clean_ = torch::Tensor();
  }

  torch::Tensor step(const torch::Tensor& model_output, size_t index, const torch::Tensor& sample,
                     const StepOptions&) override {
    const Level now = level(index);
    const Level next = level(index + 1);
    const auto clean = clean_sample(model_output, sample, index);
    const double h = next.lambda - now.lambda;
    const double growth = std::expm1(-h);
    auto result = next.spread / now.spread * sample - next.signal * growth * clean;
    if (previous_clean_.defined() && order_ > 1 && !ends_with_first_order(index)) {
      const double ratio = (now.lambda - level(index - 1).lambda) / h;
      const double weight = heun_ ? growth / h + 1.0 : -0.5 * growth;
      result = result + next.signal * weight / ratio * (clean - previous_clean_);
    }
    previous_clean_ = clean;
    return result;
  }

 private:
  static bool has_even_betas(const SchedulerConfig& config) {
    return config.text("beta_schedule", "linear",
                       {"linear", "scaled_linear", "squaredcos_cap_v2"}) != "squaredcos_cap_v2";
  }

  bool ends_with_first_order(size_t index) const {
    if (index + 1 != timesteps_.size()) return false;
    const bool few = static_cast<int64_t>(timesteps_.size()) < few_steps;
    return ends_at_zero_ || euler_at_final_ || (lower_order_final_ && few);
  }

  bool heun_, lower_order_final_, euler_at_final_;
  int64_t order_;
  torch::Tensor previous_clean_;
};

}  // namespace

std::unique_ptr<Scheduler> make_dpmpp_2m(const SchedulerConfig& config) {
  return std::make_unique<DPMSolverMultistepScheduler>(config, /*karras=*/false);
}

std::unique_ptr<Scheduler> make_dpmpp_2m_karras(const SchedulerConfig& config) {
  return std::make_unique<DPMSolverMultistepScheduler>(config, /*karras=*/true);
}

}  // namespace sd
