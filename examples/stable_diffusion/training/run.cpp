// SPDX-License-Identifier: Apache-2.0
#include "training/run.h"

#include <lightlora/file_io.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "pipeline/device.h"
#include "support/cli/fmt.h"
#include "support/cli/interrupt.h"
#include "support/cli/message.h"
#include "support/cli/progress.h"
#include "support/distributed/fingerprint.h"
#include "support/files/disk.h"
#include "training/checkpoint.h"

namespace training {

namespace {

constexpr const char* kStateFile = "training_state.safetensors";
constexpr const char* kStateFormat = "lightlora training state 1";

std::string file_in(const std::string& folder, const char* name) {
  return (std::filesystem::path(folder) / name).string();
}

// "name = value" lines as a map.
std::map<std::string, std::string> settings_in(const std::string& text) {
  std::map<std::string, std::string> settings;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    const auto equals = line.find(" = ");
    if (equals != std::string::npos) settings[line.substr(0, equals)] = line.substr(equals + 3);
  }
  return settings;
}

/// One training run from its first step, or a checkpoint, to its end.
class Run {
 public:
  Run(Task& task, const RunOptions& options);

  void resume();
  void print_start() const;
  void require_space() const;
  Outcome train();

 private:
  bool is_main() const { return engine_.group().is_main(); }
  void find_and_load();
  void leave_later_checkpoints() const;
  void load_checkpoint(const std::string& folder);
  void print_differences(const std::string& settings_before) const;
  void print_other_inputs(const lightlora::Metadata& metadata) const;
  void require_finite() const;
  lightlora::Metadata metadata() const;
  bool is_own(const Checkpoint& checkpoint) const;
  std::string foreign_checkpoint(int64_t step) const;
  void save_checkpoint();
  void report(RunLog& log, const StepReport& step);
  bool after_step(RunLog& log);
  bool due(int64_t interval) const { return interval > 0 && engine_.steps_done() % interval == 0; }

