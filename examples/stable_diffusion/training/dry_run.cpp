// SPDX-License-Identifier: Apache-2.0
#include "training/dry_run.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <set>
#include <sstream>
#include <tuple>

#include "models/weights.h"
#include "support/cli/fmt.h"
#include "support/cli/process.h"
#include "support/cuda/cards.h"
#include "support/cuda/graph.h"
#include "support/fake_cuda/dry_device.h"
#include "support/fake_cuda/fake_cuda.h"
#include "support/files/disk.h"
#include "training/class_pictures.h"
#include "training/dreambooth.h"
#include "training/phases.h"

namespace training {

namespace {

namespace fs = std::filesystem;

// CUDA's context, its kernels, and the workspaces of cuBLAS and cuDNN, which no allocation shows.
constexpr int64_t kCudaItself = 600'000'000;
// Warm-ups, the recording, and a step as all that follow.
constexpr int kDrySteps = 5, kMostDrySteps = 24;

class DryRecorder final : public cuda::GraphRecorder {
 public:
  int warm_ups() const override { return 2; }
  void warm_up(const std::function<void()>& work) override {
    fake_cuda::DryRecording::warm_up(work);
  }
  void record(const std::function<void()>& work) override { recording_.record(work); }
  void replay() override { recording_.replay(); }

 private:
  fake_cuda::DryRecording recording_;
};

// Gathers what happens between the beginnings of phases.
class PhaseBook {
 public:
  PhaseBook() {
    watch_phases([this](const std::string& name) { begin(name); });
  }
  ~PhaseBook() { watch_phases({}); }
  PhaseBook(const PhaseBook&) = delete;
  PhaseBook& operator=(const PhaseBook&) = delete;

  // What a step launches is that of its last time.
  void begin_step() {
    begin("");
    for (auto& phase : phases_) phase.kernels = phase.waits = 0;
    operations_ = fake_cuda::dry_operations();
    now_ = "batch";
  }

  void begin(const std::string& name) {
    const auto memory = fake_cuda::dry_memory();
    const auto counts = fake_cuda::counts();
    needed_ = std::max(needed_, memory.needed);
    tensors_ = std::max(tensors_, memory.tensors);
    if (!now_.empty()) {
      auto& phase = find(now_);
      phase.peak = std::max(phase.peak, memory.tensors);
      phase.needed = std::max(phase.needed, memory.needed);
      phase.kernels += counts.kernel_total() - kernels_;
      phase.waits += counts.wait_total() - waits_;
    }
    kernels_ = counts.kernel_total();
    waits_ = counts.wait_total();
    now_ = name;
    fake_cuda::reset_dry_peaks();
  }

  const std::vector<DryPhase>& phases() const { return phases_; }
  double operations() const { return fake_cuda::dry_operations() - operations_; }
  int64_t needed() const { return needed_; }
  int64_t tensors() const { return tensors_; }

 private:
  DryPhase& find(const std::string& name) {
    for (auto& phase : phases_) {
      if (phase.name == name) return phase;
    }
    return phases_.emplace_back(DryPhase{name, 0, 0, 0, 0});
  }

