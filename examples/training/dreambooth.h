// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/patch.h>
#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "stable_diffusion/schedulers.h"
#include "stable_diffusion/unet.h"
#include "stable_diffusion/vae.h"
#include "training/dataset.h"
#include "training/optimizer.h"

namespace training {

struct DreamBoothOptions {
  int64_t train_batch_size = 4;
  int64_t gradient_accumulation_steps = 1;
  int64_t max_train_steps = 500;
  uint64_t seed = 0;
  double max_grad_norm = 1.0;
  bool scale_loss = false;  ///< for fp16 weights
  AdamWOptions adam;
};

/// The frozen models of a run, all on one device; `prompt_states` are the text encoder's states of
/// the instance prompt, (1, T, C) in the UNet's dtype.
struct DreamBoothModels {
  sd::UNet2DConditionModel unet;
  sd::AutoencoderKL vae;
  sd::NoiseSchedule schedule;
  torch::Tensor prompt_states;
};

/// What one step did.
struct StepReport {
  double loss = 0;
  double learning_rate = 0;
  bool skipped = false;  ///< an fp16 overflow: the step was left out
};

/// DreamBooth training of the adapters of a patched UNet.
/// Equation: loss = mean over the batch of |target - unet(add_noise(x, noise, t), t, prompt)|^2
/// Paper:    Ruiz et al. 2022, arXiv:2208.12242, without the prior term
/// Step k draws the same pictures, crops, noise and timesteps in every run of the same seed.
class DreamBoothTrainer {
 public:
  DreamBoothTrainer(DreamBoothModels models, ImageDataset dataset, lightlora::Patched lora,
                    LearningRate learning_rate, DreamBoothOptions options);

  /// One optimiser step. Errors: c10::Error naming the step if the loss is not finite; the adapters
  /// then hold the values of the last good step.
  StepReport step();
  /// Steps done so far.
  int64_t steps_done() const { return done_; }

 private:
  /// Random numbers of one sample, all from its own generator.
  struct Draw {
    torch::Tensor latents;  // (4, h, w), scaled
    torch::Tensor noise;    // (4, h, w)
    int64_t timestep;
  };

  Draw draw(int64_t sample);
  int64_t picture_of(int64_t sample);
  torch::Tensor latents_of(int64_t picture, at::Generator& generator);
  double backward(int64_t first_sample);

  DreamBoothModels models_;
  ImageDataset dataset_;
  lightlora::Patched lora_;
  lightlora::Activation active_;
  LearningRate learning_rate_;
  DreamBoothOptions options_;
  ParameterBank bank_;
  AdamW optimizer_;
  LossScaler scaler_;
  int64_t done_ = 0;
  int64_t epoch_ = -1;
  std::vector<int64_t> order_;
  std::vector<std::pair<torch::Tensor, torch::Tensor>> fixed_moments_;  // mean, std of each picture
};

}  // namespace training
