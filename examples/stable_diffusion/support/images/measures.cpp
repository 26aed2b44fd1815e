// SPDX-License-Identifier: Apache-2.0
// A port of tests/parity/measure.py, with the same LibTorch operations.
#include "support/images/measures.h"

#include <lightlora/file_io.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <utility>

#include "support/images/resize.h"
#include "support/images/tensor.h"

namespace images {

namespace {

constexpr int64_t kPictureSide = 64, kBorder = 3, kVectorSide = 24;
constexpr int64_t kVectorLength = 4 * kVectorSide * kVectorSide;
constexpr int64_t kFewestPixels = 12;
constexpr double kThreshold = 0.14;

struct NamedColour {
  const char* name;
  Colour colour;
};
constexpr std::array<NamedColour, 12> kColours = {{{"white", {245, 245, 245}},
                                                   {"black", {25, 25, 28}},
                                                   {"red", {200, 45, 45}},
                                                   {"orange", {235, 140, 40}},
                                                   {"yellow", {240, 215, 70}},
                                                   {"green", {60, 150, 70}},
                                                   {"blue", {50, 95, 190}},
                                                   {"purple", {125, 65, 165}},
                                                   {"pink", {240, 150, 185}},
                                                   {"gray", {128, 130, 134}},
                                                   {"brown", {120, 80, 50}},
                                                   {"teal", {40, 150, 150}}}};

/// (3, 64, 64) in [0, 1].
at::Tensor unit_picture(const Image& image) {
  const bool fits = image.width == kPictureSide && image.height == kPictureSide;
  const Image small = fits ? image : resize(image, kPictureSide, kPictureSide, Filter::kLanczos);
  const auto bytes = at::from_blob(const_cast<uint8_t*>(small.pixels.data()),
                                   {kPictureSide, kPictureSide, 3}, at::kByte);
  return bytes.permute({2, 0, 1}).to(at::kFloat).contiguous() / 255;
}

/// (3), the lower median of each channel over the border; its corners count twice, as in
/// measure.py.
at::Tensor border_median(const at::Tensor& picture) {
  const auto sides = {
      picture.narrow(1, 0, kBorder), picture.narrow(1, kPictureSide - kBorder, kBorder),
      picture.narrow(2, 0, kBorder), picture.narrow(2, kPictureSide - kBorder, kBorder)};
  std::vector<at::Tensor> flat;
  for (const auto& side : sides) flat.push_back(side.flatten(1));
  return std::get<0>(at::cat(flat, 1).median(1));
}

/// Centre and length of where 98% of the coordinates lie.
std::pair<double, double> extent(const at::Tensor& coordinates) {
  const auto values = coordinates.to(at::kFloat);
  const double begin = values.quantile(0.01).item<double>();
  const double end = values.quantile(0.99).item<double>() + 1;
  return {(begin + end) / 2, end - begin};
}

/// Square around the mask, resampled: (4, 64, 64) and (64, 64) to a unit vector.
at::Tensor crop_to_vector(const at::Tensor& premultiplied, const at::Tensor& mask) {
  const auto places = mask.nonzero();
  if (places.size(0) < kFewestPixels) return at::zeros({kVectorLength}, at::kFloat);
  const auto [centre_y, height] = extent(places.select(1, 0));
  const auto [centre_x, width] = extent(places.select(1, 1));
  const double n = kVectorSide;
  const auto line = at::linspace(-0.5 + 0.5 / n, 0.5 - 0.5 / n, kVectorSide, at::kFloat) *
                    std::max(height, width);
  const auto grid_y = (line + centre_y) / kPictureSide * 2 - 1;
  const auto grid_x = (line + centre_x) / kPictureSide * 2 - 1;
  const auto grid = at::stack({grid_x.unsqueeze(0).expand({kVectorSide, kVectorSide}),
                               grid_y.unsqueeze(1).expand({kVectorSide, kVectorSide})},
                              -1);
  const auto smooth = at::avg_pool2d(premultiplied.unsqueeze(0), 3, 1, 1);
  const auto cropped = at::grid_sampler(smooth, grid.unsqueeze(0), /*interpolation_mode=*/0,
                                        /*padding_mode=*/0, /*align_corners=*/false);
  const auto vector = cropped.flatten();
  return vector / vector.norm().clamp_min(1e-12);
}

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

}  // namespace

Background background(const Image& image) {
  const auto median = border_median(unit_picture(image));
  Background result;
  double best = INFINITY;
  std::copy_n(median.const_data_ptr<float>(), 3, result.colour.begin());
  for (const auto& named : kColours) {
    double distance = 0;
    for (std::size_t c = 0; c < 3; ++c) {
      distance += std::pow(static_cast<double>(named.colour[c]) / 255 - result.colour[c], 2);
    }
    if (distance < best) {
      best = distance;
      result.name = named.name;
    }
  }
  return result;
}

at::Tensor subject_vector(const Image& image) {
  const auto picture = unit_picture(image);
  const auto median = border_median(picture).view({3, 1, 1});
  const auto mask = (picture - median).abs().amax(0) > kThreshold;
  const auto alpha = mask.to(at::kFloat);
  return crop_to_vector(at::cat({picture * alpha, alpha.unsqueeze(0)}), mask);
}

at::Tensor reference_vector(const at::Tensor& premultiplied) {
  const auto small = at::_upsample_bilinear2d_aa(premultiplied.unsqueeze(0).to(at::kFloat),
                                                 {kPictureSide, kPictureSide},
                                                 /*align_corners=*/false)[0];
  return crop_to_vector(small, small[3] > 0.5);
}

EmojiVectors::EmojiVectors(const std::string& path) {
  const lightlora::SafetensorsFile file(path);
  const auto names = file.metadata().find("names");
  TORCH_CHECK(names != file.metadata().end() && file.contains("vectors"), "'", path,
              "': expected a tensor 'vectors' and metadata 'names', got another file; hint: it is "
              "examples/stable_diffusion/assets/measures/emoji.safetensors");
  names_ = split_lines(names->second);
  const at::Tensor pictures = file.load("vectors");
  TORCH_CHECK(pictures.dim() == 4 && pictures.size(0) == static_cast<int64_t>(names_.size()) &&
                  pictures[0].numel() == kVectorLength,
              "'", path, "': expected vectors of shape [", names_.size(), ", 4, 24, 24], got ",
              pictures.sizes());
  const auto values = pictures.flatten(1).to(at::kFloat);
  vectors_ = values / values.norm(2, 1, /*keepdim=*/true).clamp_min(1e-12);
}

at::Tensor EmojiVectors::cosines(const at::Tensor& vector) const { return vectors_.mv(vector); }

EmojiVectors::Match EmojiVectors::match(const at::Tensor& vector, const std::string& name) const {
  const auto place = std::find(names_.begin(), names_.end(), name);
  TORCH_CHECK_VALUE(place != names_.end(),
                    "images::EmojiVectors: expected the name of an emoji, got '", name,
                    "'; hint: names are those of Unicode, such as 'teddy bear'");
  const auto all = cosines(vector);
  const auto own = all[place - names_.begin()];
  return {own.item<double>(), (all >= own).sum().item<int64_t>() - 1};
}

namespace {

// The colour that a prompt asks for as "... a COLOUR background", or an empty text.
std::string asked_background(const std::string& prompt) {
  const std::size_t end = prompt.find(" background");
  if (end == std::string::npos) return "";
  const std::size_t start = prompt.rfind(' ', end - 1);
  return prompt.substr(start + 1, end - start - 1);
}

}  // namespace

Fidelity fidelity(const EmojiVectors& emoji, const std::string& name,
                  const std::vector<Image>& pictures, const std::vector<std::string>& prompts) {
  TORCH_CHECK_VALUE(!pictures.empty() && pictures.size() == prompts.size(),
                    "images::fidelity: expected a prompt for each picture, got ", pictures.size(),
                    " pictures and ", prompts.size(), " prompts");
  Fidelity result;
  std::vector<int64_t> ranks;
  for (std::size_t i = 0; i < pictures.size(); ++i) {
    const auto match = emoji.match(subject_vector(pictures[i]), name);
    result.cosine += match.cosine / static_cast<double>(pictures.size());
    ranks.push_back(match.rank);
    const auto wanted = asked_background(prompts[i]);
    if (wanted.empty()) continue;
    ++result.asked;
    result.followed += background(pictures[i]).name == wanted ? 1 : 0;
  }
  const auto middle = ranks.begin() + static_cast<std::ptrdiff_t>(ranks.size() / 2);
  std::nth_element(ranks.begin(), middle, ranks.end());
  result.median_rank = *middle;
  return result;
}

}  // namespace images
