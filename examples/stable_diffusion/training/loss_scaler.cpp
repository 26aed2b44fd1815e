// SPDX-License-Identifier: Apache-2.0
#include "training/loss_scaler.h"

#include <ATen/ATen.h>

namespace training {

using torch::Tensor;

LossScaler::LossScaler(bool enabled, torch::Device device) {
  if (!enabled) return;
  scale_ = at::full({}, 65536.0, at::TensorOptions(device).dtype(torch::kFloat));
  growth_ = at::zeros({}, at::TensorOptions(device).dtype(torch::kInt));
}

Tensor LossScaler::scaled(const Tensor& loss) const {
  return enabled() ? loss * scale_.to(loss.dtype()) : loss;
}

Tensor LossScaler::unscale(const Tensor& gradients) {
  const torch::NoGradGuard no_grad;
  if (!enabled()) return gradients.isfinite().all();
  Tensor found_inf = at::zeros({}, scale_.options());
  at::_amp_foreach_non_finite_check_and_unscale_({gradients}, found_inf, scale_.reciprocal());
  at::_amp_update_scale_(scale_, growth_, found_inf, /*growth_factor=*/2.0, /*backoff=*/0.5,
                         /*growth_interval=*/2000);
  return found_inf.eq(0);
}

double LossScaler::scale() const { return enabled() ? scale_.item<double>() : 1.0; }

lightlora::TensorMap LossScaler::state(const std::string& prefix) const {
  if (!enabled()) return {};
  return {{prefix + "scale", scale_.to(torch::kCPU, false, /*copy=*/true)},
          {prefix + "growth", growth_.to(torch::kCPU, false, /*copy=*/true)}};
}

void LossScaler::load_state(const lightlora::TensorMap& state, const std::string& prefix) {
  if (!enabled() || state.count(prefix + "scale") == 0) return;
  const torch::NoGradGuard no_grad;
  scale_.copy_(state.at(prefix + "scale"));
  growth_.copy_(state.at(prefix + "growth"));
}

}  // namespace training
