// SPDX-License-Identifier: Apache-2.0
#include "training/run.h"

#include <lightlora/file_io.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <set>
#include <sstream>

#include "support/cli/interrupt.h"
#include "support/cli/progress.h"
#include "training/checkpoint.h"

namespace training {

namespace {

constexpr const char* kStateFile = "training_state.safetensors";
constexpr const char* kStateFormat = "lightlora training state 1";

std::string state_path(const std::string& folder) {
  return (std::filesystem::path(folder) / kStateFile).string();
}

// Settings that say where a run goes and what it shows, but not what it learns on the way.
bool may_differ(const std::string& name) {
  static const std::set<std::string> names{
      "output_dir", "max_train_steps", "num_train_epochs", "checkpointing_steps",
      "checkpoints_total_limit", "resume_from_checkpoint", "report_to", "logging_dir",
      "validation_prompt", "num_validation_images", "validation_epochs", "validation_steps",
      "device", "pre_compute_text_embeddings", "split_rank",
      "sample_batch_size", "rendezvous_timeout", "heartbeat_timeout",
      "pretrained_model_name_or_path", "model_config", "allow_trailing_bytes", "instance_data_dir",
      "class_data_dir", "train_data_dir", "save_steps", "save_as_full_pipeline",
      "dataloader_num_workers", "enable_xformers_memory_efficient_attention"};
  return names.count(name) > 0;
}

std::set<std::string> lines_that_matter(const std::string& settings) {
  std::set<std::string> lines;
  std::istringstream text(settings);
  for (std::string line; std::getline(text, line);) {
    if (!may_differ(line.substr(0, line.find(' ')))) lines.insert(line);
  }
  return lines;
}

void print_differences(const std::string& before, const std::string& now) {
  const auto old_lines = lines_that_matter(before), new_lines = lines_that_matter(now);
  for (const auto& line : new_lines) {
    if (old_lines.count(line) > 0) continue;
    std::cout << "notice: the checkpoint was made with other settings than " << line
              << ": the run will not end as one that never stopped\n";
  }
}

}  // namespace

Run::Run(Trainer& trainer, RunParts parts) : trainer_(trainer), parts_(std::move(parts)) {
  parts_.settings += "processes = " + std::to_string(trainer_.group().size()) + "\n";
  if (trainer_.group().is_main()) remove_unfinished_checkpoints(parts_.flags.output_dir);
}

void Run::resume() {
  if (trainer_.group().is_main()) find_and_load();
  trainer_.share_state();
}

// A run that torchrun starts anew goes on from its last checkpoint by itself. So that it is its own,
// such a run has to begin in a folder without any.
void Run::find_and_load() {
  const auto& folder = parts_.flags.output_dir;
  const auto existing = list_checkpoints(folder);
  const auto& group = trainer_.group();
  const std::string wanted =
      group.restarts() > 0 ? "latest" : parts_.flags.resume_from_checkpoint;
  TORCH_CHECK(!wanted.empty() || existing.empty() || !group.may_restart(), "'", folder,
              "': expected no checkpoints of an earlier run where torchrun may restart this one, got ",
              "checkpoint-", existing.empty() ? 0 : existing.back().step, "; hint: ",
              "--resume_from_checkpoint latest goes on from there, or take another --output_dir");
  if (wanted.empty()) {
    if (!existing.empty()) {
      std::cout << "notice: " << folder << " has checkpoints of an earlier run, the last of step "
                << existing.back().step
                << "; hint: --resume_from_checkpoint latest goes on from there\n";
    }
    return;
  }
  const auto checkpoint = find_checkpoint(folder, wanted);
  if (checkpoint.path.empty()) {
    std::cout << "notice: " << folder << " has no checkpoint yet: starting at the beginning\n";
    return;
  }
  load_checkpoint(checkpoint.path);
  std::cout << "resuming from " << checkpoint.path << " at step " << trainer_.steps_done() << " of "
            << parts_.steps << "\n";
}

void Run::load_checkpoint(const std::string& folder) {
  const std::string path = state_path(folder);
  TORCH_CHECK(std::filesystem::exists(path), "'", folder, "': expected a checkpoint with ",
              kStateFile, ", got a folder without it");
  const lightlora::SafetensorsFile file(path);
  const auto text = [&](const std::string& key) {
    const auto found = file.metadata().find(key);
    TORCH_CHECK(found != file.metadata().end(), "'", path, "': expected metadata '", key, "', got none");
    return found->second;
  };
  TORCH_CHECK(text("format") == kStateFormat, "'", path, "': expected format '", kStateFormat,
              "', got '", text("format"), "'");
  parts_.load_weights(folder);
  try {
    trainer_.load_state(file.load_all());
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "'", path, "': ", error.what_without_backtrace());
  }
  const std::string loss = text("smoothed_loss");
  char* end = nullptr;
  smoothed_loss_ = std::strtod(loss.c_str(), &end);
  TORCH_CHECK(!loss.empty() && *end == '\0', "'", path, "': expected a number as metadata ",
              "'smoothed_loss', got '", loss, "'");
  last_checkpoint_ = trainer_.steps_done();
  print_differences(text("settings"), parts_.settings);
}

