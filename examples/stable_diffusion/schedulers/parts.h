// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <string>
#include <vector>

#include "schedulers/schedulers.h"

// What the schedulers' files share; nothing outside them needs it.

namespace sd {

/// Evenly spaced timesteps, largest first, as numpy computes them in diffusers.
/// leading: multiples of floor(train / n), plus `steps_offset`; linspace: 0 to train - 1;
/// trailing: train - 1 downwards. Differs from diffusers: trailing gives n steps always; there, for
/// some n (61 of 1000, say), rounding adds one more with timestep -1.
/// Errors: c10::ValueError if n is below 1, above `train`, or leads beyond the last training step
std::vector<double> spaced_timesteps(const std::string& spacing, int64_t train, int64_t n,
                                     int64_t steps_offset, bool round_linspace = true);

/// The share of the clean sample and of the noise in a model's output.
struct Prediction {
  torch::Tensor sample, noise;
};

/// Both from a model output at alpha_prod = a_t.
Prediction predict(PredictionType type, const torch::Tensor& output, const torch::Tensor& sample,
                   double alpha_prod);

/// What may happen to a predicted clean sample: dynamic thresholding (Saharia et al. 2022,
/// arXiv:2205.11487, section 2.3; made for pixels, it greys latents) or else clipping.
/// Equation of the former: clamp(x, -s, s) / s, s the `dynamic_thresholding_ratio` quantile of each
///                         picture's |x|, kept from 1 to `sample_max_value`
class SampleClip {
 public:
  /// `clips` is the class's default of clip_sample; none where it has no such option.
  SampleClip(const SchedulerConfig& config, std::optional<bool> clips);
  torch::Tensor operator()(const torch::Tensor& sample) const;

 private:
  bool thresholding_, clips_;
  double range_, ratio_, largest_;
};

/// Unit normal values in the dtype of `like`, drawn on the CPU, on the device of `like`.
torch::Tensor noise_like(const torch::Tensor& like, const NoiseSource& noise);

/// The schedules' noise levels sigma = sqrt((1 - a) / a) for each training step, in fp32.
std::vector<double> training_sigmas(const NoiseSchedule& schedule);

/// numpy.interp over the points (0, values[0]), (1, values[1]), ...
double interpolate(const std::vector<double>& values, double at);

/// The timestep between two training steps whose log sigma is log(sigma).
double sigma_to_timestep(double sigma, const std::vector<double>& log_sigmas);

/// n noise levels from `max` to `min` after Karras et al. 2022, arXiv:2206.00364, eq. (5), rho = 7.
std::vector<double> karras_sigmas(double min, double max, int64_t n);

/// Rounded to fp32, as diffusers keeps its tables.
std::vector<double> to_float(std::vector<double> values);

std::unique_ptr<Scheduler> make_ddim(const SchedulerConfig& config);
std::unique_ptr<Scheduler> make_ddpm(const SchedulerConfig& config);
std::unique_ptr<Scheduler> make_pndm(const SchedulerConfig& config);
std::unique_ptr<Scheduler> make_lcm(const SchedulerConfig& config);
std::unique_ptr<Scheduler> make_unipc(const SchedulerConfig& config);
std::unique_ptr<Scheduler> make_euler(const SchedulerConfig& config);
std::unique_ptr<Scheduler> make_euler_ancestral(const SchedulerConfig& config);
std::unique_ptr<Scheduler> make_dpmpp_2m(const SchedulerConfig& config);
std::unique_ptr<Scheduler> make_dpmpp_2m_karras(const SchedulerConfig& config);

}  // namespace sd
