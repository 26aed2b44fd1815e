// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork/task.h"

#include <ATen/ATen.h>
#include <lightlora/files.h>
#include <torch/utils.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <utility>

#include "pipeline/device.h"
#include "research/pretraining/pictures.h"
#include "support/cli/fmt.h"
#include "support/files/outputs.h"
#include "training/run_log.h"

namespace hypernetwork {
namespace {

namespace fs = std::filesystem;

constexpr const char* kName = "hypernetwork";
constexpr uint64_t kValidationSeed = 1'000'000'007;

pretraining::StageOptions stage_options(const TrainOptions& o, const Subjects& subjects,
                                        const distributed::Group& group,
                                        std::vector<cli::Setting> settings) {
  pretraining::StageOptions options;
  options.output_dir = o.output_dir;
  options.device = subjects.pipeline->options().device();
  // Of the network's products: a fifth of a step on a CPU. Its values stay fp32.
  options.bf16 = o.mixed_precision == c10::kBFloat16 && options.device.is_cpu();
  options.channels_last = false;
  options.group = group;
  options.settings = std::move(settings);
  options.config = {
      {"dataset", {{"size", subjects.resolution}, {"pictures", subjects.learned.fingerprint}}},
      {kName,
       {{"steps", o.max_train_steps},
        {"batch", o.train_batch_size},
        {"learning_rate", o.learning_rate},
        {"warmup_steps", o.lr_warmup_steps},
        {"schedule", "warmup_stable_decay"},
        {"decay_share", static_cast<double>(std::min(o.lr_decay_steps, o.max_train_steps)) /
                            static_cast<double>(o.max_train_steps)},
        {"ema_decay", 0.995},
        {"muon", true},
        {"seed", o.seed},
        {"validate_every", o.validation_steps > 0 ? o.validation_steps : o.max_train_steps},
        {"save_every", o.checkpointing_steps}}}};
  return options;
}

HyperNetworkOptions sizes_of(const TrainOptions& o, const Subjects& subjects) {
  auto sizes = o.network;
  sizes.channels(subjects.learned.latents.size(1)).side(subjects.learned.latents.size(2));
  return sizes.layers(subjects.adapters.layers());
}

std::vector<int64_t> all_of(int64_t count) {
  std::vector<int64_t> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), int64_t{0});
  return numbers;
}

}  // namespace

HyperNetworkTask::HyperNetworkTask(const TrainOptions& options, Subjects subjects,
                                   const distributed::Group& group,
                                   std::vector<cli::Setting> settings)
    : StageTask(kName, stage_options(options, subjects, group, std::move(settings))),
      given_(options),
      subjects_(std::move(subjects)) {
  torch::manual_seed(options.seed);  // whether adapters to learn from were made or found
  network_ = HyperNetwork(sizes_of(options, subjects_));
  network_->set_scale(subjects_.mean, subjects_.spread);
  network_->to(options_.device);
  // The matrices of its blocks. What a layer's token says has a matrix for each layer, and steps by
  // AdamW as the rest.
  train_parts({{*network_, ""}}, {"encoder.", "decoder."});
}

at::Tensor HyperNetworkTask::shown(const Identities& data, const std::vector<int64_t>& identities,
                                   bool at_random) {
  std::vector<int64_t> rows;
  for (const int64_t identity : identities) {
    const int64_t picture =
        at_random ? at::randint(data.pictures(identity), {1}, at::kLong).item<int64_t>() : 0;
    rows.push_back(data.first[static_cast<size_t>(identity)] + picture);
  }
  return data.latents.index_select(0, at::tensor(rows, at::kLong));
}

// Without adapters to learn from there is none that predictions are around beforehand.
at::Tensor HyperNetworkTask::mean_adapter() {
  if (subjects_.targets.defined()) return subjects_.mean.to(options_.device);
  const torch::NoGradGuard no_grad;
  constexpr size_t at_once = 32;
  const auto& chosen = subjects_.chosen;
  at::Tensor sum = at::zeros_like(subjects_.mean, options_.device);
  for (size_t first = 0; first < chosen.size(); first += at_once) {
    const auto end = std::min(chosen.size(), first + at_once);
    const std::vector<int64_t> some(chosen.begin() + static_cast<int64_t>(first),
                                    chosen.begin() + static_cast<int64_t>(end));
    const auto latents = shown(subjects_.learned, some, /*at_random=*/false);
    sum += network_->forward(latents.to(options_.device)).sum(0);
  }
  return sum / static_cast<double>(chosen.size());
}