void Run::require_finite() const {
  TORCH_CHECK(trainer_.is_finite(), "training: step ", trainer_.steps_done(),
              ": expected finite values to save, got some that are not; hint: lower --learning_rate");
}

void Run::save_checkpoint() {
  if (!trainer_.group().is_main()) return;
  const int64_t step = trainer_.steps_done();
  require_finite();
  training::save_checkpoint(parts_.flags.output_dir, step, [&](const std::string& folder) {
    parts_.save_weights(folder);
    lightlora::save_safetensors(state_path(folder), trainer_.state(),
                                {{"format", kStateFormat},
                                 {"smoothed_loss", cli::format_exact(smoothed_loss_)},
                                 {"settings", parts_.settings}});
  });
  last_checkpoint_ = step;
  if (const auto limit = parts_.flags.checkpoints_total_limit) {
    prune_checkpoints(parts_.flags.output_dir, *limit);
  }
}

void Run::validate(RunLog& log) {
  if (!trainer_.group().is_main()) return;
  if (parts_.validation_loss) {
    log.add(trainer_.steps_done(), {{"validation_loss", parts_.validation_loss->measure(trainer_)}});
  }
  if (parts_.validation_pictures) parts_.validation_pictures->draw(*parts_.pipeline, trainer_, log);
}

void Run::report(RunLog& log, const StepReport& step) {
  // Single losses jump with their timesteps: a running mean over about 50 steps shows the trend.
  const auto weight = std::max(0.02, 1.0 / static_cast<double>(trainer_.steps_done()));
  if (!step.skipped) smoothed_loss_ += weight * (step.loss - smoothed_loss_);
  Numbers numbers{{"loss", step.loss},
                  {"smoothed_loss", smoothed_loss_},
                  {"learning_rate", step.learning_rate},
                  {"gradient_norm", step.gradient_norm}};
  if (trainer_.loss_scale() != 1) numbers.emplace_back("loss_scale", trainer_.loss_scale());
  log.add(trainer_.steps_done(), numbers);
}

bool Run::train() {
  const int64_t first = trainer_.steps_done();
  RunLog log;
  if (trainer_.group().is_main()) {
    log = RunLog(parts_.flags.output_dir, parts_.flags.tensorboard_folder(), first);
  }
  if (first == 0 && parts_.validation_interval > 0) validate(log);
  cli::Progress progress("Steps", parts_.steps, {}, first);
  bool stop = trainer_.group().any(cli::interrupted());
  while (trainer_.steps_done() < parts_.steps && !stop) {
    const auto step = trainer_.step(cli::interrupted);
    stop = step.stop;
    report(log, step);
    if (step.skipped) {
      progress.print("notice: step " + std::to_string(trainer_.steps_done()) +
                     " overflowed fp16 and was skipped; the loss scale is now " +
                     std::to_string(static_cast<int64_t>(trainer_.loss_scale())));
    }
    progress.update(trainer_.steps_done(),
                    {{"loss", smoothed_loss_}, {"lr", step.learning_rate}});
    if (due(parts_.flags.checkpointing_steps)) save_checkpoint();
    if (parts_.after_step && trainer_.group().is_main()) parts_.after_step(trainer_.steps_done());
    const bool last = trainer_.steps_done() == parts_.steps;
    if (parts_.validation_interval > 0 && (last || due(parts_.validation_interval))) validate(log);
  }
  progress.finish();
  if (parts_.validation_pictures && trainer_.group().is_main()) {
    parts_.validation_pictures->write_sheet();
  }
  require_finite();
  if (trainer_.steps_done() >= parts_.steps) return true;
  if (last_checkpoint_ != trainer_.steps_done() && trainer_.steps_done() > 0) save_checkpoint();
  std::cout << "stopped by request after " << trainer_.steps_done() << " of " << parts_.steps
            << " steps; saving what was learned. To go on: the same command with "
            << "--resume_from_checkpoint latest\n";
  return false;
}

}  // namespace training
