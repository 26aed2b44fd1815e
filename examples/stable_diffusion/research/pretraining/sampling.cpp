// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/sampling.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "schedulers/schedulers.h"

namespace pretraining {

at::Tensor token_ids(const sd::Tokenizer& tokenizer, const std::vector<std::string>& captions) {
  std::vector<at::Tensor> rows;
  for (const std::string& caption : captions) {
    rows.push_back(at::tensor(tokenizer.encode(caption), at::kLong));
  }
  return at::stack(rows);
}

at::Tensor draw_pictures(SamplingModel model, const at::Tensor& ids, const at::Tensor& empty_ids,
                         int64_t steps, double guidance_scale, uint64_t seed) {
  torch::NoGradGuard no_grad;
  const int64_t count = ids.size(0);
  const auto device = model.unet->conv_in->weight.device();
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto dtype = model.unet->conv_in->weight.scalar_type();
  const auto side = model.unet->options.sample_size();
  const auto text =
      model.text_encoder->forward(at::cat({empty_ids.expand_as(ids), ids}).to(device));
  auto scheduler = sd::make_scheduler("ddim", sd::SchedulerConfig(model.scheduler, "config"));
  scheduler->set_timesteps(steps);
  at::Tensor sample = at::randn({count, model.unet->options.in_channels(), side.at(0), side.back()},
                                generator, at::kFloat)
                          .to(device);
  for (size_t i = 0; i < scheduler->timesteps().size(); ++i) {
    const auto timestep = at::full({2 * count}, scheduler->timesteps()[i], sample.options());
    const auto input = scheduler->scale_model_input(sample, i).to(dtype);
    const auto output = model.unet->forward(at::cat({input, input}), timestep, text).to(at::kFloat);
    const auto empty = output.narrow(0, 0, count), named = output.narrow(0, count, count);
    sample = scheduler->step(empty + guidance_scale * (named - empty), i, sample, {0.0, generator});
  }
  const auto latents = (sample / model.vae->options.scaling_factor()).to(dtype);
  return model.vae->decode(latents).to(at::kFloat).cpu();
}

}  // namespace pretraining
