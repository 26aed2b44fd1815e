// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork/subject_loss.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>
#include <torch/utils.h>

#include <functional>

#include "models/gradient_checkpointing.h"

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
  const auto captions = data.caption.index_select(0, index).to(data.text.states.device());
  batch.text.states = data.text.states.index_select(0, captions);
  if (data.time_ids.defined()) {
    batch.text.pooled = data.text.pooled.index_select(0, captions);
    batch.time_ids = data.time_ids.index_select(0, index);
  }
  for (const auto& ids : data.ids) batch.ids.push_back(ids.index_select(0, captions));
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

namespace {

// A graph of its own, which ends at the rows of values. What checkpointed segments compute again is
// traversed by a backward pass of theirs, one segment after the other, down to a leaf: beyond the
// rows that would go through the hypernetwork many times.
struct RowsCall : torch::CustomClassHolder {
  using Compute = std::function<at::Tensor(const at::Tensor& rows)>;
  explicit RowsCall(Compute given) : compute(std::move(given)) {}
  Compute compute;
  at::Tensor rows, losses;
};

struct FromRows : torch::autograd::Function<FromRows> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& rows,
                            const c10::intrusive_ptr<RowsCall>& call) {
    const torch::AutoGradMode record(true);
    call->rows = rows.detach().requires_grad_(true);
    call->losses = call->compute(call->rows);
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return call->losses.detach();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto call =
        c10::static_intrusive_pointer_cast<RowsCall>(ctx->saved_data["call"].toCapsule());
    torch::autograd::backward({call->losses}, {grads[0]});
    call->losses = at::Tensor();
    return {call->rows.grad(), at::Tensor()};
  }
};

}  // namespace

std::pair<at::Tensor, std::vector<lightlora::Activation>> SubjectLoss::with_activation(
    const at::Tensor& values, const SubjectBatch& batch) const {
  const int64_t count = batch.latents.size(0);
  const int64_t identities = values.defined() ? values.size(0) : count;
  std::vector<lightlora::Activation> active;
  if (!values.defined()) return {compute({}, batch, identities, active), std::move(active)};
  const at::Tensor rows = values.repeat_interleave(count / identities, /*dim=*/0);
  if (!checkpointing_ || !at::GradMode::is_enabled() || !rows.requires_grad()) {
    at::Tensor losses = compute(rows, batch, identities, active);
    return {std::move(losses), std::move(active)};
  }
  const auto call = c10::make_intrusive<RowsCall>([&](const at::Tensor& leaf) {
    const sd::GradientCheckpointing checkpointing(true, /*preserve_rng_state=*/false);
    return compute(leaf, batch, identities, active);
  });
  at::Tensor losses = FromRows::apply(rows, call);
  call->compute = nullptr;
  return {std::move(losses), std::move(active)};
}

// Defined rows: each picture has adapters of its own.
at::Tensor SubjectLoss::compute(const at::Tensor& rows, const SubjectBatch& batch,
                                int64_t identities,
                                std::vector<lightlora::Activation>& active) const {
  auto unet = pipeline_.unet();
  const auto& weight = unet->conv_in->weight;
  const auto on_device = [&](const at::Tensor& tensor) { return tensor.to(weight.device()); };
  const auto clean = on_device(batch.latents), noise = on_device(batch.noise);
  const auto timesteps = on_device(batch.timesteps);
  const auto noisy = schedule_.add_noise(clean, noise, timesteps).to(weight.scalar_type());
  auto text = batch.text;
  if (rows.defined()) {
    active = adapters_.activate(rows);
    if (adapters_.adapts_text()) text = pipeline_.encode_ids(batch.ids);
  }
  sd::AddedConditions added;
  if (batch.time_ids.defined()) {
    added = {text.pooled.to(weight.scalar_type()), on_device(batch.time_ids)};
  }
  const auto output =
      unet->forward(noisy, timesteps, text.states.to(weight.scalar_type()), added).to(at::kFloat);
  const auto error = (output - schedule_.target(clean, noise, timesteps)).square();
  return error.flatten(1).mean(1).view({identities, -1}).mean(1);
}

}  // namespace hypernetwork
