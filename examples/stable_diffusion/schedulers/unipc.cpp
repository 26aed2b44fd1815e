// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "schedulers/solver.h"

namespace sd {
namespace {

/// Unified predictor-corrector of order `solver_order` with one model call a step, diffusers'
/// UniPCMultistepScheduler in its form that predicts clean samples.
/// Equation: x_t = s_t / s_0 x - a_t (e^-h - 1) m_0 - a_t B sum_k rho_k (m_k - m_0) / r_k,
///           h = lambda_t - lambda_0, r_k = (lambda_k - lambda_0) / h, B = e^-h - 1 (bh2) or -h
///           (bh1), m_k the clean samples predicted before, and rho the solution of R rho = b
/// The corrector is the same over the step before, with the new prediction as one more m at r = 1.
/// Paper:    Zhao et al. 2023, arXiv:2302.04867, eq. (3) to (9)
class UniPCMultistepScheduler : public SolverScheduler {
 public:
  explicit UniPCMultistepScheduler(const SchedulerConfig& config)
      : SolverScheduler(config, /*karras=*/false, /*round_karras=*/true),
        first_kind_(config.text("solver_type", "bh2",
                                {"midpoint", "heun", "logrho", "bh1", "bh2"}) == "bh1"),
        lower_order_final_(config.flag("lower_order_final", true)),
        order_(static_cast<size_t>(config.integer("solver_order", 2))),
        uncorrected_(config.integers("disable_corrector")) {
    TORCH_CHECK_VALUE(order_ >= 1 && order_ <= 3, "'", config.source(),
                      "': expected solver_order 1, 2 or 3, got ", order_);
    TORCH_CHECK_VALUE(config.flag("predict_x0", true), "'", config.source(),
                      "': expected predict_x0 to be true, got false");
    TORCH_CHECK_VALUE(lower_order_final_ || !ends_at_zero_ || order_ == 1, "'", config.source(),
                      "': expected lower_order_final to be true where the last sigma is zero, got "
                      "false; hint: final_sigmas_type sigma_min");
    TORCH_CHECK_VALUE(ends_at_zero_ || !karras_, "'", config.source(),
                      "': expected final_sigmas_type zero with use_karras_sigmas, got sigma_min, "
                      "where the last step would have no length");
  }

  void set_timesteps(int64_t n) override {
    SolverScheduler::set_timesteps(n);
    clean_.clear();
    corrected_ = torch::Tensor();
    used_order_ = 0;
  }

  torch::Tensor step(const torch::Tensor& model_output, size_t index, const torch::Tensor& sample,
                     const StepOptions&) override {
    const auto clean = clean_sample(model_output, sample, index);
    const auto before = static_cast<int64_t>(index) - 1;
    const bool corrects =
        corrected_.defined() &&
        std::find(uncorrected_.begin(), uncorrected_.end(), before) == uncorrected_.end();
    corrected_ = corrects ? update(index - 1, used_order_, corrected_, clean) : sample;
    clean_.push_back(clean);
    if (clean_.size() > order_) clean_.erase(clean_.begin());
    const size_t left = lower_order_final_ ? timesteps_.size() - index : order_;
    used_order_ = std::min({order_, left, clean_.size()});
    return update(index, used_order_, corrected_, torch::Tensor());
  }

 private:
  // From the level `from` to the next one; with `reached`, the prediction there, as corrector.
  torch::Tensor update(size_t from, size_t order, const torch::Tensor& x,
                       const torch::Tensor& reached) const {
    const Level start = level(from), end = level(from + 1);
    const double h = end.lambda - start.lambda;
    const double growth = std::expm1(-h);
    const double b = first_kind_ ? -h : growth;
    const auto& m0 = clean_.back();
    std::vector<double> ratios;
    for (size_t k = 1; k < order; ++k)
      ratios.push_back((level(from - k).lambda - start.lambda) / h);
    ratios.push_back(1.0);
    auto result = end.spread / start.spread * x - end.signal * growth * m0;
    const auto weights =
        reached.defined() ? solve(ratios, h, b, order) : solve(ratios, h, b, order - 1);
    for (size_t k = 0; k < weights.size(); ++k) {
      const auto& m = k + 1 < order ? clean_[clean_.size() - 2 - k] : reached;
      result = result - end.signal * b * weights[k] / ratios[k] * (m - m0);
    }
    return result;
  }

  // The weights rho of the first `count` differences.
  static std::vector<double> solve(const std::vector<double>& ratios, double h, double b,
                                   size_t count) {
    if (count == 0) return {};
    if (count == 1) return {0.5};  // a simpler form of the same order
    const auto n = static_cast<int64_t>(count);
    const auto r = at::empty({n, n}, at::kDouble), right = at::empty({n}, at::kDouble);
    double phi = std::expm1(-h) / -h - 1.0, factorial = 1.0;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < n; ++k) r[i][k] = std::pow(ratios[static_cast<size_t>(k)], i);
      right[i] = phi * factorial / b;
      factorial *= static_cast<double>(i + 2);
      phi = phi / -h - 1.0 / factorial;
    }
    const auto rho = at::linalg_solve(r, right);
    return {rho.data_ptr<double>(), rho.data_ptr<double>() + n};
  }

  bool first_kind_, lower_order_final_;
  size_t order_, used_order_ = 0;
  std::vector<int64_t> uncorrected_;
  std::vector<torch::Tensor> clean_;  // the newest last
  torch::Tensor corrected_;           // the sample that the last step began with
};

}  // namespace

std::unique_ptr<Scheduler> make_unipc(const SchedulerConfig& config) {
  return std::make_unique<UniPCMultistepScheduler>(config);
}

}  // namespace sd
