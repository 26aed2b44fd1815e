// SPDX-License-Identifier: Apache-2.0
// From prompts and noise to pictures: StableDiffusion::sample and its parts.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "pipeline/pipeline.h"
#include "pipeline/recorded_unet.h"

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
    noise.keep(options.num_images_per_prompt(), *options.batch_position(),
               options.batch_pictures());
  }
  return noise;
}

int64_t pictures_of(const SampleOptions& options) {
  TORCH_CHECK_VALUE(options.num_images_per_prompt() > 0,
                    "--num_images_per_prompt: expected at least 1, got ",
                    options.num_images_per_prompt());
  if (!options.seeds().empty()) return static_cast<int64_t>(options.seeds().size());
  return options.batch_position() ? options.batch_pictures() : options.num_images_per_prompt();
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

bool is_guided(const SampleOptions& options) { return options.guidance_scale() > 1.0; }

// The steps of a run that are guided, from the first to before the second.
std::pair<int64_t, int64_t> guided_steps(const SampleOptions& options, int64_t total) {
  const double start = options.guidance_start(), end = options.guidance_end();
  TORCH_CHECK_VALUE(0.0 <= start && start <= end && end <= 1.0,
                    "--guidance_start and --guidance_end: expected 0 <= start <= end <= 1, got ",
                    start, " and ", end);
  if (!is_guided(options)) return {0, 0};
  const auto step = [&](double share) {
    return static_cast<int64_t>(share * static_cast<double>(total));
  };
  return {step(start), step(end)};
}

// Gives a guided prediction, in part, the standard deviation of the prompt's own.
torch::Tensor rescaled(const torch::Tensor& guided, const torch::Tensor& own, double share) {
  const auto deviation = [](const torch::Tensor& x) {
    return x.flatten(1).std(1).view({-1, 1, 1, 1});
  };
  const auto even = guided * (deviation(own) / deviation(guided));
  return share * even + (1.0 - share) * guided;
}

}  // namespace

