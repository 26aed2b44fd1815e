// SPDX-License-Identifier: Apache-2.0
// Trains hypernetworks, personalises things that they have not seen in every way, and writes a page
// that compares them. `make hypernetwork_study` runs it; under torchrun or mpirun its work is shared.
#include "research/hypernetwork_study/page.h"
#include "support/cli/fmt.h"
#include "support/cli/run.h"
#include "support/files/outputs.h"

namespace {

struct Options {
  hyperstudy::Settings settings;
  std::string output_dir = "docs/study";
  bool quick = false;
  distributed::GroupOptions group;
};

void bind_pictures(cli::App& app, hyperstudy::Settings& s) {
  app.group("Input");
  sd::bind_model(app, s.train.model);
  app.add_option("--identities_dir", s.train.identities_dir,
                 "Folder with a sub-folder for each thing to learn from, as make_dataset "
                 "--identities writes it")
      ->required();
  app.add_option("--validation_dir", s.train.validation_dir,
                 "The same of things that no network learns from")
      ->required();
  app.add_option("--instance_prompt", s.train.instance_prompt,
                 "What every thing is called; the prompts add \"on a COLOUR background\"");
  app.add_option("--class_prompt", s.class_prompts,
                 "Something else that the base draws, to see whether it stays so; repeatable");
  app.add_option("--initializer_token", s.initializer,
                 "Word of one token that textual inversion starts from");
}

void bind_networks(cli::App& app, hyperstudy::Settings& s) {
  auto& t = s.train;
  app.group("Networks");
  app.add_option("--network_dir", s.network_dir,
                 "Measure the network in this folder, and train none");
  app.add_option("--network_steps", t.max_train_steps, "Updates of each network")
      ->check(cli::at_least(1));
  app.add_option("--network_batch_size", t.train_batch_size, "Things in each")
      ->check(cli::at_least(1));
  app.add_option("--pictures_per_identity", t.pictures_per_identity, "Pictures of each of them")
      ->check(cli::at_least(1));
  app.add_option("--network_learning_rate", t.learning_rate, "Their peak learning rate")
      ->check(cli::above(0));
  app.add_option("--width", t.network.width(), "Width of their tokens")->check(cli::at_least(8));
  app.add_option("--grid", t.network.grid(), "They read the picture as so many by so many tokens")
      ->check(cli::at_least(1));
  app.add_option(
      "--without", s.without,
      "Leave a network out, to save time: once, few50, few200, pictures, weights, fused or "
      "higher; or word, textual inversion; repeatable");
  app.add_option("--target_steps", t.targets.steps, "Steps of each thing's own adapters")
      ->check(cli::at_least(1));
}

void bind_runs(cli::App& app, hyperstudy::Settings& s) {
  app.group("Personalisations");
  app.add_option("--seeds", s.seeds, "Of everything")->check(cli::at_least(1));
  app.add_option("--identities", s.identities, "Things that are personalised")
      ->check(cli::at_least(1));
  app.add_option("--tuning_steps", s.tuning_steps, "Steps after a prediction")
      ->check(cli::at_least(1));
  app.add_option("--long_steps", s.long_steps, "Steps of the longer LoRA DreamBooth")
      ->check(cli::at_least(1));
  app.add_option("--lowest_rate_factor", s.lowest_rate_factor,
                 "Every way of tuning is tried at this multiple of its usual learning rate, ...")
      ->check(cli::above(0));
  app.add_option("--highest_rate_factor", s.highest_rate_factor,
                 "... twice as much, and so on up to this one. If they are one, none is tried")
      ->check(cli::above(0));
  app.add_option("--rate_identities", s.rate_identities, "Things that the rates are tried on")
      ->check(cli::at_least(1));
  app.add_option("--inversion_steps", s.inversion_steps, "Steps of textual inversion")
      ->check(cli::at_least(1));
  app.add_option("--train_batch_size", s.batch_size, "Pictures of each step")
      ->check(cli::at_least(1));
  app.add_option("--pictures", s.pictures, "Pictures drawn to measure")->check(cli::at_least(1));
  app.add_option("--num_inference_steps", s.picture_steps, "Their denoising steps")
      ->check(cli::at_least(1));
}

void run(Options& options, const distributed::Group& group) {
  auto& settings = options.settings;
  if (options.quick) settings.make_quick();
  settings.check();
  if (group.is_main()) {
    sd::make_folder(options.output_dir);
    sd::make_folder(settings.work_dir);
    sd::Outputs outputs;
    outputs.add("--output_dir", options.output_dir + "/hypernetwork.md");
    outputs.add("--work_dir", settings.work_dir + "/probe");
    outputs.check();
  }
  group.barrier();
  hyperstudy::Runner runner(settings, group);
  const auto study = runner.run();
  if (!group.is_main()) return;
  hyperstudy::write_page(study, options.output_dir);
  fmt::print(
      "\n{}\npage: {}/hypernetwork.md, with hypernetwork-pictures.png and "
      "hypernetwork-steps.png\n",
      hyperstudy::findings(study), options.output_dir);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  options.settings.train.instance_prompt = "a sks thing";
  cli::App app(
      "compare_hypernetwork",
      "Trains hypernetworks and compares what they predict, alone and tuned, with other ways "
      "to personalise.",
      "compare_hypernetwork --pretrained_model_name_or_path "
      "examples/stable_diffusion/assets/base --identities_dir data/identities "
      "--validation_dir data/held_out --seeds 3");
  bind_pictures(app, options.settings);
  bind_networks(app, options.settings);
  bind_runs(app, options.settings);
  app.group("Files");
  app.add_option("--output_dir", options.output_dir, "Folder for hypernetwork.md and its pictures");
  app.add_option("--work_dir", options.settings.work_dir,
                 "Folder of networks and runs; a later study goes on from it");
  app.add_flag("--quick", options.quick, "Two steps of everything: does it work at all?");
  distributed::bind(app, options.group);
  return cli::run(argc, argv, app, [&] {
    distributed::run(app, options.group,
                     [&](const distributed::Group& group) { run(options, group); });
  });
}
