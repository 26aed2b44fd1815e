// SPDX-License-Identifier: Apache-2.0
// Draws pictures of a prompt with a Stable Diffusion model and any number of LoRA files.
// Ends with one line for each picture written.
#include <lightlora/formats/safetensors.h>
#include <lightlora/version.h>
#include <torch/torch.h>

#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "cli/app.h"
#include "cli/progress.h"
#include "cli/run.h"
#include "images/png.h"
#include "images/tensor.h"
#include "stable_diffusion/device.h"
#include "stable_diffusion/lora.h"
#include "stable_diffusion/pipeline.h"

namespace {

struct Flags {
  std::string model, output, initial_latents, save_latents;
  std::vector<std::string> loras;
  std::optional<int64_t> split_rank, height, width;
  std::optional<uint64_t> seed;
  std::string device = "auto", dtype = "fp32";
  bool print_tokens = false;
  // What SampleOptions takes, with its defaults.
  std::string prompt, negative_prompt, scheduler = "ddim";
  int64_t num_inference_steps = 50, num_images_per_prompt = 1;
  double guidance_scale = 7.5, eta = 0;
};

void add_flags(cli::App& app, Flags& f) {
  app.group("Model");
  app.add_option("--pretrained_model_name_or_path", f.model,
                 "Stable Diffusion model: a folder in diffusers layout")
      ->required();
  app.add_option("--lora", f.loras,
                 "LoRA of any common dialect, or a PEFT folder, as FILE or FILE:WEIGHT; repeatable");
  app.add_option("--split_rank", f.split_rank,
                 "Cut Fused adapters of native files to this rank (default: their full rank)")
      ->check(cli::at_least(1));
  app.group("Picture");
  app.add_option("--prompt", f.prompt, "What to draw")->required();
  app.add_option("--negative_prompt", f.negative_prompt, "What to keep away from");
  app.add_option("--output", f.output,
                 "PNG file to write; several pictures become FILE-0.png, FILE-1.png, ...");
  app.add_option("--num_images_per_prompt", f.num_images_per_prompt, "How many pictures")
      ->check(cli::at_least(1));
  app.add_option("--height", f.height, "Height in pixels (default: the model's)")
      ->check(cli::at_least(1));
  app.add_option("--width", f.width, "Width in pixels (default: the model's)")
      ->check(cli::at_least(1));
  app.add_option("--seed", f.seed, "Seed of the noise (default: a new one, printed)");
  app.group("Sampling");
  app.add_option("--num_inference_steps", f.num_inference_steps, "Denoising steps")
      ->check(cli::at_least(1));
  app.add_option("--guidance_scale", f.guidance_scale,
                 "How strictly to follow the prompt; 1 or less switches guidance off");
  app.add_option("--scheduler", f.scheduler, "Sampling method")
      ->check(cli::one_of(sd::scheduler_names()));
  app.add_option("--eta", f.eta, "Share of fresh noise of ddim, 0 to 1")->check(cli::between(0, 1));
  app.add_option("--initial_latents", f.initial_latents,
                 "safetensors file with a tensor 'latents' (n, 4, h, w) to start from");
  app.add_option("--save_latents", f.save_latents, "Write the final latents to this file");
  app.group("Running");
  app.add_option("--device", f.device, "Where to compute")->check(cli::one_of(sd::device_names()));
  app.add_option("--dtype", f.dtype, "Precision of the weights")
      ->check(cli::one_of(sd::dtype_names()));
  app.add_flag("--print_tokens", f.print_tokens,
               "Print the prompt's token ids, a JSON array for each chunk, and stop");
}

void print_tokens(const Flags& flags) {
  const sd::Tokenizer tokenizer((std::filesystem::path(flags.model) / "tokenizer").string());
  for (const auto& chunk : tokenizer.encode_chunks(flags.prompt)) {
    std::cout << nlohmann::json(chunk).dump() << "\n";
  }
}

sd::SampleOptions sample_options(const Flags& flags, uint64_t seed) {
  auto options = sd::SampleOptions()
                     .prompt(flags.prompt)
                     .negative_prompt(flags.negative_prompt)
                     .num_inference_steps(flags.num_inference_steps)
                     .guidance_scale(flags.guidance_scale)
                     .height(flags.height)
                     .width(flags.width)
                     .num_images_per_prompt(flags.num_images_per_prompt)
                     .seed(seed)
                     .scheduler(flags.scheduler)
                     .eta(flags.eta);
  if (!flags.initial_latents.empty()) {
    const lightlora::SafetensorsFile file(flags.initial_latents);
    TORCH_CHECK(file.contains("latents"), "'", flags.initial_latents,
                "': expected a tensor 'latents' (n, 4, h, w), got none");
    options.initial_latents(file.load("latents").to(torch::kFloat));
  }
  return options;
}

// The settings as A1111 and its relatives write and read them.
std::string parameters_text(const Flags& flags, uint64_t seed, const images::Image& picture) {
  std::ostringstream text;
  text << flags.prompt << "\n";
  if (!flags.negative_prompt.empty()) text << "Negative prompt: " << flags.negative_prompt << "\n";
  text << "Steps: " << flags.num_inference_steps << ", Sampler: " << flags.scheduler
       << ", CFG scale: " << flags.guidance_scale << ", Seed: " << seed << ", Size: "
       << picture.width << "x" << picture.height << ", Model: " << flags.model;
  for (const auto& lora : flags.loras) text << ", Lora: " << lora;
  text << ", Version: lightlora " << LIGHTLORA_VERSION;
  return text.str();
}

std::string numbered(const std::string& path, int64_t index, int64_t count) {
  if (count == 1) return path;
  const std::string suffix = "-" + std::to_string(index);
  const bool png = path.size() > 4 && path.compare(path.size() - 4, 4, ".png") == 0;
  return png ? path.substr(0, path.size() - 4) + suffix + ".png" : path + suffix;
}

void generate(const Flags& flags) {
  TORCH_CHECK_VALUE(!flags.output.empty(), "--output: expected a file to write, got none");
  const auto options = sd::StableDiffusionOptions()
                           .device(sd::pick_device(flags.device))
                           .dtype(sd::pick_dtype(flags.dtype));
  sd::StableDiffusion pipeline(flags.model, options);
  std::vector<sd::LoRAChoice> choices;
  for (const auto& text : flags.loras) choices.push_back(sd::parse_lora(text));
  const auto loras = sd::merge_loras(pipeline, choices, flags.split_rank);

  for (const auto& prompt : {flags.prompt, flags.negative_prompt}) {
    const auto warning = pipeline.tokenizer().truncation_warning(prompt);
    if (!warning.empty()) std::cout << "notice: " << warning << "\n";
  }
  const uint64_t seed = flags.seed.value_or(std::random_device{}());
  auto sampling = sample_options(flags, seed);
  cli::Progress progress("Drawing", flags.num_inference_steps);
  sampling.callback([&](int64_t done, int64_t) { progress.update(done); });
  const auto result = pipeline.sample(sampling);
  progress.finish();

  if (!flags.save_latents.empty()) {
    lightlora::save_safetensors(flags.save_latents,
                                {{"latents", result.latents.to(torch::kCPU, torch::kFloat)}});
    std::cout << "latents: " << flags.save_latents << "\n";
  }
  const int64_t count = result.pictures.size(0);
  for (int64_t i = 0; i < count; ++i) {
    const auto picture = images::to_image(result.pictures[i] * 2 - 1);
    const std::string path = numbered(flags.output, i, count);
    images::save_png(path, picture, {{"parameters", parameters_text(flags, seed, picture)}});
    std::cout << "picture: " << path << " (seed " << seed << ")\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  cli::App app("text_to_image",
               "Draws pictures of a prompt with a Stable Diffusion 1.x or 2.x model.",
               "text_to_image --pretrained_model_name_or_path stable-diffusion-v1-5 --lora "
               "out/pytorch_lora_weights.safetensors:0.8 --prompt 'a photo of sks dog in a bucket' "
               "--seed 1 --output dog.png");
  add_flags(app, flags);
  return cli::run(argc, argv, app,
                  [&] { flags.print_tokens ? print_tokens(flags) : generate(flags); });
}
