// SPDX-License-Identifier: Apache-2.0
// Teaches a Stable Diffusion model a subject from a few pictures, with LoRA adapters in the UNet.
// Ends with the files written, their sizes, and the command that draws with them.
#include <lightlora/formats/diffusers.h>
#include <torch/torch.h>

#include <algorithm>
#include <filesystem>
#include <iostream>

#include "cli/app.h"
#include "cli/format.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/run.h"
#include "stable_diffusion/device.h"
#include "stable_diffusion/pipeline.h"
#include "training/dreambooth.h"
#include "training/flags.h"

namespace {

using training::Flags;

// The adapters that the flags describe, in the UNet.
lightlora::Patched patch_unet(sd::StableDiffusion& pipeline, const Flags& flags) {
  torch::manual_seed(flags.seed);
  auto lora = lightlora::patch(*pipeline.unet(), flags.variant, flags.lora_options(),
                               lightlora::Targets(flags.target_modules));
  std::cout << lora->report().to_string() << "\n" << lora->adapters()[0]->description() << "\n";
  if (flags.init == "both_zero") {
    std::cout << "warning: --init both_zero is a saddle: every gradient is exactly zero there, so "
                 "nothing will be learned\n";
  }
  return lora;
}

training::ImageDataset load_pictures(const Flags& flags, int64_t resolution) {
  training::ImageDataset dataset(
      flags.instance_data_dir,
      {resolution, flags.center_crop, images::filter_by_name(flags.image_interpolation_mode)});
  for (const auto& name : dataset.skipped()) {
    std::cout << "notice: '" << name << "' in " << flags.instance_data_dir
              << " is not a picture and is left out\n";
  }
  return dataset;
}

void print_start(const Flags& flags, int64_t pictures, int64_t resolution) {
  const int64_t total_batch = flags.train_batch_size * flags.gradient_accumulation_steps;
  std::cout << "***** Running training *****\n"
            << "  Num examples = " << pictures << " at " << resolution << "x" << resolution << "\n"
            << "  Instantaneous batch size per device = " << flags.train_batch_size << "\n"
            << "  Total train batch size = " << total_batch << "\n"
            << "  Gradient Accumulation steps = " << flags.gradient_accumulation_steps << "\n"
            << "  Total optimization steps = " << *flags.max_train_steps << "\n"
            << "  Learning rate = " << *flags.learning_rate << "\n";
}

// Trains until done or Ctrl-C.
void train(training::DreamBoothTrainer& trainer, int64_t steps) {
  cli::Progress progress("Steps", steps);
  double smoothed = 0;
  while (trainer.steps_done() < steps && !cli::interrupted()) {
    const auto report = trainer.step();
    // Single losses jump with their timesteps: a running mean over about 50 steps shows the trend.
    const auto weight = std::max(0.02, 1.0 / static_cast<double>(trainer.steps_done()));
    smoothed += weight * (report.loss - smoothed);
    progress.update(trainer.steps_done(),
                    {{"loss", smoothed}, {"lr", report.learning_rate}});
  }
  progress.finish();
  if (trainer.steps_done() < steps) {
    std::cout << "stopped by request after " << trainer.steps_done() << " of " << steps
              << " steps; saving what was learned\n";
  }
}

void save(const lightlora::Patched& lora, const Flags& flags) {
  const lightlora::Components components{{"unet", lora->state()}};
  lightlora::Components exported = components;
  if (flags.split_rank) {
    exported["unet"] = lightlora::split_fused(components.at("unet"), *flags.split_rank);
  }
  const auto folder = std::filesystem::path(flags.output_dir);
  const auto native = (folder / "lightlora.safetensors").string();
  const auto diffusers = (folder / "pytorch_lora_weights.safetensors").string();
  lightlora::save_native(native, components, {{"instance_prompt", flags.instance_prompt}});
  lightlora::save_diffusers(diffusers, exported);
  const auto size = [](const std::string& path) {
    return cli::format_bytes(static_cast<int64_t>(std::filesystem::file_size(path)));
  };
  std::cout << "native file:    " << native << " (" << size(native) << ")\n"
            << "diffusers file: " << diffusers << " (" << size(diffusers) << ")\n"
            << "draw with it:   text_to_image --pretrained_model_name_or_path " << flags.model
            << " --lora " << native << " --prompt \"" << flags.instance_prompt
            << "\" --output picture.png\n";
}

void run(Flags flags) {
  flags.check();
  std::filesystem::create_directories(flags.output_dir);
  const auto dtype = flags.weight_dtype();
  const auto options = sd::StableDiffusionOptions().device(sd::pick_device(flags.device)).dtype(dtype);
  sd::StableDiffusion pipeline(flags.model, options);
  const int64_t resolution = flags.resolution.value_or(pipeline.default_size()[0]);
  auto dataset = load_pictures(flags, resolution);
  flags.resolve_steps(dataset.size());
  const auto lora = patch_unet(pipeline, flags);
  print_start(flags, dataset.size(), resolution);

  training::DreamBoothModels models{pipeline.unet(), pipeline.vae(),
                                    sd::NoiseSchedule(pipeline.scheduler_config()),
                                    pipeline.encode_prompt({flags.instance_prompt})};
  {
    training::DreamBoothTrainer trainer(models, std::move(dataset), lora, flags.schedule(),
                                        flags.trainer_options());
    train(trainer, *flags.max_train_steps);
  }
  save(lora, flags);
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  cli::App app("train_dreambooth_lora",
               "Teaches a Stable Diffusion 1.x or 2.x model a subject from a few pictures.",
               "train_dreambooth_lora --pretrained_model_name_or_path stable-diffusion-v1-5 "
               "--instance_data_dir photos --instance_prompt 'a photo of sks dog' --output_dir out "
               "--variant light --max_train_steps 500");
  training::add_flags(app, flags);
  return cli::run(argc, argv, app, [&] { run(flags); });
}
