// SPDX-License-Identifier: Apache-2.0
// From prompts and noise to pictures: StableDiffusion::sample and its parts.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "pipeline/pipeline.h"

namespace sd {
namespace {

NoiseSource noise_of(const SampleOptions& options) {
  if (!options.seeds().empty()) {
    TORCH_CHECK_VALUE(!options.batch_position(),
                      "sd::SampleOptions: expected either seeds or batch_position, got both");
    return NoiseSource(options.seeds());
  }
  NoiseSource noise(std::vector<uint64_t>{options.seed()});
  if (options.batch_position()) {
    noise.keep_one(options.num_images_per_prompt(), *options.batch_position());
  }
  return noise;
}

int64_t pictures_of(const SampleOptions& options) {
  TORCH_CHECK_VALUE(options.num_images_per_prompt() > 0,
                    "--num_images_per_prompt: expected at least 1, got ",
                    options.num_images_per_prompt());
  if (!options.seeds().empty()) return static_cast<int64_t>(options.seeds().size());
  return options.batch_position() ? 1 : options.num_images_per_prompt();
}

// The step that a run over an existing picture begins with.
size_t first_step(const SampleOptions& options) {
  if (!options.image().defined()) return 0;
  TORCH_CHECK_VALUE(!options.initial_latents().defined(),
                    "--image: expected no --initial_latents beside it, got both");
  TORCH_CHECK_VALUE(options.strength() >= 0.0 && options.strength() <= 1.0,
                    "--strength: expected a number from 0 to 1, got ", options.strength());
  const int64_t all = options.num_inference_steps();
  const auto taken = static_cast<int64_t>(static_cast<double>(all) * options.strength());
  TORCH_CHECK_VALUE(taken > 0, "--strength: expected at least ", 1.0 / static_cast<double>(all),
                    " for one of ", all, " steps, got ", options.strength(),
                    "; hint: a higher --strength or more --num_inference_steps");
  return static_cast<size_t>(all - std::min(taken, all));
}

int64_t rows_at_once(const torch::Tensor& latents, const SampleOptions& options) {
  return options.batch_size() > 0 ? options.batch_size() : latents.size(0);
}

// The states for each number of pictures that a step computes at once. Made before the first step,
// since layers keep what they compute from a context as long as they see the same tensor.
std::map<int64_t, torch::Tensor> repeated(const torch::Tensor& context,
                                          const torch::Tensor& latents,
                                          const SampleOptions& options) {
  std::map<int64_t, torch::Tensor> result;
  for (const auto& part : latents.split(rows_at_once(latents, options))) {
    auto& states = result[part.size(0)];
    if (!states.defined()) states = context.repeat_interleave(part.size(0), /*dim=*/0);
  }
  return result;
}

}  // namespace

std::unique_ptr<Scheduler> StableDiffusion::scheduler_for(const SampleOptions& options) const {
  auto config = *scheduler_config_;
  if (options.use_karras_sigmas()) {
    TORCH_CHECK_VALUE(knows_karras_sigmas(options.scheduler()),
                      "--use_karras_sigmas: expected --scheduler euler, dpmpp_2m or unipc, got ",
                      options.scheduler());
    config = config.with("use_karras_sigmas", true);
  }
  if (!options.timestep_spacing().empty()) {
    config = config.with("timestep_spacing", options.timestep_spacing());
  }
  auto scheduler = make_scheduler(options.scheduler(), config);
  scheduler->set_timesteps(options.num_inference_steps());
  return scheduler;
}

torch::Tensor StableDiffusion::initial_noise(const SampleOptions& options,
                                             const NoiseSource& noise) const {
  const int64_t channels = unet_options_.in_channels();
  const int64_t factor = vae_scale_factor();
  if (options.initial_latents().defined()) {
    const auto& given = options.initial_latents();
    TORCH_CHECK_VALUE(given.dim() == 4 && given.size(0) > 0 && given.size(1) == channels,
                      "initial latents: expected shape (n, ", channels, ", h, w), got ",
                      given.sizes());
    TORCH_CHECK_VALUE(
        options.height().value_or(given.size(2) * factor) == given.size(2) * factor &&
            options.width().value_or(given.size(3) * factor) == given.size(3) * factor,
        "--height and --width: expected ", given.size(2) * factor, " and ", given.size(3) * factor,
        " as the initial latents, got another size; hint: "
        "leave them out");
    return given;
  }
  const bool sized = options.height() && options.width();
  const auto own = sized ? std::vector<int64_t>{0, 0} : default_size();
  const int64_t height = options.height().value_or(own[0]);
  const int64_t width = options.width().value_or(own[1]);
  const auto near = [&](int64_t size) {
    return std::max((size + factor / 2) / factor, int64_t{1}) * factor;
  };
  TORCH_CHECK_VALUE(height > 0 && width > 0 && height % factor == 0 && width % factor == 0,
                    "--height and --width: expected positive multiples of ", factor, ", got ",
                    height, " and ", width, "; hint: ", near(height), " and ", near(width));
  // In the model's dtype, as diffusers: a generator gives other numbers for another dtype.
  return noise.draw({pictures_of(options), channels, height / factor, width / factor},
                    options_.dtype());
}

// The picture's latents with the noise of step `begin`: drawn from the autoencoder's distribution
// first, then the noise, as diffusers does.
torch::Tensor StableDiffusion::noisy_image(const SampleOptions& options, const NoiseSource& noise,
                                           const Scheduler& scheduler, size_t begin) {
  const auto& image = options.image();
  const int64_t factor = vae_scale_factor();
  TORCH_CHECK_VALUE(image.dim() == 4 && image.size(0) == 1 && image.size(2) % factor == 0 &&
                        image.size(3) % factor == 0,
                    "image: expected shape (1, 3, H, W) with multiples of ", factor, ", got ",
                    image.sizes());
  const int64_t count = pictures_of(options);
  std::vector<torch::Tensor> latents;
  for (int64_t i = 0; i < (noise.shared() ? 1 : count); ++i) {
    latents.push_back(encode_image(image, noise.generator(i)));
  }
  const auto dtype = at::isReducedFloatingType(options_.dtype()) ? at::kFloat : options_.dtype();
  auto sizes = latents.front().sizes().vec();
  sizes[0] = count;
  const auto clean = at::cat(latents).to(options_.device(), dtype).expand(sizes);
  const auto drawn = noise.draw(sizes, options_.dtype()).to(options_.device(), dtype);
  return scheduler.add_noise(clean, drawn, begin);
}

// The prompt's states behind those of the negative prompt, if there is guidance: (1 or 2, T,
// width). The shorter one is filled up with empty chunks.
torch::Tensor StableDiffusion::encode_context(const SampleOptions& options) {
  const auto chunks = prompt_chunks(tokenizer(), options.prompt(), options.prompt_syntax());
  if (options.guidance_scale() <= 1.0) return encode_chunks(chunks, 1, options.clip_skip());
  const auto negative =
      prompt_chunks(tokenizer(), options.negative_prompt(), options.prompt_syntax());
  const size_t length = std::max(chunks.size(), negative.size());
  return at::cat(
      {encode_chunks(negative, length), encode_chunks(chunks, length, options.clip_skip())});
}

// The guided prediction in the latents' dtype; both prompts go through the UNet as one batch.
torch::Tensor StableDiffusion::predict(const torch::Tensor& latents, double timestep,
                                       const Contexts& contexts, const SampleOptions& options) {
  const bool guided = options.guidance_scale() > 1.0;
  const auto time = at::full({}, timestep, at::TensorOptions(at::kFloat).device(options_.device()));
  std::vector<torch::Tensor> parts;
  for (const auto& part : latents.split(rows_at_once(latents, options))) {
    const auto input = (guided ? at::cat({part, part}) : part).to(options_.dtype());
    const auto& states = contexts.at(part.size(0));
    const auto output = unet()->forward(input, time, states).to(latents.scalar_type());
    if (!guided) {
      parts.push_back(output);
      continue;
    }
    const auto halves = output.chunk(2);
    parts.push_back(halves[0] + options.guidance_scale() * (halves[1] - halves[0]));
  }
  return parts.size() == 1 ? parts.front() : at::cat(parts);
}

SampleResult StableDiffusion::sample(const SampleOptions& options) {
  const at::NoGradGuard no_grad;
  const auto scheduler = scheduler_for(options);
  const size_t begin = first_step(options);
  StepOptions step;
  step.eta = options.eta();
  step.noise = noise_of(options);
  const auto dtype = at::isReducedFloatingType(options_.dtype()) ? at::kFloat : options_.dtype();
  auto latents = options.image().defined()
                     ? noisy_image(options, step.noise, *scheduler, begin)
                     : initial_noise(options, step.noise).to(options_.device(), dtype) *
                           scheduler->init_noise_sigma();
  const auto contexts = repeated(encode_context(options), latents, options);
  const auto& timesteps = scheduler->timesteps();
  const auto total = static_cast<int64_t>(timesteps.size() - begin);
  if (options.callback()) options.callback()(0, total);
  for (size_t i = begin; i < timesteps.size(); ++i) {
    const auto input = scheduler->scale_model_input(latents, i);
    const auto output = predict(input, timesteps[i], contexts, options);
    latents = scheduler->step(output, i, latents, step);
    if (options.callback()) options.callback()(static_cast<int64_t>(i - begin) + 1, total);
  }
  return {latents, options.decode() ? decode(latents) : torch::Tensor()};
}

}  // namespace sd
