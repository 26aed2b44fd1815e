// SPDX-License-Identifier: Apache-2.0
#include "generation/options.h"

#include <lightlora/file_io.h>

#include <charconv>
#include <random>

#include "pipeline/device.h"
#include "support/cli/fmt.h"
#include "support/cuda/cards.h"

namespace generation {

namespace {

// SDXL's numbers come in pairs.
void bind_sizes(cli::App& app, GenerationOptions& f) {
  app.group("Sizes that SDXL is told");
  const auto add = [&](const std::string& flag, std::vector<int64_t>& pair,
                       const std::string& description) { app.add_pair(flag, pair, description); };
  add("--original_size", f.sample.size().original_size,
      "Height and width that the picture is to look as if it had before it was resized (default: "
      "the picture's)");
  add("--crops_coords_top_left", f.sample.size().crops_coords_top_left,
      "Top and left of what it is to look as if it was cut out (default: 0 0, well centred)");
  add("--target_size", f.sample.size().target_size, "Height and width (default: the picture's)");
  const std::string away = "The same for what guidance leads away from (default: the same";
  add("--negative_original_size", f.sample.negative_size().original_size, away + ")");
  add("--negative_crops_coords_top_left", f.sample.negative_size().crops_coords_top_left,
      away + "; 0 0 beside another of the three)");
  add("--negative_target_size", f.sample.negative_size().target_size, away + ")");
}

void bind_picture(cli::App& app, GenerationOptions& f) {
  app.group("Picture");
  app.add_option(
      "--prompt", f.sample.prompt(),
      "What to draw. (word), (word:1.3) and [word] weigh words, BREAK begins a new chunk, "
      "<lora:name:0.8> uses a file of --lora_dir; \\( is a bracket");
  app.add_option("--negative_prompt", f.sample.negative_prompt(),
                 "What to keep away from (SDXL: without it zeros and not an empty text, if the "
                 "model says so)");
  app.add_choice(
      "--prompt_syntax", f.prompt_syntax,
      {{"a1111", sd::PromptSyntax::a1111}, {"plain", sd::PromptSyntax::plain}},
      "a1111: as above; plain: every character counts as it is (default a1111, and plain for "
      "--print_tokens)");
  app.add_option(
         "--clip_skip", f.sample.clip_skip(),
         "Layers of the text encoders to leave out at their end, as in diffusers; A1111 counts "
         "one more")
      ->check(cli::at_least(0));
  app.add_option("--output", f.output,
                 "PNG file to write; several pictures become FILE-0.png, FILE-1.png, ...");
  app.add_option("--num_images_per_prompt", f.sample.num_images_per_prompt(), "How many pictures")
      ->check(cli::at_least(1));
  app.add_option("--batch_size", f.sample.batch_size(),
                 "Pictures computed at once, and written when they are done; 0 means up to 4")
      ->check(cli::at_least(0));
  app.add_option("--height", f.sample.height(), "Height in pixels (default: the model's)")
      ->check(cli::at_least(1));
  app.add_option("--width", f.sample.width(), "Width in pixels (default: the model's)")
      ->check(cli::at_least(1));
  app.add_seed("--seed", f.seed, f.new_seed,
               "Seed of the noise of all pictures together; -1 or none is a new one, printed");
  app.add_option("--seeds", f.seeds,
                 "One seed for each picture, such as 1,2,3: each equals --seed by itself");
  app.add_option("--from_png", f.from_png,
                 "Draw with the settings stored in a PNG picture, of this program or A1111; a flag "
                 "given beside it takes the place of the picture's setting");
}

void bind_start_and_grids(cli::App& app, GenerationOptions& f) {
  app.group("Image to image");
  app.add_option("--image", f.image,
                 "Picture to start from; its size, rounded down to what the model can do, is the "
                 "result's, unless --height and --width say otherwise");
  app.add_option("--strength", f.sample.strength(),
                 "How far to leave it: the share of the steps that run")
      ->check(cli::between(0, 1));
  app.group("Grids");
  app.add_flag("--grid", f.grid, "Write all pictures on one sheet too, FILE-grid.png");
  app.add_option("--xy", f.xy,
                 "One sheet instead: an axis as NAME=V1,V2,... with the name lora_weight, seed, "
                 "steps, guidance, strength, clip_skip or scheduler; the first is across, a second "
                 "down");
}

void bind_sampling(cli::App& app, GenerationOptions& f) {
  app.group("Sampling");
  app.add_option("--num_inference_steps", f.sample.num_inference_steps(), "Denoising steps")
      ->check(cli::at_least(1));
  app.add_option("--guidance_scale", f.sample.guidance_scale(),
                 "How strictly to follow the prompt; 1 or less switches guidance off");
  app.add_option("--guidance_rescale", f.sample.guidance_rescale(),
                 "Share of guidance whose contrast is that of the prompt alone, against pictures "
                 "that are too bright; 0.7 is usual with models of v")
      ->check(cli::between(0, 1));
  app.add_option("--guidance_start", f.sample.guidance_start(),
                 "Share of the steps after which guidance begins; before, the prompt alone counts")
      ->check(cli::between(0, 1));
  app.add_option(
         "--guidance_end", f.sample.guidance_end(),
         "Share of the steps after which guidance ends; steps without it take half the time")
      ->check(cli::between(0, 1));
  app.add_option("--scheduler", f.sample.scheduler(),
                 "Sampling method (default: ddim; SDXL: what the model's folder says)")
      ->check(cli::one_of(sd::scheduler_names()));
  app.add_flag("--use_karras_sigmas", f.sample.use_karras_sigmas(),
               "Karras' noise levels, for euler, dpmpp_2m and unipc");
  app.add_option("--timestep_spacing", f.sample.timestep_spacing(),
                 "Which timesteps to take (default: the model's own)")
      ->check(cli::one_of({"leading", "linspace", "trailing"}));
  app.add_option("--eta", f.sample.eta(), "Share of fresh noise of ddim, 0 to 1")
      ->check(cli::between(0, 1));
  app.add_option("--initial_latents", f.initial_latents,
                 "safetensors file with a tensor 'latents' (n, channels, h, w) to start from");
  app.add_option("--save_latents", f.save_latents, "Write the final latents to this file");
}

void bind_files(cli::App& app, GenerationOptions& f) {
  app.group("Model");
  sd::bind_model(app, f.model);
  sd::bind_single_file(app, f.model);
  sd::bind_prediction_type(app, f.model);
  sd::bind_vae(app, f.model);
  sd::bind_unet(app, f.model);
  app.add_option(
      "--lora", f.loras,
      "LoRA of any common dialect, or a PEFT folder, as FILE or FILE:WEIGHT; repeatable");
  app.add_option("--learned_embeds", f.learned_embeds,
                 "Learned embedding of diffusers or A1111, as FILE or FILE:TOKEN; the prompt may "
                 "then use the token; repeatable");
  app.add_option(
      "--merge_to", f.merge_to,
      "Write the model with the LoRA files merged into it as one .safetensors file in the "
      "original layout, in --dtype; without --prompt that is all");
  app.add_option("--lora_dir", f.lora_dir, "Folder of the files that <lora:name:0.8> names");
  app.add_option("--split_rank", f.split_rank,
                 "Cut the adapters of LoRA files to this rank (default: as they are)")
      ->check(cli::at_least(1));
}

}  // namespace

void bind(cli::App& app, GenerationOptions& f) {
  bind_files(app, f);
  bind_picture(app, f);
  bind_sizes(app, f);
  bind_start_and_grids(app, f);
  bind_sampling(app, f);
  app.group("Running");
  app.add_flag("--allow_large", f.allow_large,
               "Lift the limits of 100 places of --xy, 16 million pixels, 100 pictures at once, "
               "1000 pictures, and prompts of 20,000 bytes");
  app.add_option("--device", f.device, "Where to compute")->check(cli::one_of(sd::device_names()));
  cli::Choices<std::optional<c10::ScalarType>> precisions{{"auto", std::nullopt}};
  for (const auto& [word, dtype] : sd::dtype_choices()) precisions.emplace_back(word, dtype);
  app.add_choice("--dtype", f.dtype, precisions,
                 "Precision of the weights (auto: bf16 on a GPU, fp16 on one before Ampere, fp32 "
                 "on a CPU and for --merge_to)");
  app.add_choice(
      "--cuda_graph", f.cuda_graph, {{"auto", std::nullopt}, {"on", true}, {"off", false}},
      "Record the UNet's pass once and replay it in every step: saves a GPU's waiting for "
      "launches (auto: with a GPU)");
  app.add_flag("--allow_tf32", f.allow_tf32,
               "On NVIDIA GPUs since Ampere, multiply fp32 matrices in TF32: faster, less exact");
  app.add_flag("--deterministic", f.deterministic,
               "On a GPU, take algorithms that give equal bytes for equal runs; slower");
  sd::bind_pack_weights(app, f.model);
  sd::bind_base_precision(app, f.model);
  sd::bind_memory_limit(app, f.model);
  app.add_flag("--vae_tiling", f.vae_tiling,
               "Decode and encode large pictures in tiles, to save memory");
  app.add_flag("--print_tokens", f.print_tokens,
               "Print the prompt's token ids, a JSON array for each chunk, and stop");
  distributed::bind(app, f.group);
}

std::vector<std::string> split_list(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else if (c != ' ' || !parts.back().empty()) {
      parts.back() += c;
    }
  }
  for (auto& part : parts) part.erase(part.find_last_not_of(' ') + 1);
  return parts;
}

