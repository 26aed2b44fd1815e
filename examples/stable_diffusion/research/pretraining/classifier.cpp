// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/classifier.h"

#include <ATen/ATen.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/pooling.h>

#include <algorithm>
#include <filesystem>

#include "support/cli/progress.h"
#include "training/optimizer.h"

namespace pretraining {

Classifier::Classifier(int64_t classes, const nlohmann::json& options)
    : options_({{"classes", classes},
                {"steps", options.value("steps", 800)},
                {"batch", options.value("batch", 64)},
                {"learning_rate", options.value("learning_rate", 2e-3)}}) {
  int64_t in = 3;
  for (const int64_t out : {32, 64, 128, 128}) {
    network_->push_back(
        torch::nn::Conv2d(torch::nn::Conv2dOptions(in, out, 3).stride(2).padding(1)));
    network_->push_back(torch::nn::GroupNorm(8, out));
    network_->push_back(torch::nn::SiLU());
    in = out;
  }
  network_->push_back(torch::nn::AdaptiveAvgPool2d(1));
  network_->push_back(torch::nn::Flatten());
  network_->push_back(torch::nn::Linear(in, classes));
}

void Classifier::train(Composer& composer) {
  torch::AutoGradMode gradients(true);
  training::ParameterBank bank(network_->parameters());
  const auto optimizer = training::make_optimizer({}, bank.slices()[0]);
  const int64_t steps = options_.at("steps"), batch = options_.at("batch");
  const auto& choice = composer.choice();
  cli::Progress progress("classifier", steps);
  for (int64_t step = 0; step < steps; ++step) {
    std::vector<int64_t> places;
    std::vector<at::Tensor> pictures;
    for (int64_t i = step * batch; i < (step + 1) * batch; ++i) {
      const Sample sample = composer.sample(i);
      places.push_back(std::find(choice.begin(), choice.end(), sample.emoji) - choice.begin());
      pictures.push_back(sample.picture);
    }
    const auto input = at::stack(pictures).to(at::kFloat).mul_(2.0 / 255).sub_(1);
    const auto loss = at::cross_entropy_loss(network_->forward(input), at::tensor(places));
    bank.zero_gradients();
    loss.backward();
    bank.clip(1.0);
    const double done = static_cast<double>(step) / static_cast<double>(steps);
    optimizer->step(bank.values(), bank.gradients(),
                    options_.at("learning_rate").get<double>() * (1 - done));
    progress.update(step + 1, {{"loss", loss.item<double>()}});
  }
  progress.finish();
}

at::Tensor Classifier::classify(const at::Tensor& pictures) {
  torch::NoGradGuard no_grad;
  return network_->forward(pictures.to(at::kFloat).clamp(-1, 1)).argmax(1);
}

bool Classifier::load(const std::string& path) {
  if (!std::filesystem::exists(path)) return false;
  const lightlora::SafetensorsFile file(path);
  const auto found = file.metadata().find("options");
  if (found == file.metadata().end() || found->second != options_.dump()) return false;
  torch::NoGradGuard no_grad;
  for (auto& item : network_->named_parameters()) item.value().copy_(file.load(item.key()));
  return true;
}

void Classifier::save(const std::string& path) const {
  lightlora::TensorMap tensors;
  for (const auto& item : network_->named_parameters()) {
    tensors[item.key()] = item.value().detach().contiguous();
  }
  lightlora::save_safetensors(path, tensors, {{"options", options_.dump()}});
}

double agreement(const at::Tensor& found, const std::vector<int64_t>& expected) {
  return (found == at::tensor(expected)).to(at::kDouble).mean().item<double>();
}

}  // namespace pretraining
