// SPDX-License-Identifier: Apache-2.0
// What a network is trained on, and which adapters it predicts.
#include <ATen/ATen.h>
#include <torch/utils.h>

#include "pipeline/device.h"
#include "research/hypernetwork/task.h"
#include "support/cli/fmt.h"
#include "training/adapters.h"

namespace hypernetwork {
namespace {

// Values that belong together have one unit: those of a layer.
at::Tensor spread_of(const at::Tensor& differences, const lightlora::Patched& adapters) {
  std::vector<at::Tensor> parts;
  int64_t start = 0;
  for (const auto& adapter : adapters->adapters()) {
    const int64_t count = adapter->trained_count();
    const auto size = differences.narrow(1, start, count).square().mean().sqrt().clamp_min(1e-6);
    parts.push_back(size.expand({count}));
    start += count;
  }
  return at::cat(parts).contiguous();
}

}  // namespace

at::Tensor norms_of(const lightlora::Patched& adapters) {
  std::vector<at::Tensor> norms;
  for (const auto& adapter : adapters->adapters()) {
    norms.push_back(adapters->weight_of(adapter->layer().name).to(at::kFloat).norm().cpu());
  }
  return at::stack(norms);
}

Subjects prepare(const TrainOptions& o, const distributed::Group& group) {
  auto load = o.model.load;
  load.device(sd::pick_device(o.device)).dtype(o.mixed_precision);
  Subjects s;
  s.pipeline = std::make_unique<sd::StableDiffusion>(o.model.path, load);
  TORCH_CHECK_VALUE(
      !s.pipeline->is_sdxl(), "'", o.model.path,
      "': expected a model of Stable Diffusion 1.x or 2.x, got SDXL, whose sizes and ",
      "pooled texts are not learned from here");
  s.resolution = o.resolution.value_or(s.pipeline->default_size().front());
  s.learned = read_identities(o.identities_dir, *s.pipeline, o.instance_prompt, s.resolution);
  if (!o.validation_dir.empty()) {
    s.held_out = read_identities(o.validation_dir, *s.pipeline, o.instance_prompt, s.resolution);
  }
  auto adapter = o.adapter;
  adapter.lora.rank(o.adapter_rank);
  s.adapters = training::add_adapters(adapter, *s.pipeline->unet(), {}, o.seed);
  const auto& lora = s.adapters.unet;
  fmt::print("{}\n{}\n", lora->report().to_string(), lora->adapters()[0]->description());
  s.loss = std::make_unique<SubjectLoss>(s.pipeline->unet(), lora, s.pipeline->scheduler_config());
  const at::Tensor start = lora->values().detach().clone();
  s.mean = start.cpu();
  s.spread = at::full_like(s.mean, o.prediction_scale);
  if (o.targets.steps > 0) {
    auto targets = o.targets;
    targets.seed = o.seed;
    s.targets = train_targets(*s.loss, s.learned, start, targets, o.output_dir + "/targets", group);
    s.mean = s.targets.mean(0);
    s.spread = spread_of(s.targets - s.mean, lora);
  }
  return s;
}

}  // namespace hypernetwork
