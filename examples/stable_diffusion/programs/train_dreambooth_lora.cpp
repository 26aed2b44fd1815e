// SPDX-License-Identifier: Apache-2.0
// Teaches a Stable Diffusion model a subject from a few pictures, with LoRA adapters in the UNet
// and, if asked to, the text encoders. Ends with the files written, their sizes, and the command
// that draws with them.
#include <filesystem>

#include "pipeline/device.h"
#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/cli/run.h"
#include "training/dreambooth.h"
#include "training/dry_run.h"
#include "training/memory.h"

namespace {

using training::DreamBooth;
using training::DreamBoothOptions;

std::string output_file(const DreamBoothOptions& options, const char* name) {
  return (std::filesystem::path(options.run.output_dir) / name).string();
}

void print_file(const char* title, const std::string& path) {
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path));
  fmt::print("{}{} ({})\n", title, path, cli::format_bytes(bytes));
}

void print_end(const DreamBoothOptions& options) {
  const int64_t peak = training::peak_memory(sd::pick_device(options.machine.device));
  if (peak > 0) fmt::print("peak memory:    {}\n", cli::format_bytes(peak));
  print_file("native file:    ", output_file(options, DreamBooth::kNativeFile));
  // Variants without factors have none.
  const std::string factors = output_file(options, DreamBooth::kDiffusersFile);
  if (std::filesystem::exists(factors)) print_file("diffusers file: ", factors);
  fmt::print("draw with it:   {}\n",
             training::draw_command(options, output_file(options, DreamBooth::kNativeFile)));
}

}  // namespace

int main(int argc, char** argv) {
  DreamBoothOptions options;
  cli::App app("train_dreambooth_lora",
               "Teaches a Stable Diffusion 1.x, 2.x or XL model a subject from a few pictures.",
               "train_dreambooth_lora --pretrained_model_name_or_path stable-diffusion-v1-5 "
               "--instance_data_dir photos --instance_prompt 'a photo of sks dog' --output_dir out "
               "--variant light --max_train_steps 500");
  training::bind(app, options);
  bool dry_run = false;
  app.add_flag("--dry_run", dry_run,
               "Say what the run would need, and stop: steps, memory by part of the run, work, "
               "files; in seconds, for --device cuda also without a GPU");
  return cli::run(argc, argv, app, [&] {
    if (dry_run) return fmt::print("{}", training::dry_run(options).text());
    distributed::run(app, options.group, [&](const distributed::Group& group) {
      training::train_dreambooth(options, group);
      if (group.is_main()) print_end(options);
    });
  });
}
