// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/loop.h"

#include <torch/utils.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "support/cli/fmt.h"
#include "support/cli/interrupt.h"
#include "support/cli/progress.h"
#include "support/files/outputs.h"

namespace pretraining {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of all threads; unlike the time of day it means the same on a busy machine.
double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// Only rank 0 writes.
class Log {
 public:
  Log(const std::string& path, bool writes) : writes_(writes) {
    if (!writes_) return;
    file_.open(path, std::ios::app);
    TORCH_CHECK(file_, "'", path, "': expected to write the log, got no writable file");
  }
  void write(const nlohmann::json& line) {
    if (writes_) file_ << line.dump() << std::endl;
  }

 private:
  bool writes_;
  std::ofstream file_;
};

// Loss and speed of the steps since the last line of the log. Pauses for figures and files do not
// count.
class Window {
 public:
  void add(double loss) { loss_ += loss, ++steps_; }
  int64_t steps() const { return steps_; }

  void pause(const std::function<void()>& work) {
    const double wall = now(), processor = processor_seconds();
    work();
    wall_ += now() - wall, processor_ += processor_seconds() - processor;
  }

  nlohmann::json close(int64_t batch) {
    const auto samples = static_cast<double>(steps_ * batch);
    const nlohmann::json line = {
        {"loss", loss_ / static_cast<double>(steps_)},
        {"samples_per_second", samples / (now() - wall_)},
        {"samples_per_processor_second", samples / (processor_seconds() - processor_)}};
    *this = Window();
    return line;
  }

 private:
  double loss_ = 0, wall_ = now(), processor_ = processor_seconds();
  int64_t steps_ = 0;
};

// The numbers of a stage's configuration that the loop itself goes by.
struct Plan {
  int64_t end, validate_every, save_every, log_every, batch;
  double ema_decay, save_seconds;
  uint64_t seed;
};

Plan read_plan(const std::string& name, const StageOptions& options, const nlohmann::json& stage) {
  const int64_t steps = stage.at("steps");
  Plan plan;
  plan.end = options.stop_at < 0 ? steps : std::min(steps, options.stop_at);
  plan.validate_every = stage.value("validate_every", steps);
  plan.save_every = stage.value("save_every", steps);
  plan.log_every = stage.value("log_every", 20);
  plan.batch = stage.at("batch");
  plan.ema_decay = stage.at("ema_decay");
  // On a busy machine the steps between two saves may take hours.
  plan.save_seconds = 60 * stage.value("save_minutes", 5.0);
  plan.seed = stage.value("seed", 0);
  for (const auto& [field, value] :
       {std::pair("steps", steps), std::pair("batch", plan.batch),
        std::pair("validate_every", plan.validate_every), std::pair("save_every", plan.save_every),
        std::pair("log_every", plan.log_every)}) {
    TORCH_CHECK_VALUE(value > 0, name, ": expected ", field, " to be positive, got ", value);
  }
  TORCH_CHECK_VALUE(plan.batch % options.group.size() == 0, name, ": expected a batch that ",
                    options.group.size(), " processes can share, got ", plan.batch);
  return plan;
}

int64_t resume(AdamW& optimizer, const std::string& checkpoint) {
  if (!std::filesystem::exists(checkpoint)) return 0;
  const lightlora::SafetensorsFile file(checkpoint);
  TORCH_CHECK(file.metadata().count("step"), "'", checkpoint,
              "': expected a checkpoint of this program, got one without a step");
  const std::string& text = file.metadata().at("step");
  constexpr int64_t kMostSteps = int64_t{1} << 40;
  int64_t step = -1;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), step);
  TORCH_CHECK(read.ec == std::errc() && read.ptr == text.data() + text.size() && step >= 0 &&
                  step <= kMostSteps,
              "'", checkpoint, "': expected a number of steps as metadata 'step', got '", text,
              "'");
  optimizer.load_state(file);
  return step;
}

template <typename Call>
void with_averages(AdamW& optimizer, const Call& call) {
  optimizer.use_averages();
  call();
  optimizer.use_values();
}