  std::vector<DryPhase> phases_;
  std::string now_;
  int64_t kernels_ = 0, waits_ = 0, needed_ = 0, tensors_ = 0;
  double operations_ = 0;
};

// The layouts of the CPU's kernels for both passes, each as large as the weights or larger.
int64_t packed_bytes(const DreamBoothOptions& options, const torch::nn::Module& unet) {
  if (options.model.load.base_precision() != sd::BasePrecision::same) return 0;
  int64_t bytes = 0, all = 0;
  for (const auto& parameter : unet.parameters()) {
    all += static_cast<int64_t>(parameter.nbytes());
    if (parameter.dim() < 2) continue;
    // Kernels of 3x3 are kept as 16 numbers, see sd::winograd_convolution.
    const bool is_3x3 = parameter.dim() == 4 && parameter.size(2) == 3;
    bytes += static_cast<int64_t>(parameter.nbytes()) * (is_3x3 ? 16 : 9) / 9;
  }
  const auto choice = options.model.load.pack_weights();
  const bool small =
      all <= cli::machine_memory() / 6 && !options.optimization.gradient_checkpointing;
  const bool packs =
      choice == sd::PackWeights::on || (choice == sd::PackWeights::if_small && small);
  return packs ? 2 * bytes : 0;
}

// What fewer bits take off the UNet's weights.
int64_t saved_by_precision(const DreamBoothOptions& options, const torch::nn::Module& unet) {
  const auto precision = options.model.load.base_precision();
  if (precision == sd::BasePrecision::same) return 0;
  int64_t bytes = 0;
  for (const auto& item : unet.named_parameters()) {
    const auto& weight = item.value();
    if (!sd::may_be_quantised(item.key(), weight)) continue;
    const auto kept = static_cast<double>(weight.numel()) * sd::bits_of(precision) / 8;
    bytes += static_cast<int64_t>(weight.nbytes()) - static_cast<int64_t>(kept);
  }
  return bytes;
}

// What `auto` would choose there; a GPU that is not there is taken for one of today.
c10::ScalarType fast_precision(const std::string& device, bool on_cpu) {
  if (on_cpu) return c10::kFloat;
  if (cuda::cards().empty()) return c10::kBFloat16;
  return cuda::fast_precision(device == "auto" ? c10::Device(c10::kCUDA) : c10::Device(device));
}

// Class pictures that would be drawn first are stood in for by the subject's.
void stand_in_for_class_pictures(DreamBoothOptions& options, DryReport& report) {
  if (!options.prior.with_prior_preservation) return;
  ClassPictureOptions pictures;
  pictures.folder = options.prior.class_data_dir;
  pictures.count = options.prior.num_class_images;
  const int64_t missing = missing_class_pictures(pictures);
  if (missing == 0) return;
  report.notices.push_back(
      fmt::format("{} class pictures would be drawn first, each in 50 steps", missing));
  options.prior.class_data_dir = options.instance_data_dir;
}

void measure_files(DreamBooth& task, const DreamBoothOptions& options, DryReport& report) {
  const sd::TemporaryFolder folder("dry");
  task.save(folder.path());
  int64_t results = 0;
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    const auto bytes = static_cast<int64_t>(entry.file_size());
    report.files[entry.path().filename().string()] = bytes;
    results += bytes;
  }
  if (options.run.checkpointing_steps > report.steps) return;
  int64_t state = 0;
  for (const auto& item : task.trainer().state()) {
    state += static_cast<int64_t>(item.second.nbytes());
  }
  report.files["each checkpoint"] = results + state;
}

void run_steps(DreamBooth& task, PhaseBook& book, DryReport& report) {
  auto& trainer = task.trainer();
  const auto buckets = static_cast<int>(report.buckets.size());
  const int steps = std::min(kDrySteps + 4 * (buckets - 1), kMostDrySteps);
  for (int i = 0; i < steps; ++i) {
    book.begin_step();
    trainer.step();
  }
  book.begin("");
  report.operations = book.operations();
}

// Two steps show what all of them take; the pictures themselves are not looked at.
void draw_validation(DreamBooth& task, const DreamBoothOptions& options, PhaseBook& book) {
  if (!options.run.draws()) return;
  book.begin("validation pictures");
  const at::NoGradGuard no_grad;
  const auto active = task.trainer().activate();
  std::set<std::tuple<std::optional<int64_t>, std::optional<int64_t>, bool>> seen;
  for (const auto& prompt : validation_pictures(options).prompts) {
    auto sample = sd::SampleOptions()
                      .prompt(prompt.prompt)
                      .prompt_syntax(sd::PromptSyntax::plain)
                      .num_inference_steps(2)
                      .height(prompt.height)
                      .width(prompt.width)
                      .clip_skip(options.clip_skip)
                      .seed(0);
    if (prompt.guidance_scale) sample.guidance_scale(*prompt.guidance_scale);
    const bool guided = sample.guidance_scale() > 1;
    if (seen.emplace(prompt.height, prompt.width, guided).second) task.pipeline().sample(sample);
  }
  book.begin("");
}

void describe(DreamBooth& task, DryReport& report) {
  const auto& plan = task.plan();
  report.steps = plan.steps;
  report.samples_per_epoch = plan.samples_per_epoch;
  report.steps_per_epoch =
      (plan.samples_per_epoch + plan.total_batch_size - 1) / plan.total_batch_size;
  report.trained_values = task.trainer().trained_values();
  for (const auto& line : plan.notices) report.notices.push_back(line);
  const auto& pictures = task.trainer().instance().latents().dataset();
  for (int64_t i = 0; i < pictures.size(); ++i) {
    const auto size = pictures.sample_size(i);
    report.buckets[fmt::format("{}x{}", size.width, size.height)] += pictures.file(i).repeats;
  }
}

}  // namespace

DryReport dry_run(DreamBoothOptions options) {
  options.check();
  DryReport report;
  stand_in_for_class_pictures(options, report);
  report.on_cpu = options.machine.device == "cpu" ||
                  (options.machine.device == "auto" && cuda::cards().empty());
  options.machine.like_a_cpu = report.on_cpu;
  if (report.on_cpu) options.cuda_graph = false;
  auto& precision = options.machine.mixed_precision;
  if (!precision) precision = fast_precision(options.machine.device, report.on_cpu);
  report.dtype = *precision;
  fake_cuda::start_dry_device();
  cuda::use_graph_recorder([](c10::Device) -> cuda::GraphRecorder* { return new DryRecorder; });
  options.machine.device = "cuda:0";
  const auto asked = options;
  options.model.load.pack_weights(sd::PackWeights::off);
  options.model.load.base_precision(sd::BasePrecision::same);
  options.model.memory_limit = 0;  // of the memory that is counted here
  const sd::WithoutWeights without_weights;

  PhaseBook book;
  DreamBooth task(options, {});
  book.begin("");
  describe(task, report);
  run_steps(task, book, report);
  draw_validation(task, options, book);
  measure_files(task, options, report);
  report.phases = book.phases();
  const auto ran = [&](const DryPhase& phase) {
    return phase.name == "replay" && phase.kernels > 0;
  };
  report.recorded = std::any_of(report.phases.begin(), report.phases.end(), ran);
  report.memory = report.on_cpu ? book.tensors() + cli::resident_memory() +
                                      packed_bytes(asked, *task.pipeline().unet())
                                : book.needed() + kCudaItself;
  report.memory -= saved_by_precision(asked, *task.pipeline().unet());
  return report;
}

}  // namespace training
