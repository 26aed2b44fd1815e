// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/clip.h"
#include "models/unet.h"
#include "models/vae.h"
#include "text/tokenizer.h"

namespace pretraining {

/// The ids of captions as the text encoder reads them: (captions, model_max_length) int64.
at::Tensor token_ids(const sd::Tokenizer& tokenizer, const std::vector<std::string>& captions);

/// What sampling needs of a model in training; all in one dtype.
struct SamplingModel {
  sd::CLIPTextModel text_encoder;
  sd::UNet2DConditionModel unet;
  sd::AutoencoderKL vae;
  nlohmann::json scheduler;
  sd::CLIPTextModel text_encoder_2{nullptr};  ///< of a model in SDXL's form

  /// What the UNet reads of texts: (texts, T) ids.
  sd::PromptEmbeds embed(const at::Tensor& ids);
};

/// Draws one picture a prompt with DDIM and classifier-free guidance, from noise of this seed.
/// Shapes: ids (N, T), empty_ids (1, T); result (N, 3, H, W) about [-1, 1], fp32. In SDXL's form
///         `time_ids` (1, 6) are what both prompts are told; none: sizes as drawn
at::Tensor draw_pictures(SamplingModel model, const at::Tensor& ids, const at::Tensor& empty_ids,
                         int64_t steps, double guidance_scale, uint64_t seed,
                         const at::Tensor& time_ids = {});

}  // namespace pretraining
