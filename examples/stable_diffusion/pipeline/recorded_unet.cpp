// SPDX-License-Identifier: Apache-2.0
#include "pipeline/recorded_unet.h"

#include <ATen/ATen.h>

namespace sd {

at::Tensor RecordedUNet::operator()(const at::Tensor& sample, double timestep,
                                    const at::Tensor& states, const AddedConditions& added) {
  const auto number = at::TensorOptions(at::kFloat).device(sample.device());
  if (!record_) return unet_->forward(sample, at::full({}, timestep, number), states, added);
  auto& own = recordings_[states.unsafeGetTensorImpl()];
  if (!own.graph) {
    auto sizes = sample.sizes().vec();
    sizes[1] = unet_->options.out_channels();
    own.sample = at::empty_like(sample);
    own.time = at::empty({}, number);
    own.output = at::empty(sizes, sample.options());
    own.states = states;
    own.added = added;
    own.graph = std::make_unique<cuda::Graph>(
        [this, &own] {
          own.output.copy_(unet_->forward(own.sample, own.time, own.states, own.added));
        },
        sample.device(), /*record=*/true);
  }
  own.sample.copy_(sample);
  own.time.fill_(timestep);
  own.graph->run();
  return own.output.clone();
}

}  // namespace sd
