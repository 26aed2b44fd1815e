// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <set>
#include <utility>

#include "support/cli/fmt.h"
#include "support/cli/progress.h"
#include "support/distributed/fingerprint.h"
#include "support/images/load.h"
#include "support/images/tensor.h"
#include "training/data.h"
#include "training/random.h"

namespace training {

BucketOptions BucketOptions::of(int64_t resolution) {
  return {resolution, resolution / 2, resolution * 2, std::max<int64_t>(8, resolution / 8)};
}

std::vector<Size> bucket_sizes(const BucketOptions& options) {
  TORCH_CHECK_VALUE(options.step > 0, "--bucket_reso_steps: expected a positive number, got ",
                    options.step);
  const auto down = [&](int64_t side) { return side / options.step * options.step; };
  const int64_t area = options.resolution * options.resolution;
  std::set<Size> sizes;
  if (const int64_t square = down(options.resolution)) sizes.insert({square, square});
  const int64_t first = (options.min_size + options.step - 1) / options.step * options.step;
  for (int64_t width = std::max(first, options.step); width <= options.max_size;
       width += options.step) {
    const int64_t height = std::min(down(options.max_size), down(area / width));
    if (height < std::max(options.min_size, options.step)) break;  // none is higher from here on
    sizes.insert({width, height});
    sizes.insert({height, width});
  }
  TORCH_CHECK_VALUE(!sizes.empty(), "--bucket_reso_steps: expected at most the resolution ",
                    options.resolution, ", got ", options.step);
  return {sizes.begin(), sizes.end()};
}

Size nearest_bucket(const std::vector<Size>& buckets, Size picture) {
  if (std::find(buckets.begin(), buckets.end(), picture) != buckets.end()) return picture;
  const auto shape = [](Size size) {
    return static_cast<double>(size.width) / static_cast<double>(size.height);
  };
  const auto distance = [&](Size size) { return std::abs(shape(size) - shape(picture)); };
  return *std::min_element(buckets.begin(), buckets.end(),
                           [&](Size a, Size b) { return distance(a) < distance(b); });
}

namespace {

// The smallest size of the picture's shape that covers the bucket.
Size covering_size(Size picture, Size bucket) {
  const double scale =
      std::max(static_cast<double>(bucket.width) / static_cast<double>(picture.width),
               static_cast<double>(bucket.height) / static_cast<double>(picture.height));
  const auto scaled = [&](int64_t side, int64_t least) {
    return std::max(least, static_cast<int64_t>(std::llround(static_cast<double>(side) * scale)));
  };
  return {scaled(picture.width, bucket.width), scaled(picture.height, bucket.height)};
}

// The size whose shorter side is the resolution, as torchvision's Resize rounds it.
Size shorter_side_size(Size picture, int64_t resolution) {
  const auto longer = [&](int64_t longer_side, int64_t shorter_side) {
    return resolution * longer_side / shorter_side;
  };
  if (picture.width <= picture.height) {
    return {resolution, longer(picture.height, picture.width)};
  }
  return {longer(picture.width, picture.height), resolution};
}

// Pictures are decoded at no less than this many times the size that they are resized to, PIL's
// `reducing_gap` for thumbnails: what is left out then is far below what resizing leaves out.
constexpr int64_t kReducingGap = 2;

constexpr std::size_t kManyFiles = 16;  // worth a progress of their own

int64_t size_of(const std::vector<PictureFile>& files) {
  return static_cast<int64_t>(files.size());
}

// One error for all damaged pictures, with the first ones' reasons.
void require_whole(const std::vector<std::string>& damaged) {
  constexpr std::size_t kShown = 5;
  std::string list;
  for (std::size_t i = 0; i < std::min(damaged.size(), kShown); ++i) {
    list += (i > 0 ? " | " : "") + damaged[i];
  }
  TORCH_CHECK(damaged.size() != 1, damaged.front());
  TORCH_CHECK(damaged.empty(), damaged.size(), " pictures cannot be read: ", list,
              damaged.size() > kShown ? " | ..." : "");
}

// Errors: c10::Error naming the mask if it is of another size than its picture
images::Image mask_of(const PictureFile& file, Size picture, bool alpha) {
  if (file.mask.empty()) return alpha ? images::load_alpha(file.path) : images::Image();
  auto mask = images::load_image(file.mask);
  TORCH_CHECK(mask.width == picture.width && mask.height == picture.height, "'", file.mask,
              "': expected a mask of ", picture.width, "x", picture.height, " pixels as '",
              file.path, "', got ", mask.width, "x", mask.height);
  return mask;
}

// What happens to a picture and its caption each time, as far as a data set's file says it.
std::string treatment(const PictureFile& file) {
  const auto& caption = file.caption_options;
  const auto choice = [](std::optional<bool> value) { return value ? (*value ? 1 : 0) : -1; };
  return fmt::format("{} {} {} {} {} '{}' '{}' {} {}", caption.shuffle, caption.keep_tokens,
                     caption.dropout_rate, caption.dropout_every_n_epochs, caption.tag_dropout_rate,
                     caption.prefix, caption.suffix, choice(file.flip), choice(file.center_crop));
}

}  // namespace

ImageDataset::ImageDataset(std::vector<PictureFile> files, const DatasetOptions& options)
    : options_(options), files_(std::move(files)) {
  TORCH_CHECK_VALUE(options.resolution > 0, "--resolution: expected a positive size, got ",
                    options.resolution);
  const auto buckets = options.buckets ? bucket_sizes(*options.buckets) : std::vector<Size>{};
  std::vector<std::string> damaged;
  std::optional<cli::Progress> progress;
  if (files_.size() >= kManyFiles) progress.emplace("Reading pictures", size_of(files_));
  for (const auto& file : files_) {
    images::Loaded picture;
    try {
      picture = images::load_reduced(file.path, kReducingGap * options.resolution);
      images::check_shape("'" + file.path + "'", picture.width, picture.height);
    } catch (const c10::Error& error) {
      damaged.push_back(error.what_without_backtrace());
      continue;
    }
    if (progress) progress->update(&file - files_.data() + 1);
    originals_.push_back({picture.width, picture.height});
    const Size original = originals_.back();
    const Size size = buckets.empty() ? Size{options.resolution, options.resolution}
                                      : nearest_bucket(buckets, original);
    const Size fitted = buckets.empty() ? shorter_side_size(original, options.resolution)
                                        : covering_size(original, size);
    const auto fit = [&](const images::Image& image) {
      if (image.empty()) return image;
      return images::resize(image, fitted.width, fitted.height, options.filter);
    };
    sizes_.push_back(size);
    pictures_.push_back(fit(picture.image));
    masks_.push_back(fit(mask_of(file, original, file.alpha_mask.value_or(options.alpha_mask))));
  }
  if (progress) progress->finish();
  require_whole(damaged);
}

int64_t ImageDataset::samples_per_epoch() const {
  int64_t sum = 0;
  for (const auto& file : files_) sum += file.repeats;
  return sum;
}

std::string ImageDataset::fingerprint() const {
  distributed::Fingerprint print;
  for (size_t i = 0; i < files_.size(); ++i) {
    print.add(std::filesystem::path(files_[i].path).filename().string());
    print.add(files_[i].caption.value_or(""));
    for (const int64_t number : {files_[i].repeats, sizes_[i].width, sizes_[i].height}) {
      print.add(&number, sizeof(number));
    }
    print.add(pictures_[i].pixels.data(), pictures_[i].pixels.size());
    print.add(masks_[i].pixels.data(), masks_[i].pixels.size());
    if (const auto how = treatment(files_[i]); how != treatment({})) print.add(how);
  }
  return print.hexadecimal();
}

bool ImageDataset::is_fixed(int64_t index) const {
  const auto& picture = pictures_.at(static_cast<size_t>(index));
  const Size size = sample_size(index);
  return center_crop(index) || (picture.width == size.width && picture.height == size.height);
}

View ImageDataset::draw_view(int64_t index, at::Generator& generator) const {
  const auto& picture = pictures_.at(static_cast<size_t>(index));
  const Size size = sample_size(index);
  const auto below = [&](int64_t limit) -> int64_t {
    return limit == 1 ? 0 : at::randint(limit, {1}, generator, at::kLong).item<int64_t>();
  };
  View view;
  if (center_crop(index)) {
    view.top = images::centre_offset(picture.height, size.height);
    view.left = images::centre_offset(picture.width, size.width);
  } else {
    view.top = below(picture.height - size.height + 1);
    view.left = below(picture.width - size.width + 1);
  }
  view.flipped = flips(index) && below(2) == 1;
  return view;
}

std::vector<int64_t> ImageDataset::time_ids(int64_t index, const View& view) const {
  const Size original = originals_.at(static_cast<size_t>(index)), size = sample_size(index);
  const int64_t width = pictures_.at(static_cast<size_t>(index)).width;
  const int64_t left = view.flipped ? width - view.left - size.width : view.left;
  return {original.height, original.width, view.top, left, size.height, size.width};
}

images::Image ImageDataset::cut(const images::Image& picture, int64_t index,
                                const View& view) const {
  const Size size = sample_size(index);
  const auto part = center_crop(index)
                        ? images::crop_centre(picture, size.width, size.height)
                        : images::crop(picture, view.left, view.top, size.width, size.height);
  return view.flipped ? images::flip_horizontally(part) : part;
}

torch::Tensor ImageDataset::pixels(int64_t index, const View& view) const {
  return images::to_tensor(cut(pictures_.at(static_cast<size_t>(index)), index, view));
}

torch::Tensor ImageDataset::mask(int64_t index, const View& view) const {
  const auto& mask = masks_.at(static_cast<size_t>(index));
  if (mask.empty()) return {};
  return images::to_tensor(cut(mask, index, view)).slice(0, 0, 1) / 2 + 0.5;
}

std::vector<PictureFile> split_off(std::vector<PictureFile>& files, double share, uint64_t seed) {
  if (share <= 0) return {};
  const auto count = static_cast<int64_t>(files.size());
  const int64_t held = std::max<int64_t>(1, std::llround(share * static_cast<double>(count)));
  TORCH_CHECK_VALUE(held < count, "--validation_split: expected at least one of ", count,
                    " pictures left to train on, got a split that takes ", held);
  auto generator = generator_for(seed, Stream::split, 0);
  const torch::Tensor order = at::randperm(count, generator);
  std::vector<PictureFile> kept, taken;
  for (int64_t i = 0; i < count; ++i) {
    const bool is_held = (order.slice(0, 0, held) == i).any().item<bool>();
    (is_held ? taken : kept).push_back(files[static_cast<size_t>(i)]);
  }
  files = std::move(kept);
  return taken;
}

}  // namespace training