std::unique_ptr<Scheduler> StableDiffusion::scheduler_for(const SampleOptions& options) const {
  auto config = *scheduler_config_;
  const std::string name = options.scheduler().empty() ? default_scheduler() : options.scheduler();
  if (options.use_karras_sigmas()) {
    TORCH_CHECK_VALUE(knows_karras_sigmas(name),
                      "--use_karras_sigmas: expected --scheduler euler, dpmpp_2m or unipc, got ",
                      name);
    config = config.with("use_karras_sigmas", true);
  }
  if (!options.timestep_spacing().empty()) {
    config = config.with("timestep_spacing", options.timestep_spacing());
  }
  auto scheduler = make_scheduler(name, config);
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
PromptEmbeds StableDiffusion::encode_context(const SampleOptions& options) {
  const auto chunks = prompt_chunks(options.prompt(), options.prompt_syntax());
  if (!is_guided(options)) return encode_chunks(chunks, 1, options.clip_skip());
  if (is_sdxl() && index_.force_zeros_for_empty_prompt && !options.negative_prompt()) {
    const auto own = encode_chunks(chunks, 1, options.clip_skip());
    return {at::cat({at::zeros_like(own.states), own.states}),
            at::cat({at::zeros_like(own.pooled), own.pooled})};
  }
  const auto negative =
      prompt_chunks(options.negative_prompt().value_or(""), options.prompt_syntax());
  size_t length = 1;
  for (const auto* both : {&chunks, &negative}) {
    for (const auto& own : *both) length = std::max(length, own.size());
  }
  const auto away = encode_chunks(negative, length),
             own = encode_chunks(chunks, length, options.clip_skip());
  const auto both = [](const torch::Tensor& a, const torch::Tensor& b) {
    return a.defined() ? at::cat({a, b}) : a;
  };
  return {both(away.states, own.states), both(away.pooled, own.pooled)};
}

// (1 or 2, 6) for SDXL, on the device.
torch::Tensor StableDiffusion::context_sizes(const SampleOptions& options,
                                             const torch::Tensor& latents) const {
  const auto& away = options.negative_size();
  TORCH_CHECK_VALUE(is_sdxl() || (options.size().empty() && away.empty()),
                    "'--original_size, --crops_coords_top_left, --target_size': cannot be ",
                    "combined with Stable Diffusion 1.x and 2.x: only SDXL is told about sizes");
  if (!is_sdxl()) return {};
  const int64_t height = latents.size(2) * vae_scale_factor();
  const int64_t width = latents.size(3) * vae_scale_factor();
  auto sizes = time_ids(options.size(), height, width);
  if (is_guided(options)) {
    sizes = at::cat({away.empty() ? sizes : time_ids(away, height, width), sizes});
  }
  return sizes.to(options_.device());
}

// What the UNet is told for each number of pictures that a step computes at once. Made before the
// first step, since layers keep what they compute from a context as long as they see the same
// tensor.
StableDiffusion::Contexts StableDiffusion::contexts_for(const SampleOptions& options,
                                                        const torch::Tensor& latents) {
  const auto context = encode_context(options);
  const auto sizes = context_sizes(options, latents);
  Contexts result;
  for (const auto& part : latents.split(rows_at_once(latents, options))) {
    auto& own = result[{part.size(0), is_guided(options)}];
    if (own.states.defined()) continue;
    own.states = context.states.repeat_interleave(part.size(0), /*dim=*/0);
    if (is_sdxl()) {
      own.added = {context.pooled.repeat_interleave(part.size(0), /*dim=*/0),
                   sizes.repeat_interleave(part.size(0), /*dim=*/0)};
    }
    if (is_guided(options)) result[{part.size(0), false}] = own.prompt_alone();
  }
  return result;
}

StableDiffusion::Conditions StableDiffusion::Conditions::prompt_alone() const {
  const auto half = [](const torch::Tensor& x) { return x.defined() ? x.chunk(2)[1] : x; };
  return {half(states), {half(added.text_embeds), half(added.time_ids)}};
}

torch::Tensor StableDiffusion::guided(const torch::Tensor& output,
                                      const SampleOptions& options) const {
  const auto halves = output.chunk(2);
  const auto result = halves[0] + options.guidance_scale() * (halves[1] - halves[0]);
  const double share = options.guidance_rescale();
  return share > 0 ? rescaled(result, halves[1], share) : result;
}

// The prediction in the latents' dtype; with guidance both prompts go through the UNet as one batch.
torch::Tensor StableDiffusion::predict(RecordedUNet& unet, const torch::Tensor& latents,
                                       double timestep, const Contexts& contexts,
                                       const SampleOptions& options, bool guides) {
  std::vector<torch::Tensor> parts;
  for (const auto& part : latents.split(rows_at_once(latents, options))) {
    const auto input = (guides ? at::cat({part, part}) : part).to(options_.dtype());
    const auto& told = contexts.at({part.size(0), guides});
    const auto output = unet(input, timestep, told.states, told.added).to(latents.scalar_type());
    parts.push_back(guides ? guided(output, options) : output);
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
  const auto contexts = contexts_for(options, latents);
  const auto& timesteps = scheduler->timesteps();
  const auto total = static_cast<int64_t>(timesteps.size() - begin);
  const auto [guided_from, guided_to] = guided_steps(options, total);
  // Of fewer steps nothing would be replayed.
  constexpr int64_t kLeastRecordedSteps = 5;
  RecordedUNet recorded(unet(), options.cuda_graph() && total >= kLeastRecordedSteps);
  if (options.callback()) options.callback()(0, total);
  for (size_t i = begin; i < timesteps.size(); ++i) {
    const auto input = scheduler->scale_model_input(latents, i);
    const auto step_number = static_cast<int64_t>(i - begin);
    const bool guides = guided_from <= step_number && step_number < guided_to;
    const auto output = predict(recorded, input, timesteps[i], contexts, options, guides);
    latents = scheduler->step(output, i, latents, step);
    if (options.callback()) options.callback()(step_number + 1, total);
  }
  return {latents, options.decode() ? decode(latents) : torch::Tensor()};
}

}  // namespace sd
