// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "stable_diffusion/scheduler_parts.h"

namespace sd {
namespace {

constexpr int64_t few_steps = 15;  // below this diffusers ends with a first-order step

/// DPM-Solver++ of second order with one model call a step, diffusers' DPMSolverMultistepScheduler.
/// Equation: x_next = s_next / s x - a_next (e^-h - 1) (D0 + D1 / 2)  (midpoint),
///           a = 1 / sqrt(sigma^2 + 1), s = sigma a, lambda = log(a / s), h = lambda_next - lambda,
///           D0 the predicted clean sample, D1 its change since the step before over h_before / h
/// Paper:    Lu et al. 2022, arXiv:2211.01095, algorithm 2
class DPMSolverMultistepScheduler : public Scheduler {
 public:
  DPMSolverMultistepScheduler(const SchedulerConfig& config, bool karras)
      : Scheduler(config),
        karras_(karras || config.flag("use_karras_sigmas", false)),
        heun_(config.text("solver_type", "midpoint",
                          {"midpoint", "heun", "logrho", "bh1", "bh2"}) == "heun"),
        round_karras_(config.text("beta_schedule", "linear",
                                  {"linear", "scaled_linear", "squaredcos_cap_v2"}) !=
                      "squaredcos_cap_v2"),
        lower_order_final_(config.flag("lower_order_final", true)),
        euler_at_final_(config.flag("euler_at_final", false)),
        ends_at_zero_(config.text("final_sigmas_type", "zero", {"zero", "sigma_min"}) == "zero"),
        spacing_(config.text("timestep_spacing", "linspace", {"leading", "linspace", "trailing"})),
        steps_offset_(config.integer("steps_offset", 0)),
        order_(config.integer("solver_order", 2)) {
    refuse_thresholding(config);
    config.text("algorithm_type", "dpmsolver++", {"dpmsolver++", "deis"});
    TORCH_CHECK_VALUE(order_ == 1 || order_ == 2, "'", config.source(),
                      "': expected solver_order 1 or 2, got ", order_);
    for (const auto* key :
         {"use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"}) {
      TORCH_CHECK_VALUE(!config.flag(key, false), "'", config.source(), "': expected ", key,
                        " to be false, got true; hint: use_karras_sigmas is supported");
    }
    read_lambda_limit(config);
  }

  void set_timesteps(int64_t n) override {
    TORCH_CHECK_VALUE(n >= 1 && n < schedule_.num_train_timesteps(),
                      "--num_inference_steps: expected 1 to ", schedule_.num_train_timesteps() - 1,
                      ", got ", n);
    const auto table = training_sigmas(schedule_);
    if (karras_) {
      set_karras(table, n);
    } else {
      set_spaced(n);
      sigmas_.clear();
      for (const double timestep : timesteps_) sigmas_.push_back(interpolate(table, timestep));
    }
    sigmas_.push_back(ends_at_zero_ ? 0.0 : table.front());
    sigmas_ = to_float(sigmas_);
    previous_clean_ = torch::Tensor();
  }

  torch::Tensor step(const torch::Tensor& model_output, size_t index, const torch::Tensor& sample,
                     const StepOptions&) override {
    const Level now = level(index);
    const Level next = level(index + 1);
    const auto clean =
        predict(schedule_.prediction_type(), model_output, sample, now.signal * now.signal).sample;
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
  struct Level {
    double signal, spread, lambda;
  };

  Level level(size_t index) const {
    const double sigma = sigmas_.at(index);
    const double signal = 1.0 / std::sqrt(sigma * sigma + 1.0);
    return {signal, sigma * signal, -std::log(sigma)};
  }

  bool ends_with_first_order(size_t index) const {
    if (index + 1 != timesteps_.size()) return false;
    const bool few = static_cast<int64_t>(timesteps_.size()) < few_steps;
    return ends_at_zero_ || euler_at_final_ || (lower_order_final_ && few);
  }

  // Training steps with a log signal-to-noise below the limit are left out (cosine schedules).
  void read_lambda_limit(const SchedulerConfig& config) {
    const double limit = config.number("lambda_min_clipped", -INFINITY);
    last_timestep_ = 0;
    for (const double sigma : training_sigmas(schedule_)) {
      if (-std::log(sigma) >= limit) ++last_timestep_;
    }
    TORCH_CHECK_VALUE(last_timestep_ == schedule_.num_train_timesteps() || spacing_ != "trailing",
                      "'", config.source(),
                      "': expected no lambda_min_clipped with trailing timesteps, got ", limit);
  }

  void set_karras(const std::vector<double>& table, int64_t n) {
    std::vector<double> logs;
    for (const double sigma : table) logs.push_back(std::log(sigma));
    logs = to_float(logs);
    sigmas_ = karras_sigmas(table.front(), table.back(), n);
    timesteps_.clear();
    for (const double sigma : sigmas_) {
      const double timestep = sigma_to_timestep(sigma, logs);
      timesteps_.push_back(round_karras_ ? std::nearbyint(timestep) : std::floor(timestep));
    }
  }

  void set_spaced(int64_t n) {
    if (spacing_ == "trailing") {
      timesteps_ = spaced_timesteps(spacing_, schedule_.num_train_timesteps(), n, steps_offset_);
      return;
    }
    // The smallest of n + 1 steps is where the last step ends.
    timesteps_ = spaced_timesteps(spacing_, last_timestep_, n + 1, steps_offset_);
    timesteps_.pop_back();
  }

  bool karras_, heun_, round_karras_, lower_order_final_, euler_at_final_, ends_at_zero_;
  std::string spacing_;
  int64_t steps_offset_, order_;
  int64_t last_timestep_ = 0;
  std::vector<double> sigmas_;
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
