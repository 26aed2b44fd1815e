// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/patch.h>

#include "models/unet.h"
#include "research/hypernetwork/identities.h"
#include "schedulers/schedulers.h"

namespace hypernetwork {

/// Pictures of several identities, one after the other, as many of each.
struct SubjectBatch {
  at::Tensor latents;    ///< (identities x each, C, h, w) fp32
  at::Tensor states;     ///< (identities x each, T, width)
  at::Tensor noise;      ///< as latents
  at::Tensor timesteps;  ///< (identities x each) int64
};

/// How badly adapters of given values draw the pictures of their identities: the loss of the base
/// model's training, for many sets of adapters in one pass.
class SubjectLoss {
 public:
  SubjectLoss(sd::UNet2DConditionModel unet, lightlora::Patched adapters,
              const sd::SchedulerConfig& scheduler)
      : unet_(std::move(unet)), adapters_(std::move(adapters)), schedule_(scheduler) {}

  /// `each` pictures of these identities, with numbers from torch's default generator. All of an
  /// identity have timesteps spread over all.
  SubjectBatch draw(const Identities& data, const std::vector<int64_t>& identities,
                    int64_t each) const;

  /// Mean over the pictures of each identity, by identity; undefined values: without adapters.
  /// Shapes: values (identities, n), result (identities) fp32
  at::Tensor operator()(const at::Tensor& values, const SubjectBatch& batch) const;

  const lightlora::Patched& adapters() const { return adapters_; }

 private:
  mutable sd::UNet2DConditionModel unet_;
  lightlora::Patched adapters_;
  sd::NoiseSchedule schedule_;
};

}  // namespace hypernetwork
