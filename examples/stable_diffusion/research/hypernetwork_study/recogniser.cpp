// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork_study/recogniser.h"

#include <ATen/ATen.h>
#include <lightlora/file_io.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/pooling.h>
#include <torch/optim/adam.h>
#include <torch/utils.h>

#include <algorithm>
#include <filesystem>

#include "support/cli/progress.h"
#include "support/images/resize.h"
#include "support/images/tensor.h"

namespace hyperstudy {
namespace {

constexpr int64_t kPictureSide = 64, kFeatures = 128, kBatch = 64, kFarthestShift = 4;
constexpr uint64_t kRecogniserSeed = 2027;
constexpr double kRecogniserRate = 2e-3;

}  // namespace

Recogniser::Recogniser(int64_t classes) {
  torch::manual_seed(kRecogniserSeed);
  int64_t in = 3;
  for (const int64_t out : {int64_t{32}, int64_t{64}, int64_t{128}, kFeatures}) {
    network_->push_back(
        torch::nn::Conv2d(torch::nn::Conv2dOptions(in, out, 3).stride(2).padding(1)));
    network_->push_back(torch::nn::GroupNorm(8, out));
    network_->push_back(torch::nn::SiLU());
    in = out;
  }
  network_->push_back(torch::nn::AdaptiveAvgPool2d(1));
  network_->push_back(torch::nn::Flatten());
  head_ = torch::nn::Linear(kFeatures, classes);
}

void Recogniser::train(const at::Tensor& pictures, const at::Tensor& things, int64_t steps) {
  const torch::AutoGradMode gradients(true);
  torch::manual_seed(kRecogniserSeed + 1);
  auto parameters = network_->parameters();
  for (const auto& parameter : head_->parameters()) parameters.push_back(parameter);
  torch::optim::Adam adam(parameters, torch::optim::AdamOptions(kRecogniserRate));
  cli::Progress progress("recogniser", steps);
  for (int64_t step = 0; step < steps; ++step) {
    const double left = 1 - static_cast<double>(step) / static_cast<double>(steps);
    for (auto& group : adam.param_groups()) group.options().set_lr(kRecogniserRate * left);
    const auto rows = at::randint(pictures.size(0), {kBatch}, at::kLong);
    const auto shift = at::randint(-kFarthestShift, kFarthestShift + 1, {2}, at::kLong);
    const auto input = pictures.index_select(0, rows).roll(
        {shift[0].item<int64_t>(), shift[1].item<int64_t>()}, {2, 3});
    const auto loss = at::cross_entropy_loss(head_->forward(network_->forward(input)),
                                             things.index_select(0, rows));
    adam.zero_grad();
    loss.backward();
    adam.step();
    progress.update(step + 1, {{"loss", loss.item<double>()}});
  }
  progress.finish();
}

at::Tensor Recogniser::features(const at::Tensor& pictures) {
  const torch::NoGradGuard no_grad;
  const at::Tensor all = network_->forward(pictures);
  return all / all.norm(2, 1, /*keepdim=*/true).clamp_min(1e-12);
}

bool Recogniser::load(const std::string& path, const std::string& settings) {
  if (!std::filesystem::exists(path)) return false;
  const lightlora::SafetensorsFile file(path);
  const auto found = file.metadata().find("settings");
  if (found == file.metadata().end() || found->second != settings) return false;
  const torch::NoGradGuard no_grad;
  for (auto& item : network_->named_parameters()) item.value().copy_(file.load(item.key()));
  return true;
}

void Recogniser::save(const std::string& path, const std::string& settings) const {
  lightlora::TensorMap tensors;
  for (const auto& item : network_->named_parameters()) {
    tensors[item.key()] = item.value().detach().contiguous();
  }
  lightlora::save_safetensors(path, tensors, {{"settings", settings}});
}

at::Tensor small_pictures(const std::vector<images::Image>& pictures) {
  std::vector<at::Tensor> all;
  for (const auto& picture : pictures) {
    const bool fits = picture.width == kPictureSide && picture.height == kPictureSide;
    all.push_back(images::to_tensor(
        fits ? picture
             : images::resize(picture, kPictureSide, kPictureSide, images::Filter::kLanczos)));
  }
  return at::stack(all);
}

}  // namespace hyperstudy
