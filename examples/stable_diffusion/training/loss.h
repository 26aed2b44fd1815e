// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Generator.h>
#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "models/clip.h"
#include "models/unet.h"
#include "schedulers/schedulers.h"

namespace training {

/// How far a prediction is from its target, per value d, as sd-scripts has it.
/// l2: d^2; huber: 2 c (sqrt(d^2 + c^2) - c); smooth_l1: 2 (sqrt(d^2 + c^2) - c)
enum class LossType { l2, huber, smooth_l1 };

/// How c depends on the timestep t of T, with sigma its noise over its signal. exponential:
/// s c^(t / T); snr: (1 - c) / (1 + sigma)^2 + c; constant: s c
enum class HuberSchedule { exponential, snr, constant };

struct LossOptions {
  /// Weight samples by min(snr, gamma) / snr; none: all equally.
  /// Paper: Hang et al. 2023, arXiv:2303.09556
  std::optional<double> snr_gamma;
  /// Weight samples by 1 / sqrt(snr), 1 where there is no signal at all, or 1 / (snr + 1) for models
  /// that predict v.
  /// Paper: Yu et al. 2023, arXiv:2310.08442
  bool debiased_estimation = false;
  LossType type = LossType::l2;
  HuberSchedule huber_schedule = HuberSchedule::snr;
  double huber_c = 0.1, huber_scale = 1;  ///< c and s
  /// Size of the noise that all pixels of a channel share, which lets a model learn very dark and
  /// very bright pictures.
  double noise_offset = 0;
};

/// One sample with everything random about it.
struct NoisySample {
  torch::Tensor latents;  ///< (4, h, w) fp32 on the CPU
  torch::Tensor noise;    ///< the same
  int64_t timestep = 0;
  std::vector<int64_t> time_ids;  ///< what SDXL is told about sizes, see ImageDataset::time_ids
  torch::Tensor mask = {};        ///< (1, h, w): how much each place counts; undefined: all in full
};

/// What the loss of one batch is computed from, on the model's device.
struct LossInputs {
  torch::Tensor noisy;        ///< (B, 4, h, w), what the model sees, in its dtype
  torch::Tensor timesteps;    ///< (B)
  torch::Tensor states;       ///< (B, tokens, width)
  sd::AddedConditions added;  ///< of SDXL
  /// Instead of states and pooled texts: ids that text encoders are to encode with every batch.
  std::vector<torch::Tensor> ids;
  torch::Tensor target;        ///< (B, 4, h, w) fp32, what it should predict
  torch::Tensor weights;       ///< (B), of the samples; undefined: all alike
  torch::Tensor huber_c = {};  ///< (B, 1, 1, 1); undefined: the squared difference
  torch::Tensor mask = {};     ///< (B, 1, h, w); undefined: all in full
  bool smooth_l1 = false;

  /// Copies in memory of their own, which `copy_from` then fills with another batch's values.
  LossInputs clone() const;
  void copy_from(const LossInputs& other);
};

/// The loss of a denoising model.
/// Equation: mean over samples of w(t) |target - unet(add_noise(x, noise, t), t, states)|^2, with
///           w(t) = 1, or min(snr(t), gamma) / snr(t) for models that predict noise, which is 1
///           where there is no signal at all, and
///           min(snr(t), gamma) / (snr(t) + 1) for those that predict v,
///           min(snr(t), gamma) for those that predict the sample; pure noise (snr 0) counts as noise
///           that is all there is to predict, w = 1 for epsilon
class DiffusionLoss {
 public:
  DiffusionLoss(sd::NoiseSchedule schedule, LossOptions options)
      : schedule_(std::move(schedule)), options_(options) {}

  int64_t num_train_timesteps() const { return schedule_.num_train_timesteps(); }

  /// Noise and timestep for latents.
  NoisySample draw(const torch::Tensor& latents, at::Generator& generator) const;

  /// The loss of a batch, a scalar in fp32.
  /// Shapes: text.states (samples, tokens, width); text.pooled (samples, projection) for SDXL
  torch::Tensor operator()(sd::UNet2DConditionModel& unet, const std::vector<NoisySample>& samples,
                           const sd::PromptEmbeds& text) const {
    return of(unet, inputs(samples, text));
  }

  /// Its two halves: everything that does not ask the model, and what does, which is the same
  /// operators for every batch of one shape.
  LossInputs inputs(const std::vector<NoisySample>& samples, const sd::PromptEmbeds& text) const;
  static torch::Tensor of(sd::UNet2DConditionModel& unet, const LossInputs& inputs);

 private:
  torch::Tensor weights(const torch::Tensor& timesteps) const;
  torch::Tensor min_snr(const torch::Tensor& snr) const;
  torch::Tensor huber_c(const torch::Tensor& timesteps) const;
  sd::PredictionType prediction_type() const { return schedule_.prediction_type(); }

  sd::NoiseSchedule schedule_;
  LossOptions options_;
};

}  // namespace training
