// SPDX-License-Identifier: Apache-2.0
#include "training/run_flags.h"

#include <filesystem>

namespace training {

void add_run_flags(cli::App& app, RunFlags& f) {
  app.group("Files");
  app.add_option("--output_dir", f.output_dir, "Folder for the results");
  app.add_option("--checkpointing_steps", f.checkpointing_steps,
                 "Save a checkpoint, from which a run can go on, after so many steps")
      ->check(cli::at_least(1));
  app.add_option("--checkpoints_total_limit", f.checkpoints_total_limit,
                 "Keep only so many checkpoints (default: all)")
      ->check(cli::at_least(1));
  app.add_option("--resume_from_checkpoint", f.resume_from_checkpoint,
                 "Go on from a checkpoint: 'latest', a name as checkpoint-500, or a folder");
  app.group("Seeing it");
  app.add_option("--report_to", f.report_to, "Besides metrics.jsonl, also write files for this")
      ->check(cli::one_of({"tensorboard", "none"}));
  app.add_option("--logging_dir", f.logging_dir,
                 "Folder for TensorBoard's files, inside the output folder");
  app.add_option("--validation_prompt", f.validation_prompt,
                 "Draw this on the way, from the same noise each time");
  app.add_option("--num_validation_images", f.num_validation_images, "How many pictures of it")
      ->check(cli::at_least(1));
  app.add_option("--validation_epochs", f.validation_epochs,
                 "Validate (pictures, and a loss of fixed noise) after so many epochs")
      ->check(cli::at_least(1));
  app.add_option("--validation_steps", f.validation_steps,
                 "Validate after so many steps instead")
      ->check(cli::at_least(1));
}

std::string RunFlags::tensorboard_folder() const {
  if (report_to != "tensorboard") return "";
  return (std::filesystem::path(output_dir) / logging_dir).string();
}

int64_t RunFlags::validation_interval(int64_t steps_per_epoch, bool has_split) const {
  if (validation_steps) return *validation_steps;
  return validation_prompt.empty() && !has_split ? 0 : validation_epochs * steps_per_epoch;
}

}  // namespace training
