// SPDX-License-Identifier: Apache-2.0
#include "models/gradient_checkpointing.h"

#include <lightlora/train.h>

#include <utility>

namespace sd {

namespace {

thread_local bool checkpointing_is_on = false;
thread_local bool rng_state_is_preserved = true;

}  // namespace

GradientCheckpointing::GradientCheckpointing(bool on, bool preserve_rng_state)
    : before_(std::exchange(checkpointing_is_on, on)),
      preserved_before_(std::exchange(rng_state_is_preserved, preserve_rng_state)) {}

GradientCheckpointing::~GradientCheckpointing() {
  checkpointing_is_on = before_;
  rng_state_is_preserved = preserved_before_;
}

bool GradientCheckpointing::enabled() { return checkpointing_is_on && at::GradMode::is_enabled(); }

at::Tensor recomputed(std::function<at::Tensor(const std::vector<at::Tensor>&)> compute,
                      const std::vector<at::Tensor>& inputs) {
  const auto without_segments = [compute =
                                     std::move(compute)](const std::vector<at::Tensor>& values) {
    const GradientCheckpointing off(false);  // what is computed within is no segment of its own
    return compute(values);
  };
  return lightlora::recompute(without_segments, inputs, rng_state_is_preserved);
}

}  // namespace sd