// Logs the figures of the averaged model, and returns them as text.
std::string validate(AdamW& optimizer, const StageWork& work, int64_t step, Log& log) {
  nlohmann::json figures;
  with_averages(optimizer, [&] { figures = work.validate(step); });
  figures["step"] = step;
  log.write(figures);
  return figures.dump();
}

// Returns the step.
int64_t say_stop(const std::string& name, int64_t step, int64_t end) {
  if (step < end) {
    cli::stopped(fmt::format("{}: stopped by request after {} of {} steps", name, step, end));
  }
  return step;
}

}  // namespace

at::Tensor share_of_batch(const distributed::Group& group, const at::Tensor& batch) {
  const int64_t count = batch.size(0) / group.size();
  return batch.narrow(0, group.rank() * count, count);
}

void make_folder(const std::string& path) { sd::make_folder(path); }

double learning_rate_at(const nlohmann::json& stage, int64_t step) {
  const double base = stage.at("learning_rate");
  const double steps = stage.at("steps").get<double>();
  const double warmup = stage.value("warmup_steps", 0);
  if (step < warmup) return base * (step + 1) / (warmup + 1);
  const std::string schedule = stage.value("schedule", "cosine");
  if (schedule == "cosine") {
    const double done = std::min(1.0, (step - warmup) / std::max(1.0, steps - warmup));
    return base * 0.5 * (1 + std::cos(M_PI * done));
  }
  TORCH_CHECK_VALUE(schedule == "constant_then_decay",
                    "schedule: expected cosine or constant_then_decay, got ", schedule);
  const double share = stage.value("decay_share", 0.3);
  return base * std::min(1.0, std::max(0.0, (steps - step) / std::max(1.0, share * steps)));
}

int64_t run_stage(const std::string& name, const StageOptions& options, const nlohmann::json& stage,
                  AdamW& optimizer, const StageWork& work) {
  const auto& group = options.group;
  if (group.is_main()) {
    make_folder(options.output_dir + "/checkpoints");
    make_folder(options.output_dir + "/logs");
  }
  const std::string checkpoint = options.output_dir + "/checkpoints/" + name + ".safetensors";
  Log log(options.output_dir + "/logs/" + name + ".jsonl", group.is_main());
  const Plan plan = read_plan(name, options, stage);
  int64_t step = group.from_main(group.is_main() ? resume(optimizer, checkpoint) : 0);
  optimizer.share(group);
  cli::Progress progress(name, plan.end, {}, step);
  Window window;
  const auto save = [&] {
    if (!group.is_main()) return;
    lightlora::save_safetensors(checkpoint, optimizer.state(), {{"step", std::to_string(step)}});
    with_averages(optimizer, [&] { work.save(); });
  };
  int64_t saved = step;
  double saved_at = now();
  bool stop = group.any(cli::interrupted());
  while (step < plan.end && !stop) {
    torch::manual_seed(plan.seed * 1000003 + step);
    const double rate = learning_rate_at(stage, step);
    double loss = work.step(step);
    stop = cli::interrupted();
    optimizer.average_gradients(group, loss, stop);
    // Early values are forgotten fast, so that the average is no mixture with the random start.
    const double decay = std::min(plan.ema_decay, (1.0 + step) / (10.0 + step));
    const double norm = optimizer.step(step, rate, decay);
    ++step;
    window.add(loss);
    progress.update(step, {{"loss", loss}, {"lr", rate}});
    if (window.steps() == plan.log_every || step == plan.end) {
      nlohmann::json line = window.close(plan.batch);
      line.update({{"step", step}, {"learning_rate", rate}, {"gradient_norm", norm}});
      log.write(line);
    }
    if (group.is_main() && (step % plan.validate_every == 0 || step == plan.end)) {
      window.pause([&] { progress.print(validate(optimizer, work, step, log)); });
    }
    if (step % plan.save_every == 0 || step == plan.end || now() - saved_at > plan.save_seconds) {
      window.pause(save);
      saved = step, saved_at = now();
    }
  }
  if (saved != step) save();
  progress.finish();
  return stop && group.is_main() ? say_stop(name, step, plan.end) : step;
}

}  // namespace pretraining
