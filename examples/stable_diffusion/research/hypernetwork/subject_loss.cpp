// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork/subject_loss.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <optional>

namespace hypernetwork {

SubjectBatch SubjectLoss::draw(const Identities& data, const std::vector<int64_t>& identities,
                               int64_t each) const {
  const int64_t count = static_cast<int64_t>(identities.size()) * each;
  std::vector<int64_t> rows;
  for (const int64_t identity : identities) {
    const at::Tensor chosen = at::randint(data.pictures(identity), {each}, at::kLong);
    for (int64_t i = 0; i < each; ++i) {
      rows.push_back(data.first[static_cast<size_t>(identity)] + chosen[i].item<int64_t>());
    }
  }
  const at::Tensor index = at::tensor(rows, at::kLong);
  SubjectBatch batch;
  batch.latents = data.latents.index_select(0, index);
  batch.states =
      data.states.index_select(0, data.caption.index_select(0, index).to(data.states.device()));
  batch.noise = at::randn(batch.latents.sizes(), at::kFloat);
  // One in each of `each` equally long intervals: losses of few pictures vary less.
  const auto share =
      (at::arange(each, at::kFloat).repeat({static_cast<int64_t>(identities.size())}) +
       at::rand({count}, at::kFloat)) /
      each;
  const int64_t steps = schedule_.num_train_timesteps();
  batch.timesteps = (share * steps).to(at::kLong).clamp_max(steps - 1);
  return batch;
}

at::Tensor SubjectLoss::operator()(const at::Tensor& values, const SubjectBatch& batch) const {
  const auto& weight = unet_->conv_in->weight;
  const auto on_device = [&](const at::Tensor& tensor) { return tensor.to(weight.device()); };
  const int64_t count = batch.latents.size(0);
  const int64_t identities = values.defined() ? values.size(0) : count;
  const int64_t each = count / identities;
  const auto clean = on_device(batch.latents), noise = on_device(batch.noise);
  const auto timesteps = on_device(batch.timesteps);
  const auto noisy = schedule_.add_noise(clean, noise, timesteps).to(weight.scalar_type());
  std::optional<lightlora::Activation> active;
  if (values.defined()) {
    active.emplace(adapters_->activate_values(values.repeat_interleave(each, /*dim=*/0)));
  }
  const auto output =
      unet_->forward(noisy, timesteps, batch.states.to(weight.scalar_type()), {}).to(at::kFloat);
  const auto error = (output - schedule_.target(clean, noise, timesteps)).square();
  return error.flatten(1).mean(1).view({identities, each}).mean(1);
}

}  // namespace hypernetwork
