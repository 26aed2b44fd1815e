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
at::Tensor spread_of(const at::Tensor& differences, const AdapterSet& adapters) {
  std::vector<at::Tensor> parts;
  int64_t start = 0;
  for (const auto& layer : adapters.layers()) {
    const auto part = differences.narrow(1, start, layer.values);
    parts.push_back(part.square().mean().sqrt().clamp_min(1e-6).expand({layer.values}));
    start += layer.values;
  }
  return at::cat(parts).contiguous();
}

AdapterSet add_set(const TrainOptions& o, sd::StableDiffusion& pipeline) {
  auto adapter = o.adapter;
  adapter.lora.rank(o.adapter_rank);
  std::vector<torch::nn::Module*> encoders;
  for (size_t i = 0; adapter.train_text_encoder && i < pipeline.text_encoders(); ++i) {
    encoders.push_back(pipeline.text_encoder(i).get());
  }
  return AdapterSet(training::add_adapters(adapter, *pipeline.unet(), encoders, o.adapter_seed()));
}

}  // namespace

Subjects prepare(const TrainOptions& o, const distributed::Group& group) {
  auto load = o.model.load;
  load.device(sd::pick_device(o.device)).dtype(o.mixed_precision);
  if (o.gradient_checkpointing) load.pack_weights(sd::PackWeights::off);
  Subjects s;
  s.pipeline = std::make_unique<sd::StableDiffusion>(o.model.path, load);
  s.resolution = o.resolution.value_or(s.pipeline->default_size().front());
  s.learned = read_identities(o.identities_dir, *s.pipeline, o.instance_prompt, s.resolution);
  if (!o.validation_dir.empty()) {
    s.held_out = read_identities(o.validation_dir, *s.pipeline, o.instance_prompt, s.resolution);
  }
  s.chosen = evenly_chosen(s.learned.size(), o.num_identities.value_or(s.learned.size()));
  s.adapters = add_set(o, *s.pipeline);
  fmt::print("{}\n", s.adapters.to_string());
  s.loss = std::make_unique<SubjectLoss>(*s.pipeline, s.adapters, o.gradient_checkpointing);
  const at::Tensor start = s.adapters.values();
  s.mean = start.cpu();
  s.spread = at::full_like(s.mean, o.prediction_scale);
  if (o.targets.steps > 0) {
    auto targets = o.targets;
    targets.seed = o.adapter_seed();
    s.targets = train_targets(*s.loss, s.learned, start, targets, o.targets_folder(), group);
    const auto known = s.targets.index_select(0, at::tensor(s.chosen, at::kLong));
    s.mean = known.mean(0);
    s.spread = spread_of(known - s.mean, s.adapters);
  }
  return s;
}

}  // namespace hypernetwork
