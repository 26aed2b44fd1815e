// SPDX-License-Identifier: Apache-2.0
// pretrain: makes a small Stable Diffusion model from nothing, stage by stage.
// Prints at the end: "<stage>: <n> steps done; OUTPUT_DIR" (tokenizer: "<n> tokens"; measure: the
// figures, as the table of the model's card and as JSON).
#include <string>
#include <utility>
#include <vector>

#include "pipeline/device.h"
#include "research/pretraining/figures.h"
#include "research/pretraining/folder.h"
#include "research/pretraining/stages.h"
#include "support/cli/app.h"
#include "support/cli/fmt.h"
#include "support/cli/run.h"
#include "support/distributed/fingerprint.h"
#include "support/files/json_file.h"

namespace {

struct Flags {
  pretraining::StageOptions options;
  std::string config, stage, precision = "bf16", device = "auto";
  distributed::GroupOptions group;
};

void bind(cli::App& app, Flags& f) {
  app.group("Input");
  app.add_option("--config", f.config, "JSON file with the sizes and schedules")->required();
  app.add_option("--dataset_dir", f.options.dataset_dir, "Folder that make_dataset wrote")
      ->required();
  app.add_option("--init_from", f.options.init_from,
                 "diffusion: start from the weights of this model, made with the same sizes and "
                 "tokenizer")
      ->free_on_resume();
  app.group("Training");
  app.add_option("--stage", f.stage, "What to train, or measure")
      ->required()
      ->check(cli::one_of({"tokenizer", "vae", "diffusion", "decoder", "measure"}));
  app.add_option("--stop_at", f.options.stop_at,
                 "Stop after this many steps in all; a later call goes on (-1: do not stop early)")
      ->check(cli::at_least(-1))
      ->free_on_resume();
  app.add_option("--mixed_precision", f.precision, "Compute in bf16 over fp32 weights, or in fp32")
      ->check(cli::one_of({"no", "bf16"}));
  app.add_option("--device", f.device, "Where to compute")->check(cli::one_of(sd::device_names()));
  app.group("Output");
  app.add_option("--output_dir", f.options.output_dir,
                 "The model's folder; logs, samples and checkpoints lie beside its parts")
      ->required();
  distributed::bind(app, f.group);
}

void run(Flags f, std::vector<cli::Setting> settings, const distributed::Group& group) {
  auto& options = f.options;
  options.settings = std::move(settings);
  options.config = sd::read_json_file(f.config);
  options.bf16 = f.precision == "bf16";
  options.device = sd::pick_device(f.device);
  options.group = group;
  distributed::Fingerprint print;
  print.add(options.config.dump());
  group.require_same("--config", print.hexadecimal());
  const bool shared = f.stage == "vae" || f.stage == "diffusion" || f.stage == "decoder";
  if (!shared && !group.is_main()) return;
  if (f.stage == "tokenizer") {
    fmt::print("tokenizer: {} tokens; {}\n", pretraining::train_tokenizer(options),
               options.output_dir);
    return;
  }
  if (f.stage == "measure") {
    const auto figures = pretraining::measure_model(options);
    fmt::print("{}\n{}\n", pretraining::card_of(figures), figures.dump(2));
    return;
  }
  const int64_t steps = f.stage == "vae"         ? pretraining::train_vae(options)
                        : f.stage == "diffusion" ? pretraining::train_diffusion(options)
                                                 : pretraining::train_decoder(options);
  fmt::print("{}: {} steps done; {}\n", f.stage, steps, options.output_dir);
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  cli::App app(
      "pretrain",
      "Makes a small Stable Diffusion model from nothing. Stages in their order: tokenizer, "
      "vae, diffusion, decoder, which sharpens the autoencoder afterwards, and measure, which "
      "says how good the model is. A stage that was stopped goes on where it was.",
      "pretrain --config examples/stable_diffusion/research/pretraining/base.json --dataset_dir "
      "data --stage vae --output_dir model");
  bind(app, flags);
  return cli::run(argc, argv, app, [&] {
    distributed::run(app, flags.group, [&](const distributed::Group& group) {
      pretraining::with_config_name(flags.config, [&] { run(flags, app.settings(), group); });
    });
  });
}