  Task& task_;
  Engine& engine_;
  const Plan& plan_;
  const RunOptions& options_;
  std::string settings_;  // as checkpoints keep them
  std::string run_;       // the run's identity, which it keeps when it goes on
  double smoothed_loss_ = 0;
  int64_t last_checkpoint_ = -1;
};

Run::Run(Task& task, const RunOptions& options)
    : task_(task),
      engine_(task.engine()),
      plan_(task.plan()),
      options_(options),
      settings_(cli::config_text(plan_.settings) +
                fmt::format("processes = {}\n", plan_.processes)) {
  distributed::Fingerprint print;
  print.add(settings_);
  for (const auto& item : task.fingerprints()) print.add(item.second);
  run_ = print.hexadecimal();
  if (is_main()) remove_unfinished_checkpoints(options_.output_dir);
}

// Rank 0 reads the checkpoint for all.
void Run::resume() {
  if (is_main()) find_and_load();
  engine_.share_state();
}

// A run that torchrun starts anew goes on from its last checkpoint by itself. So that it is its
// own, such a run has to begin in a folder without any.
void Run::find_and_load() {
  const auto& folder = options_.output_dir;
  const auto existing = list_checkpoints(folder);
  const auto& group = engine_.group();
  const std::string wanted = group.restarts() > 0 ? "latest" : options_.resume_from_checkpoint;
  TORCH_CHECK(
      !wanted.empty() || existing.empty() || !group.may_restart(), "'", folder,
      "': expected no checkpoints of an earlier run where torchrun may restart this one, got ",
      "checkpoint-", existing.empty() ? 0 : existing.back().step, "; hint: ",
      "--resume_from_checkpoint latest goes on from there, or take another --output_dir");
  if (wanted.empty()) return;
  const auto checkpoint = find_checkpoint(folder, wanted);
  if (checkpoint.path.empty()) {
    fmt::print("notice: {} has no checkpoint yet: starting at the beginning\n", folder);
    return;
  }
  load_checkpoint(checkpoint.path);
  fmt::print("resuming from {} at step {} of {}\n", checkpoint.path, engine_.steps_done(),
             plan_.steps);
  leave_later_checkpoints();
}

// What this run did beyond the step that it goes back to is of another course: left where it is, the
// next --resume_from_checkpoint latest would take it for this one's.
void Run::leave_later_checkpoints() const {
  const auto step = engine_.steps_done();
  const auto left = leave_checkpoints(options_.output_dir, step,
                                      [&](const Checkpoint& other) { return is_own(other); });
  if (!left.empty()) {
    fmt::print(
        "notice: {} later checkpoint{} of this run {} called {} from now on: the run goes another "
        "way from step {}\n",
        left.size(), left.size() == 1 ? "" : "s", left.size() == 1 ? "is" : "are",
        fmt::join(left, ", "), step);
  }
  const auto rest = list_checkpoints(options_.output_dir);
  if (rest.empty() || rest.back().step <= step) return;
  fmt::print(
      "notice: '{}' is no checkpoint of this run and is later than step {}: "
      "--resume_from_checkpoint latest takes it; hint: move it away\n",
      cli::printable(rest.back().path), step);
}

void Run::load_checkpoint(const std::string& folder) {
  const std::string path = file_in(folder, kStateFile);
  TORCH_CHECK(std::filesystem::exists(path), "'", folder, "': expected a checkpoint with ",
              kStateFile, ", got a folder without it");
  const auto file = open_state(path);
  const auto text = [&](const std::string& key) {
    const auto found = file.metadata().find(key);
    TORCH_CHECK(found != file.metadata().end(), "'", path, "': expected metadata '", key,
                "', got none");
    return found->second;
  };
  TORCH_CHECK(text("format") == kStateFormat, "'", path, "': expected format '", kStateFormat,
              "', got '", text("format"), "'");
  task_.load(folder);
  try {
    engine_.load_state(load_numbers(file));
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "'", path, "': ", error.what_without_backtrace());
  }
  TORCH_CHECK(
      engine_.is_finite(), "'", folder,
      "': expected finite values to go on from, got some that are not; hint: the checkpoint ",
      "is damaged");
  const std::string loss = text("smoothed_loss");
  char* end = nullptr;
  smoothed_loss_ = std::strtod(loss.c_str(), &end);
  TORCH_CHECK(!loss.empty() && *end == '\0', "'", path, "': expected a number as metadata ",
              "'smoothed_loss', got '", loss, "'");
  last_checkpoint_ = engine_.steps_done();
  if (const auto id = file.metadata().find("run"); id != file.metadata().end()) run_ = id->second;
  print_differences(text("settings"));
  print_other_inputs(file.metadata());
}

// Names the settings that are not as they were, apart from those whose flags say that they may
// change.
void Run::print_differences(const std::string& settings_before) const {
  const auto before = settings_in(settings_before), now = settings_in(settings_);
  std::set<std::string> free;
  for (const auto& setting : plan_.settings) {
    if (setting.free_on_resume) free.insert(setting.name);
  }
  const auto notice = [](const std::string& was, const std::string& is) {
    fmt::print(
        "notice: the checkpoint was made with other settings than {}, namely {}: the run will "
        "not end as one that never stopped\n",
        cli::printable(is), cli::printable(was));
  };
  for (const auto& [name, value] : now) {
    const auto found = before.find(name);
    if (free.count(name) > 0 || (found != before.end() && found->second == value)) continue;
    notice(found == before.end() ? "none" : found->second, fmt::format("{} = {}", name, value));
  }
}

// Names what the run learns from that is not what it was.
void Run::print_other_inputs(const lightlora::Metadata& metadata) const {
  for (const auto& [name, value] : task_.fingerprints()) {
    const auto found = metadata.find("fingerprint of " + name);
    if (found == metadata.end() || found->second == value) continue;
    fmt::print(
        "notice: the checkpoint was made with another {}{} (fingerprint {}, now {}): the run will "
        "not end as one that never stopped\n",
        name.find("pictures") == std::string::npos ? "" : "set of ", name,
        cli::printable(found->second), value);
  }
}

