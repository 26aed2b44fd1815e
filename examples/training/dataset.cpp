// SPDX-License-Identifier: Apache-2.0
#include "training/dataset.h"

#include <ATen/ops/randint.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "images/load.h"
#include "images/tensor.h"

namespace training {

ImageDataset::ImageDataset(const std::string& folder, const DatasetOptions& options)
    : options_(options) {
  TORCH_CHECK_VALUE(options.resolution > 0, "--resolution: expected a positive size, got ",
                    options.resolution);
  auto entries = images::list_images(folder);
  TORCH_CHECK(!entries.images.empty(), "'", folder,
              "': expected a folder with pictures, got one without; hint: put the subject's ",
              "photos (jpg or png) there");
  paths_ = std::move(entries.images);
  skipped_ = std::move(entries.others);
  for (const auto& path : paths_) {
    pictures_.push_back(
        images::resize_shorter_side(images::load_image(path), options.resolution, options.filter));
  }
}

bool ImageDataset::is_fixed(int64_t index) const {
  const auto& picture = pictures_.at(static_cast<std::size_t>(index));
  return options_.center_crop || picture.width == picture.height;
}

torch::Tensor ImageDataset::sample(int64_t index, at::Generator& generator) const {
  const auto& picture = pictures_.at(static_cast<std::size_t>(index));
  const int64_t size = options_.resolution;
  if (options_.center_crop) {
    return images::to_tensor(images::crop_centre(picture, size, size));
  }
  const auto offset = [&](int64_t room) -> int64_t {
    return room == 0 ? 0 : at::randint(room + 1, {1}, generator, at::kLong).item<int64_t>();
  };
  const int64_t top = offset(picture.height - size);
  const int64_t left = offset(picture.width - size);
  return images::to_tensor(images::crop(picture, left, top, size, size));
}

}  // namespace training