double HyperNetworkTask::backward(int64_t /*step*/) {
  const auto& data = subjects_.learned;
  const auto& chosen = subjects_.chosen;
  // All processes draw the same numbers, and each takes its part of the identities.
  const auto places =
      at::randint(static_cast<int64_t>(chosen.size()), {given_.train_batch_size}, at::kLong);
  const auto all = at::tensor(chosen, at::kLong).index_select(0, places);
  const auto own = pretraining::share_of_batch(options_.group, all);
  const std::vector<int64_t> identities(own.data_ptr<int64_t>(),
                                        own.data_ptr<int64_t>() + own.numel());
  if (options_.group.rank() > 0) {
    torch::manual_seed(static_cast<uint64_t>(at::randint(1 << 30, {1}, at::kLong).item<int64_t>() +
                                             options_.group.rank()));
  }
  const auto values =
      network_->forward(shown(data, identities, /*at_random=*/true).to(options_.device));
  const auto spread = subjects_.spread.to(options_.device);
  const auto distance = [&](const at::Tensor& to) {
    return ((values - to.to(options_.device)) / spread).square().mean();
  };
  at::Tensor loss = at::zeros({}, values.options());
  std::vector<lightlora::Activation> active;  // until the backward pass is over
  if (subjects_.targets.defined() && given_.weight_loss > 0) {
    loss = loss + given_.weight_loss * distance(subjects_.targets.index_select(0, own));
  }
  if (given_.prediction_penalty > 0) {
    loss = loss + given_.prediction_penalty * distance(subjects_.mean);
  }
  if (given_.diffusion_loss > 0) {
    const auto batch = subjects_.loss->draw(data, identities, given_.pictures_per_identity);
    auto drawn = subjects_.loss->with_activation(values, batch);
    active = std::move(drawn.second);
    loss = loss + given_.diffusion_loss * drawn.first.mean();
  }
  loss.backward();
  return loss.item<double>();
}

// The same pictures, noise and timesteps for every way of choosing the values.
training::Numbers HyperNetworkTask::figures(int64_t step) {
  if (given_.validation_steps == 0) return {};
  const torch::NoGradGuard no_grad;
  const auto& data = subjects_.held_out.size() > 0 ? subjects_.held_out : subjects_.learned;
  const int64_t count = std::min<int64_t>(data.size(), 16);
  const auto identities = all_of(count);
  torch::manual_seed(kValidationSeed);
  const auto batch = subjects_.loss->draw(data, identities, /*each=*/8);
  const auto predicted = network_->forward(shown(data, identities, false).to(options_.device));
  const auto loss = [&](const at::Tensor& values) {
    return (*subjects_.loss)(values, batch).mean().item<double>();
  };
  const auto mean = mean_adapter().expand_as(predicted);
  training::Numbers numbers{{"validation_loss", loss(predicted)},
                            {"validation_loss_of_shuffled", loss(predicted.roll(1, 0))},
                            {"validation_loss_of_mean", loss(mean)},
                            {"validation_loss_of_base", loss({})}};
  draw(step, predicted.narrow(0, 0, std::min<int64_t>(count, 8)));
  return numbers;
}

// The pictures that were shown, and below them what the predictions make of the prompt.
void HyperNetworkTask::draw(int64_t step, const at::Tensor& values) {
  const auto& data = subjects_.held_out.size() > 0 ? subjects_.held_out : subjects_.learned;
  auto& pipeline = *subjects_.pipeline;
  const auto given = shown(data, all_of(values.size(0)), false).to(options_.device);
  std::vector<at::Tensor> pictures{pipeline.decode(given)};
  for (const auto& row : values.unbind(0)) {
    const auto active = subjects_.adapters.activate(row);
    auto options =
        sd::SampleOptions().prompt(given_.instance_prompt).num_inference_steps(20).seed(7);
    options.prompt_syntax(sd::PromptSyntax::plain).guidance_scale(4);
    options.height(subjects_.resolution).width(subjects_.resolution);
    pictures.push_back(pipeline.sample(options).pictures);
  }
  sd::make_folder(options_.output_dir + "/samples");
  pretraining::save_sheet(fmt::format("{}/samples/step-{}.png", options_.output_dir, step),
                          at::cat(pictures) * 2 - 1, /*columns=*/values.size(0));
}

void HyperNetworkTask::save_model(const pretraining::MasterWeights& weights) {
  HyperNetworkFile file;
  file.options = network_->options;
  file.tensors = weights.averages("");
  for (const auto& buffer : network_->named_buffers()) file.tensors[buffer.key()] = buffer.value();
  const auto& adapters = subjects_.adapters;
  file.tensors["norms"] = adapters.norms();
  file.metadata = {{"instance_prompt", given_.instance_prompt},
                   {"resolution", fmt::to_string(subjects_.resolution)}};
  const fs::path folder = options_.output_dir;
  save_network(file, (folder / kNetworkFile).string(), at::kHalf);
  const at::Tensor before = adapters.values().clone();
  adapters.assign(mean_adapter().to(before.device()));
  lightlora::save(adapters.parts().state(), (folder / kMeanFile).string());
  adapters.assign(before);
}

int64_t train_hypernetwork(const TrainOptions& options, const distributed::Group& group,
                           std::vector<cli::Setting> settings) {
  options.check();
  auto subjects = prepare(options, group);
  HyperNetworkTask task(options, std::move(subjects), group, std::move(settings));
  return task.run();
}

}  // namespace hypernetwork
