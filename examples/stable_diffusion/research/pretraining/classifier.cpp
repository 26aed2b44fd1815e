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
#include <utility>

#include "research/pretraining/stage_task.h"
#include "support/cli/fmt.h"
#include "support/distributed/fingerprint.h"

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

namespace {

class ClassifierStage : public StageTask {
 public:
  ClassifierStage(const std::string& name, const StageOptions& options, Classifier& classifier,
                  Composer& composer)
      : StageTask(name, options), classifier_(classifier), composer_(composer) {
    train_parts({{*classifier.network(), ""}}, /*by_muon=*/{});
  }

 private:
  // Pictures in [-1, 1], and the places of what they show.
  std::pair<at::Tensor, std::vector<int64_t>> examples(int64_t first, int64_t count) {
    const auto& choice = composer_.choice();
    std::vector<int64_t> places;
    std::vector<at::Tensor> pictures;
    for (int64_t i = first; i < first + count; ++i) {
      const Sample sample = composer_.sample(i);
      places.push_back(std::find(choice.begin(), choice.end(), sample.emoji) - choice.begin());
      pictures.push_back(sample.picture);
    }
    return {at::stack(pictures).to(at::kFloat).mul_(2.0 / 255).sub_(1), places};
  }

  double backward(int64_t step) override {
    const int64_t batch = stage_.at("batch");
    const auto [pictures, places] = examples(step * batch, batch);
    const at::Tensor found = classifier_.network()->forward(pictures);
    const auto loss = at::cross_entropy_loss(found, at::tensor(places));
    loss.backward();
    return loss.item<double>();
  }

  training::Numbers figures(int64_t /*step*/) override {
    const auto [pictures, places] = examples(/*first=*/1'000'000'000, /*count=*/64);
    return {{"agreement", agreement(classifier_.classify(pictures), places)}};
  }

  // Whoever has it trained keeps it.
  void save_model(const MasterWeights& /*weights*/) override {}

  Classifier& classifier_;
  Composer& composer_;
};

}  // namespace

void train_classifier(Classifier& classifier, Composer& composer, const StageOptions& options) {
  nlohmann::json stage = classifier.options();
  stage.update({{"schedule", "linear"}, {"ema_decay", 0.0}});
  distributed::Fingerprint print;
  print.add(stage.dump());
  print.add(options.config.at("dataset").dump());
  const std::string name = fmt::format("classifier-{}", print.hexadecimal());
  StageOptions own = options;
  own.config[name] = stage;
  own.stop_at = -1;
  own.bf16 = own.channels_last = false;
  own.device = at::kCPU;
  own.group = distributed::Group();
  const torch::AutoGradMode gradients(true);
  const int64_t steps = ClassifierStage(name, own, classifier, composer).run();
  TORCH_CHECK(steps == stage.at("steps").get<int64_t>(), "classifier: expected to learn for ",
              stage.at("steps").get<int64_t>(), " steps, got a stop after ", steps,
              "; hint: the same command goes on");
}

double agreement(const at::Tensor& found, const std::vector<int64_t>& expected) {
  return (found == at::tensor(expected)).to(at::kDouble).mean().item<double>();
}

}  // namespace pretraining
