// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>

#include "models/unet.h"
#include "support/cuda/graph.h"

namespace sd {

/// A UNet for the steps of one picture or batch of pictures, whose text does not change. With
/// `record` its pass is replayed as a CUDA graph from the fourth step on: a step of few pictures is
/// about a thousand kernels that each finish sooner than they are launched. Without gradients.
class RecordedUNet {
 public:
  RecordedUNet(UNet2DConditionModel unet, bool record) : unet_(std::move(unet)), record_(record) {}

  /// As the UNet's forward; the result is the caller's own. Each `states` goes with one `added`.
  at::Tensor operator()(const at::Tensor& sample, double timestep, const at::Tensor& states,
                        const AddedConditions& added);

 private:
  // What one recording reads and writes.
  struct Recording {
    at::Tensor sample, time, states, output;
    AddedConditions added;
    std::unique_ptr<cuda::Graph> graph;
  };

  UNet2DConditionModel unet_;
  bool record_;
  std::map<const void*, Recording> recordings_;  // by the states, which they keep
};

}  // namespace sd
