// SPDX-License-Identifier: Apache-2.0
// Trains every variant of examples/stable_diffusion/research/study/variants.h from one learned word and writes a page that
// compares them. `make study` runs it; under torchrun or mpirun its runs are dealt out.
#include <algorithm>
#include <iostream>
#include <utility>

#include "support/cli/app.h"
#include "support/cli/run.h"
#include "support/distributed/group.h"
#include "research/study/page.h"
#include "research/study/plan.h"

namespace {

using study::Plan;
using study::Runner;

struct Flags {
  study::Settings settings;
  std::string output_dir = "docs/study";
  int64_t seeds = 3;
  bool quick = false;
  distributed::GroupOptions group;
};

void add_flags(cli::App& app, Flags& f) {
  auto& s = f.settings;
  app.group("Files");
  app.add_option("--pretrained_model_name_or_path", s.model, "Model in diffusers layout");
  app.add_option("--instance_data_dir", s.subject, "The subject's pictures with caption files");
  app.add_option("--subject_words", s.subject_words,
                 "The captions' words for the subject, in whose place the learned word is put");
  app.add_option("--initializer_token", s.initializer,
                 "Word of one token that the learned one starts from");
  app.add_option("--emoji_vectors", s.emoji_vectors, "File of emoji to compare with");
  app.add_option("--emoji", s.emoji, "The emoji that the subject is");
  app.add_option("--output_dir", f.output_dir, "Folder for index.md and its pictures");
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
  app.add_option("--seeds", f.seeds, "Runs of each variant at its best rates")
      ->check(cli::at_least(1));
  app.add_flag("--quick", f.quick, "Two steps of everything, one other rate: does it work at all?");
  distributed::add_group_flags(app, f.group);
}

Plan make_plan(Flags& flags) {
  Plan plan;
  plan.seeds = flags.seeds;
  if (!flags.quick) return plan;
  auto& settings = flags.settings;
  settings.steps = settings.inversion_steps = settings.picture_steps = 2;
  settings.batch_size = 1;
  settings.backgrounds = {"blue"};
  plan.ranks = {1};
  plan.split_ranks = {1, 4, 50};
  plan.sizes = {{50, 25}};
  for (auto& row : plan.rows) row.other_rates.resize(std::min<size_t>(1, row.other_rates.size()));
  return plan;
}

void run(Flags& flags, const distributed::Group& group) {
  const Plan plan = make_plan(flags);
  std::cout << "study: " << plan.rows.size() << " rows, " << plan.runs() << " runs of "
            << flags.settings.steps << " steps, " << plan.seeds << " seeds; finished runs lie in "
            << flags.settings.work_dir << std::endl;
  for (const auto& variant : plan.rows) {
    if (variant.init == "both_zero") {
      std::cout << "warning: " << variant.name << " starts on a saddle: every gradient is exactly "
                << "zero there, so nothing will be learned\n";
    }
  }
  const auto experiment = study::make_experiment(flags.settings, group);
  Runner runner(*experiment, group, plan.runs());
  study::Study study;
  study.settings = flags.settings;
  for (auto& row : make_rows(runner, plan)) {
    (row.variant.is_word() ? study.words : study.rows).push_back(std::move(row));
  }
  run_sweeps(runner, plan, study);
  if (!group.is_main()) return;  // what is left takes seconds
  if (const auto* fused = study.find("fused"); fused && !fused->diverged()) {
    study.unsplit_loss = fused->own.front().curve.back().second;
    study.splits = experiment->split(fused->variant, fused->own_rate(), 0, plan.split_ranks);
  }
  study.facts = experiment->facts();
  study.sizes = study::described_sizes();
  study.sd15_layers = study::sd15_layers();
  study::write_page(study, flags.output_dir);
  std::cout << "\n"
            << study::findings(study) << "\npage: " << flags.output_dir
            << "/index.md, with contact.png, curves.png and ranks.png\n";
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  cli::App app("compare_variants",
               "Trains every variant from one learned word and writes a page that compares them.",
               "compare_variants --steps 300 --seeds 5 --work_dir study-long");
  add_flags(app, flags);
  return cli::run(argc, argv, app, [&] {
    distributed::run(app, flags.group, [&](const distributed::Group& group) { run(flags, group); });
  });
}
