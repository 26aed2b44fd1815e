// SPDX-License-Identifier: Apache-2.0
// Teaches a Stable Diffusion model a subject from a few pictures, with LoRA adapters in the UNet
// and, if asked to, the text encoder. Ends with the files written, their sizes, and the command that
// draws with them.
#include <filesystem>
#include <iostream>

#include "support/cli/app.h"
#include "support/cli/config.h"
#include "support/cli/format.h"
#include "support/cli/run.h"
#include "pipeline/device.h"
#include "training/checkpoint.h"
#include "training/dreambooth.h"
#include "training/memory.h"
#include "training/model_card.h"

namespace {

using training::DreamBooth;
using training::Flags;

void print_start(const Flags& flags, int64_t samples) {
  const auto& f = flags.optimization;
  const int64_t resolution = *flags.data.resolution;
  const int64_t batches = (samples + f.train_batch_size - 1) / f.train_batch_size;
  std::cout << "***** Running training *****\n"
            << "  Num examples = " << samples << " at " << resolution << "x" << resolution << "\n"
            << "  Num batches each epoch = " << batches << "\n"
            << "  Num processes = " << f.processes << "\n"
            << "  Instantaneous batch size per device = " << f.train_batch_size << "\n"
            << "  Total train batch size = " << f.total_batch_size() << "\n"
            << "  Gradient Accumulation steps = " << f.gradient_accumulation_steps << "\n"
            << "  Total optimization steps = " << *f.max_train_steps << "\n"
            << "  Learning rate = " << *f.learning_rate << "\n";
}

std::filesystem::path in_output(const Flags& flags, const char* name) {
  return std::filesystem::path(flags.run.output_dir) / name;
}

void write_card(const cli::App& app, const Flags& flags) {
  training::ModelCard card;
  card.title = "LoRA of " + flags.instance_prompt;
  card.base_model = flags.model;
  card.prompt = flags.instance_prompt;
  card.trains_text_encoder = flags.adapter.train_text_encoder;
  card.picture_prompt = flags.run.validation_prompt;
  if (std::filesystem::exists(in_output(flags, "contact_sheet.png"))) card.pictures = {"contact_sheet.png"};
  for (const auto& setting : app.settings()) {
    std::string text;
    for (const auto& value : setting.values) text += (text.empty() ? "" : ", ") + value;
    card.settings.emplace_back(setting.name, text);
  }
  training::write_model_card(flags.run.output_dir, card);
}

void print_end(const Flags& flags) {
  const auto print_file = [&](const char* title, const char* name) {
    const auto path = in_output(flags, name);
    const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path));
    std::cout << title << path.string() << " (" << cli::format_bytes(bytes) << ")\n";
  };
  const int64_t peak = training::peak_memory(sd::pick_device(flags.device));
  if (peak > 0) std::cout << "peak memory:    " << cli::format_bytes(peak) << "\n";
  print_file("native file:    ", DreamBooth::kNativeFile);
  print_file("diffusers file: ", DreamBooth::kDiffusersFile);
  std::cout << "draw with it:   text_to_image --pretrained_model_name_or_path " << flags.model
            << (flags.model_config.empty() ? "" : " --model_config " + flags.model_config)
            << " --lora " << in_output(flags, DreamBooth::kNativeFile).string();
  for (const auto& file : flags.learned_embeds) std::cout << " --learned_embeds " << file;
  std::cout << " --prompt \"" << flags.instance_prompt << "\" --output picture.png\n";
}

void run(const cli::App& app, Flags& flags, const distributed::Group& group) {
  flags.check();
  if (group.is_main()) training::prepare_output_folder(flags.run.output_dir);
  DreamBooth dreambooth(flags, group);
  training::Run training_run(dreambooth.trainer(),
                             dreambooth.run_parts(cli::config_text(app.settings())));
  training_run.resume();
  print_start(flags, dreambooth.samples_per_epoch());
  if (group.is_main()) app.write_config(in_output(flags, "config.toml").string());
  training_run.train();
  if (!group.is_main()) return;
  dreambooth.save_weights(flags.run.output_dir);
  write_card(app, flags);
  print_end(flags);
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
  return cli::run(argc, argv, app, [&] {
    distributed::run(app, flags.group,
                     [&](const distributed::Group& group) { run(app, flags, group); });
  });
}
