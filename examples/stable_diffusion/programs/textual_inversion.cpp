// SPDX-License-Identifier: Apache-2.0
// Teaches a Stable Diffusion model a new word from a few pictures: only the word's vectors are
// learned. Ends with the file written and the command that draws with it.
#include <filesystem>
#include <iostream>

#include "support/cli/app.h"
#include "support/cli/config.h"
#include "support/cli/format.h"
#include "support/cli/run.h"
#include "training/checkpoint.h"
#include "training/inversion.h"
#include "training/word_folder.h"

namespace {

using training::Inversion;
using training::InversionFlags;

void print_start(const InversionFlags& flags, const Inversion& inversion) {
  const auto& f = flags.optimization;
  std::cout << "***** Running training *****\n"
            << "  Num examples = " << inversion.samples_per_epoch() << " at "
            << *flags.data.resolution << "x" << *flags.data.resolution << "\n"
            << "  Trained values = " << inversion.trained_values() << "\n"
            << "  Num processes = " << f.processes << "\n"
            << "  Total train batch size = " << f.total_batch_size() << "\n"
            << "  Total optimization steps = " << *f.max_train_steps << "\n"
            << "  Learning rate = " << *f.learning_rate << "\n";
}

void run(const cli::App& app, InversionFlags& flags, const distributed::Group& group) {
  flags.check();
  if (group.is_main()) training::prepare_output_folder(flags.run.output_dir);
  Inversion inversion(flags, group);
  training::Run training_run(inversion.trainer(),
                             inversion.run_parts(cli::config_text(app.settings())));
  training_run.resume();
  print_start(flags, inversion);
  const std::filesystem::path folder = flags.run.output_dir;
  if (group.is_main()) app.write_config((folder / "config.toml").string());
  training_run.train();
  if (!group.is_main()) return;
  const auto path = (folder / Inversion::kFile).string();
  inversion.save(path);
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path));
  if (flags.save_as_full_pipeline) {
    training::save_word_folder(inversion.pipeline(), inversion.embedding(), folder.string());
    std::cout << "model with it:  " << folder.string() << "\n";
  }
  std::cout << "learned word:   " << path << " (" << cli::format_bytes(bytes) << ")\n"
            << "draw with it:   text_to_image --pretrained_model_name_or_path " << flags.model
            << (flags.model_config.empty() ? "" : " --model_config " + flags.model_config)
            << " --learned_embeds " << path << " --prompt \"a photo of " << flags.placeholder_token
            << "\" --output picture.png\n";
}

}  // namespace

int main(int argc, char** argv) {
  InversionFlags flags;
  cli::App app("textual_inversion",
               "Teaches a Stable Diffusion 1.x or 2.x model a new word from a few pictures.",
               "textual_inversion --pretrained_model_name_or_path stable-diffusion-v1-5 "
               "--train_data_dir photos --placeholder_token '<my-cat>' --initializer_token cat "
               "--output_dir word");
  training::add_inversion_flags(app, flags);
  return cli::run(argc, argv, app, [&] {
    distributed::run(app, flags.group,
                     [&](const distributed::Group& group) { run(app, flags, group); });
  });
}