std::vector<uint64_t> GenerationOptions::seed_list() const {
  std::vector<uint64_t> result;
  if (seeds.empty()) return result;
  for (const auto& part : split_list(seeds)) {
    uint64_t value = 0;
    const auto* end = part.data() + part.size();
    if (part == "-1") {
      result.push_back(0);
      continue;
    }
    const auto read = std::from_chars(part.data(), end, value);
    TORCH_CHECK_VALUE(read.ec == std::errc() && read.ptr == end,
                      "--seeds: expected whole numbers with commas between them, got '", part, "'");
    result.push_back(value);
  }
  return result;
}

c10::ScalarType GenerationOptions::precision_on(c10::Device device) const {
  return dtype.value_or(merge_to.empty() ? cuda::fast_precision(device) : c10::kFloat);
}

uint64_t new_seed(const distributed::Group& group) {
  std::random_device device;
  return static_cast<uint64_t>(group.from_main(static_cast<int64_t>(device())));
}

void settle_seeds(GenerationOptions& options, const distributed::Group& group) {
  if (options.seeds.empty()) return;
  auto parts = split_list(options.seeds);
  for (auto& part : parts) {
    if (part == "-1") part = fmt::to_string(new_seed(group));
  }
  options.seeds = fmt::format("{}", fmt::join(parts, ","));
}

