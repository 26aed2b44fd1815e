// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/patch.h>

#include <utility>
#include <vector>

#include "research/hypernetwork/adapter_set.h"
#include "research/hypernetwork/identities.h"
#include "schedulers/schedulers.h"

namespace hypernetwork {

/// Pictures of several identities, one after the other, as many of each.
struct SubjectBatch {
  at::Tensor latents;           ///< (identities x each, C, h, w) fp32
  at::Tensor noise;             ///< as latents
  at::Tensor timesteps;         ///< (identities x each) int64
  sd::PromptEmbeds text;        ///< of the captions, without adapters
  std::vector<at::Tensor> ids;  ///< of the captions, (identities x each, T) for each text encoder
  at::Tensor time_ids;          ///< (identities x each, 6) of SDXL; otherwise undefined
};

/// How badly adapters of given values draw the pictures of their identities: the loss of the base
/// model's training, for many sets of adapters in one pass.
class SubjectLoss {
 public:
  /// `checkpointing`: compute activations again in the backward pass, see sd::GradientCheckpointing.
  SubjectLoss(sd::StableDiffusion& pipeline, AdapterSet adapters, bool checkpointing = false)
      : pipeline_(pipeline),
        adapters_(std::move(adapters)),
        schedule_(pipeline.scheduler_config()),
        checkpointing_(checkpointing) {}

  /// `each` pictures of these identities, with numbers from torch's default generator. All of an
  /// identity have timesteps spread over all.
  SubjectBatch draw(const Identities& data, const std::vector<int64_t>& identities,
                    int64_t each) const;

  /// Mean over the pictures of each identity, by identity; undefined values: without adapters.
  /// Shapes: values (identities, n), result (identities) fp32
  at::Tensor operator()(const at::Tensor& values, const SubjectBatch& batch) const {
    return with_activation(values, batch).first;
  }
  /// The same, and what has to live until the backward pass is over: with checkpointing it goes
  /// through the adapters again.
  std::pair<at::Tensor, std::vector<lightlora::Activation>> with_activation(
      const at::Tensor& values, const SubjectBatch& batch) const;

  const AdapterSet& adapters() const { return adapters_; }

 private:
  at::Tensor compute(const at::Tensor& rows, const SubjectBatch& batch, int64_t identities,
                     std::vector<lightlora::Activation>& active) const;

  sd::StableDiffusion& pipeline_;
  AdapterSet adapters_;
  sd::NoiseSchedule schedule_;
  bool checkpointing_;
};

}  // namespace hypernetwork
