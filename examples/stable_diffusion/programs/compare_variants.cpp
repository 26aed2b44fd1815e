// SPDX-License-Identifier: Apache-2.0
// Trains the variants of examples/stable_diffusion/research/study/variants.h from one learned word
// and writes a page that compares them. `make study` runs it; under torchrun or mpirun its runs are
// dealt out.
#include <algorithm>
#include <utility>

#include "research/study/page.h"
#include "research/study/plan.h"
#include "support/cli/fmt.h"
#include "support/cli/run.h"
#include "support/distributed/group.h"
#include "support/files/outputs.h"

namespace {

using study::Plan;
using study::Runner;

struct Options {
  study::Settings settings;
  std::string output_dir;
  std::vector<std::string> only;
  int64_t seeds = 3;
  bool quick = false;
  distributed::GroupOptions group;
};

void bind(cli::App& app, Options& o) {
  auto& s = o.settings;
  app.group("Files");
  app.add_option("--pretrained_model_name_or_path", s.model, "Model in diffusers layout");
  app.add_option("--instance_data_dir", s.subject, "The subject's pictures with caption files");
  app.add_option("--subject_words", s.subject_words,
                 "The captions' words for the subject, in whose place the learned word is put");
  app.add_option("--initializer_token", s.initializer,
                 "Word of one token that the learned one starts from");
  app.add_option("--emoji_vectors", s.emoji_vectors, "File of emoji to compare with");
  app.add_option("--emoji", s.emoji, "The emoji that the subject is");
  app.add_option(
      "--output_dir", o.output_dir,
      "Folder for index.md and its pictures (default: docs/study; with --only the folder "
      "only in --work_dir)");
  app.add_option("--work_dir", s.work_dir,
                 "Folder of finished runs; a later study goes on from it");
  app.group("Size of the study");
  app.add_option("--steps", s.steps, "Training steps of each run")->check(cli::at_least(1));
  app.add_option("--inversion_steps", s.inversion_steps, "Steps that learn the word")
      ->check(cli::at_least(1));
  app.add_option("--train_batch_size", s.batch_size, "Pictures of each step")
      ->check(cli::at_least(1));
  app.add_option("--num_inference_steps", s.picture_steps, "Denoising steps of the pictures")
      ->check(cli::at_least(1));
  app.add_option("--seeds", o.seeds, "Runs of each variant at its best rates")
      ->check(cli::at_least(1));
  app.add_option("--only", o.only,
                 "Study this alone, in minutes: a row of the page, such as '1 light, up zero', or "
                 "any variant of the library, such as loha; repeatable");
  app.add_flag("--quick", o.quick, "Two steps of everything, one other rate: does it work at all?");
  distributed::bind(app, o.group);
}

// What is studied, and how long.
study::Settings settings_of(const Options& options) {
  auto settings = options.settings;
  settings.weights = study::weights_fingerprint(settings.model);
  if (!options.quick) return settings;
  settings.steps = settings.inversion_steps = settings.picture_steps = 2;
  settings.batch_size = 1;
  settings.backgrounds = {"blue"};
  return settings;
}

Plan make_plan(const Options& options) {
  Plan plan;
  plan.seeds = options.seeds;
  if (!options.only.empty()) plan.only(options.only);
  if (!options.quick) return plan;
  plan.ranks.resize(std::min<size_t>(1, plan.ranks.size()));  // the first is 1
  plan.split_ranks = {1, 4, 50};
  if (!plan.sizes.empty()) plan.sizes = {{50, 25}};
  for (auto& row : plan.rows) row.other_rates.resize(std::min<size_t>(1, row.other_rates.size()));
  return plan;
}

void run(Options options, const distributed::Group& group) {
  if (options.output_dir.empty()) {
    options.output_dir = options.only.empty() ? "docs/study" : options.settings.work_dir + "/only";
  }
  const Plan plan = make_plan(options);
  const auto settings = settings_of(options);
  if (group.is_main()) {
    sd::make_folder(options.output_dir);
    sd::make_folder(settings.work_dir);
    sd::Outputs outputs;
    outputs.add("--output_dir", options.output_dir + "/index.md");
    outputs.add("--work_dir", settings.work_dir + "/probe");
    outputs.check();
  }
  fmt::print("study: {} rows, {} runs of {} steps, {} seeds; finished runs lie in {}\n",
             plan.rows.size(), plan.runs(), settings.steps, plan.seeds, settings.work_dir);
  for (const auto& variant : plan.rows) {
    if (variant.init == "both_zero") {
      fmt::print(
          "warning: {} starts on a saddle: every gradient is exactly zero there, so nothing will "
          "be learned\n",
          variant.name);
    }
  }
  const auto experiment = study::make_experiment(settings, group);
  Runner runner(*experiment, group, plan.runs());
  study::Study study;
  study.settings = settings;
  for (auto& row : make_rows(runner, plan)) {
    (row.variant.is_word() ? study.words : study.rows).push_back(std::move(row));
  }
  run_sweeps(runner, plan, study);
  if (!group.is_main()) return;  // what is left takes seconds
  if (const auto* fused = study.find("fused"); fused && !fused->diverged()) {
    study.unsplit_loss = fused->own.front().curve.back().second;
    study.splits = experiment->split(fused->variant, fused->own_rate(), 0, plan.split_ranks);
  }
  study.model = experiment->model_info();
  study.sizes = study::described_sizes();
  study.sd15_layers = study::sd15_layers();
  study::write_page(study, options.output_dir);
  fmt::print("\n{}\npage: {}/index.md, with contact.png, curves.png{}\n", study::findings(study),
             options.output_dir, options.only.empty() ? " and ranks.png" : "");
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  cli::App app("compare_variants",
               "Trains every variant from one learned word and writes a page that compares them.",
               "compare_variants --steps 300 --seeds 5 --work_dir study-long");
  bind(app, options);
  return cli::run(argc, argv, app, [&] {
    distributed::run(app, options.group,
                     [&](const distributed::Group& group) { run(options, group); });
  });
}