void Run::require_finite() const {
  TORCH_CHECK(
      engine_.is_finite(), "training: step ", engine_.steps_done(),
      ": expected finite values to save, got some that are not; hint: lower --learning_rate");
}

void Run::save_checkpoint() {
  if (!is_main()) return;
  const int64_t step = engine_.steps_done();
  require_finite();
  if (const auto path = foreign_checkpoint(step); !path.empty()) {
    fmt::print(
        "notice: '{}' is none of this program's checkpoints and stays as it is: step {} is "
        "not kept as a checkpoint\n",
        path, step);
    last_checkpoint_ = step;
    return;
  }
  const auto state = engine_.state();
  const auto averaged = engine_.averaged();
  training::save_checkpoint(options_.output_dir, step, [&](const std::string& folder) {
    task_.save(folder);
    lightlora::save_safetensors(file_in(folder, kStateFile), state, metadata());
  });
  last_checkpoint_ = step;
  if (const auto limit = options_.checkpoints_total_limit) {
    prune_checkpoints(options_.output_dir, *limit,
                      [&](const Checkpoint& other) { return other.step <= step && is_own(other); });
  }
}

// The name that a checkpoint would have, if something else has it.
std::string Run::foreign_checkpoint(int64_t step) const {
  const auto path = std::filesystem::path(options_.output_dir) / fmt::format("checkpoint-{}", step);
  const bool free = !std::filesystem::exists(std::filesystem::symlink_status(path));
  return free || std::filesystem::exists(path / kStateFile) ? "" : path.string();
}

lightlora::Metadata Run::metadata() const {
  lightlora::Metadata metadata{{"format", kStateFormat},
                               {"run", run_},
                               {"smoothed_loss", cli::format_exact(smoothed_loss_)},
                               {"settings", settings_}};
  for (const auto& [name, value] : task_.fingerprints()) metadata["fingerprint of " + name] = value;
  return metadata;
}

// Whether a checkpoint is of this run, from before it stopped or after.
bool Run::is_own(const Checkpoint& checkpoint) const {
  try {
    const lightlora::SafetensorsFile file(file_in(checkpoint.path, kStateFile));
    const auto id = file.metadata().find("run");
    return id != file.metadata().end() && id->second == run_;
  } catch (const c10::Error&) {
    return false;  // damaged: whosever it is
  }
}

void Run::report(RunLog& log, const StepReport& step) {
  // Single losses jump with their timesteps: a running mean over about 50 steps shows the trend.
  const auto updates = std::max<int64_t>(1, engine_.updates_done());
  const auto weight = std::max(0.02, 1.0 / static_cast<double>(updates));
  if (!step.skipped) smoothed_loss_ += weight * (step.loss - smoothed_loss_);
  Numbers numbers{{"loss", step.loss},
                  {"smoothed_loss", smoothed_loss_},
                  {"learning_rate", step.learning_rate},
                  {"gradient_norm", step.gradient_norm}};
  if (engine_.loss_scale() != 1) numbers.emplace_back("loss_scale", engine_.loss_scale());
  log.add(engine_.steps_done(), numbers);
}

void Run::print_start() const {
  const auto& p = plan_;
  const auto computes_in = engine_.computes_in();
  fmt::print(
      "***** Running training *****\n"
      "  Device = {}\n"
      "  Num examples = {} at {}x{}\n"
      "  Num batches each epoch = {}\n"
      "  Trained values = {}\n"
      "  Num processes = {}\n"
      "  Instantaneous batch size per device = {}\n"
      "  Total train batch size = {}\n"
      "  Gradient Accumulation steps = {}\n"
      "  Total optimization steps = {}\n"
      "  Learning rate = {:.6g}\n",
      sd::describe_device(computes_in.device(), c10::typeMetaToScalarType(computes_in.dtype())),
      p.samples_per_epoch, p.resolution, p.resolution,
      (p.samples_per_epoch + p.batch_size - 1) / p.batch_size, engine_.trained_values(),
      p.processes, p.batch_size, p.total_batch_size, p.accumulated_batches, p.steps,
      p.learning_rate);
  for (const auto& line : p.notices) fmt::print("notice: {}\n", line);
}