namespace {

// The file's tensor, or the part of the picture that is drawn again.
at::Tensor read_latents(const GenerationOptions& options) {
  const auto& path = options.initial_latents;
  const lightlora::SafetensorsFile file(path);
  TORCH_CHECK(file.contains("latents"), "'", path,
              "': expected a tensor 'latents' (n, channels, h, w), got none");
  const auto latents = file.load("latents").to(torch::kFloat);
  TORCH_CHECK(latents.dim() == 4 && latents.numel() > 0, "'", path,
              "': expected a tensor 'latents' (n, channels, h, w), got ", latents.sizes());
  constexpr int64_t kPictures = 1000, kPlaces = 512 * 512;
  TORCH_CHECK(options.allow_large ||
                  (latents.size(0) <= kPictures && latents.size(2) * latents.size(3) <= kPlaces),
              "'", path, "': expected latents of at most ", kPictures, " pictures and ", kPlaces,
              " places in each, got ", latents.sizes(), "; hint: --allow_large lifts this limit");
  const auto place = options.sample.batch_position();  // of one of the pictures that they began
  if (!place) return latents;
  TORCH_CHECK(*place < latents.size(0), "'", path, "': expected latents of more than ", *place,
              " pictures, as '", options.from_png, "' says, got ", latents.size(0));
  return latents.narrow(0, *place, 1);
}

}  // namespace

sd::SampleOptions sample_options(const GenerationOptions& options, uint64_t seed) {
  auto sample = options.sample;
  sample.seed(seed).seeds(options.seed_list()).prompt_syntax(options.syntax());
  if (!options.initial_latents.empty()) sample.initial_latents(read_latents(options));
  return sample;
}

}  // namespace generation
