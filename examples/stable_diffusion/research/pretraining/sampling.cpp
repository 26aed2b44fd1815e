// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/sampling.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "research/pretraining/size_views.h"
#include "schedulers/schedulers.h"

namespace pretraining {

at::Tensor token_ids(const sd::Tokenizer& tokenizer, const std::vector<std::string>& captions) {
  std::vector<at::Tensor> rows;
  for (const std::string& caption : captions) {
    rows.push_back(at::tensor(tokenizer.encode(caption), at::kLong));
  }
  return at::stack(rows);
}

sd::PromptEmbeds SamplingModel::embed(const at::Tensor& ids) {
  if (text_encoder_2.is_empty()) return text_encoder->forward(ids);
  const auto first = text_encoder->penultimate(ids, 0),
             second = text_encoder_2->penultimate(ids, 0);
  return {at::cat({first.states, second.states}, /*dim=*/-1), second.pooled};
}

at::Tensor draw_pictures(SamplingModel model, const at::Tensor& ids, const at::Tensor& empty_ids,
                         int64_t steps, double guidance_scale, uint64_t seed,
                         const at::Tensor& time_ids) {
  torch::NoGradGuard no_grad;
  const int64_t count = ids.size(0);
  const auto device = model.unet->conv_in->weight.device();
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto dtype = model.unet->conv_in->weight.scalar_type();
  const auto side = model.unet->options.sample_size();
  const auto text = model.embed(at::cat({empty_ids.expand_as(ids), ids}).to(device));
  sd::AddedConditions added;
  if (text.pooled.defined()) {
    const auto told =
        time_ids.defined() ? time_ids : plain_sizes(side.at(0) * model.vae->options.downsampling());
    added = {text.pooled, told.expand({2 * count, 6}).to(device)};
  }
  auto scheduler = sd::make_scheduler("ddim", sd::SchedulerConfig(model.scheduler, "config"));
  scheduler->set_timesteps(steps);
  at::Tensor sample = at::randn({count, model.unet->options.in_channels(), side.at(0), side.back()},
                                generator, at::kFloat)
                          .to(device);
  for (size_t i = 0; i < scheduler->timesteps().size(); ++i) {
    const auto timestep = at::full({2 * count}, scheduler->timesteps()[i], sample.options());
    const auto input = scheduler->scale_model_input(sample, i).to(dtype);
    const auto output =
        model.unet->forward(at::cat({input, input}), timestep, text.states, added).to(at::kFloat);
    const auto empty = output.narrow(0, 0, count), named = output.narrow(0, count, count);
    sample = scheduler->step(empty + guidance_scale * (named - empty), i, sample, {0.0, generator});
  }
  const auto latents = (sample / model.vae->options.scaling_factor()).to(dtype);
  return model.vae->decode(latents).to(at::kFloat).cpu();
}

}  // namespace pretraining