// What the run will have written at its end, so that a full disk is found before its first step: half
// precision is the least that values are saved in.
void Run::require_space() const {
  int64_t state = 0;
  for (const auto& item : engine_.state()) state += static_cast<int64_t>(item.second.nbytes());
  const int64_t every = options_.checkpointing_steps, left = plan_.steps - engine_.steps_done();
  const int64_t written = every > 0 ? left / every : 0;
  const int64_t kept = std::min(written, options_.checkpoints_total_limit.value_or(written));
  const int64_t bytes = 2 * engine_.trained_values() + kept * state;
  const bool many = kept > 1;
  sd::require_space(options_.output_dir, bytes,
                    fmt::format("results and {} checkpoint{}", kept, kept == 1 ? "" : "s"),
                    many ? "--checkpoints_total_limit keeps fewer of them" : "the disk is full");
}

// Whether there was anything to do that takes time.
bool Run::after_step(RunLog& log) {
  const bool saves = due(options_.checkpointing_steps);
  if (saves) save_checkpoint();
  if (!is_main()) return saves;
  task_.after_step(engine_.steps_done());
  const bool last = engine_.steps_done() == plan_.steps;
  const bool validates = plan_.validation_interval > 0 && (last || due(plan_.validation_interval));
  if (validates) {
    const auto averaged = engine_.averaged();
    task_.validate(log);
  }
  return saves || validates;
}

Outcome Run::train() {
  const int64_t first = engine_.steps_done();
  RunLog log;
  if (is_main()) log = RunLog(options_.output_dir, options_.tensorboard_folder(), first);
  if (is_main() && first == 0 && plan_.validation_interval > 0) task_.validate(log);
  cli::Progress progress("Steps", plan_.steps, {}, first);
  bool stop = engine_.group().any(cli::interrupted());
  while (engine_.steps_done() < plan_.steps && !stop) {
    const auto step = engine_.step(cli::interrupted);
    stop = step.stop;
    report(log, step);
    if (step.skipped) {
      progress.print(
          fmt::format("notice: step {} overflowed fp16 and was skipped; the loss scale is "
                      "now {:.0f}",
                      engine_.steps_done(), engine_.loss_scale()));
    }
    progress.update(engine_.steps_done(),
                    {{"mean_loss", smoothed_loss_}, {"lr", step.learning_rate}});
    if (after_step(log)) progress.leave_out();
  }
  progress.finish();
  require_finite();
  const Outcome outcome{engine_.steps_done(), engine_.steps_done() >= plan_.steps};
  const bool checkpoint_missing = last_checkpoint_ != outcome.steps && outcome.steps > 0;
  if (outcome.finished && plan_.checkpoint_at_end && checkpoint_missing) save_checkpoint();
  if (outcome.finished) return outcome;
  if (checkpoint_missing) save_checkpoint();
  const auto text =
      fmt::format("stopped by request after {} of {} steps", outcome.steps, plan_.steps);
  fmt::print("{}; saving what was learned. To go on: {}\n", text, plan_.goes_on_with);
  if (is_main()) cli::stopped(text + "; hint: " + plan_.goes_on_with + " goes on");
  return outcome;
}

}  // namespace

Outcome train(Task& task, const RunOptions& options) {
  Run run(task, options);
  run.resume();
  run.print_start();
  const bool writes = task.engine().group().is_main();
  const auto& plan = task.plan();
  if (writes) {
    run.require_space();
    cli::write_config(file_in(options.output_dir, "config.toml"), plan.program, plan.settings);
  }
  const Outcome outcome = run.train();
  if (!writes) return outcome;
  const auto averaged = task.engine().averaged();
  task.save(options.output_dir);
  task.finish();
  return outcome;
}

}  // namespace training
