// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork/identities.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>

#include "support/cli/progress.h"
#include "support/distributed/fingerprint.h"
#include "training/data.h"
#include "training/random.h"

namespace hypernetwork {
namespace {

namespace fs = std::filesystem;

training::ImageDataset squares(std::vector<training::PictureFile> files, int64_t resolution) {
  training::DatasetOptions options;
  options.resolution = resolution;
  options.center_crop = true;
  return {std::move(files), options};
}

std::vector<fs::path> folders_in(const std::string& folder) {
  TORCH_CHECK(fs::is_directory(folder), "'", folder,
              "': expected a folder with a sub-folder for each thing, got none");
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_directory()) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  TORCH_CHECK(!found.empty(), "'", folder,
              "': expected a sub-folder with pictures for each thing, ", "got none; hint: ", folder,
              "/my_dog/1.png");
  return found;
}

// Each caption once, in the order of their numbers.
class Captions {
 public:
  int64_t number_of(const std::string& caption) {
    const auto [found, is_new] = numbers_.emplace(caption, static_cast<int64_t>(texts_.size()));
    if (is_new) texts_.push_back(caption);
    return found->second;
  }

  std::vector<at::Tensor> ids(const sd::StableDiffusion& pipeline) const {
    return pipeline.token_ids(texts_);
  }

  sd::PromptEmbeds encode(sd::StableDiffusion& pipeline) const {
    constexpr size_t at_once = 32;
    std::vector<at::Tensor> states, pooled;
    for (size_t start = 0; start < texts_.size(); start += at_once) {
      const auto end = std::min(texts_.size(), start + at_once);
      const std::vector<std::string> texts(texts_.begin() + static_cast<int64_t>(start),
                                           texts_.begin() + static_cast<int64_t>(end));
      const auto part = pipeline.encode_prompt(texts);
      states.push_back(part.states);
      if (part.pooled.defined()) pooled.push_back(part.pooled);
    }
    return {at::cat(states), pooled.empty() ? at::Tensor() : at::cat(pooled)};
  }

 private:
  std::map<std::string, int64_t> numbers_;
  std::vector<std::string> texts_;
};

// The mode of the distribution would do as well; this is what training draws from.
at::Tensor encoded(sd::StableDiffusion& pipeline, const at::Tensor& pixels, int64_t index) {
  const auto generator = training::generator_for(/*seed=*/0, training::Stream::sample, index);
  return pipeline.encode_image(pixels, generator).to(at::kCPU, at::kFloat);
}

}  // namespace

Identities read_identities(const std::string& folder, sd::StableDiffusion& pipeline,
                           const std::string& prompt, int64_t resolution) {
  const torch::NoGradGuard no_grad;
  const auto folders = folders_in(folder);
  Identities result;
  distributed::Fingerprint print;
  Captions captions;
  std::vector<at::Tensor> latents;
  std::vector<int64_t> caption;
  std::vector<at::Tensor> time_ids;
  cli::Progress progress("pictures", static_cast<int64_t>(folders.size()));
  for (const auto& path : folders) {
    const auto dataset = squares(training::read_data_folder(path.string()).pictures, resolution);
    result.names.push_back(path.filename().string());
    result.first.push_back(static_cast<int64_t>(latents.size()));
    print.add(dataset.fingerprint());
    std::vector<at::Tensor> pixels;
    for (int64_t i = 0; i < dataset.size(); ++i) {
      auto generator = training::generator_for(0, training::Stream::crop, i);
      const auto view = dataset.draw_view(i, generator);
      pixels.push_back(dataset.pixels(i, view));
      time_ids.push_back(at::tensor(dataset.time_ids(i, view), at::kLong).to(at::kFloat));
      caption.push_back(captions.number_of(dataset.caption(i, prompt)));
      print.add(dataset.caption(i, prompt));
    }
    const auto all = encoded(pipeline, at::stack(pixels).to(pipeline.options().device()),
                             static_cast<int64_t>(latents.size()));
    for (const auto& one : all.unbind(0)) latents.push_back(one);
    progress.update(result.size());
  }
  result.first.push_back(static_cast<int64_t>(latents.size()));
  result.latents = at::stack(latents);
  result.caption = at::tensor(caption, at::kLong);
  result.text = captions.encode(pipeline);
  result.ids = captions.ids(pipeline);
  if (pipeline.is_sdxl()) result.time_ids = at::stack(time_ids);
  result.fingerprint = print.hexadecimal();
  return result;
}

std::vector<int64_t> evenly_chosen(int64_t size, int64_t count) {
  const int64_t chosen = std::min(size, count);
  std::vector<int64_t> numbers;
  for (int64_t i = 0; i < chosen; ++i) numbers.push_back(i * size / chosen);
  return numbers;
}

at::Tensor read_picture(const std::string& path, sd::StableDiffusion& pipeline,
                        int64_t resolution) {
  const torch::NoGradGuard no_grad;
  const auto dataset = squares({training::PictureFile{path, std::nullopt}}, resolution);
  auto generator = training::generator_for(0, training::Stream::crop, 0);
  const auto pixels = dataset.sample(0, generator).unsqueeze(0);
  return encoded(pipeline, pixels.to(pipeline.options().device()), /*index=*/0);
}

}  // namespace hypernetwork
