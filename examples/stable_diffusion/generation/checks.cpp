// SPDX-License-Identifier: Apache-2.0
#include "generation/checks.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>

#include "support/cli/fmt.h"
#include "support/files/outputs.h"
#include "support/images/png.h"

namespace generation {

namespace {

constexpr int64_t kPlaces = 100, kSide = 16'384, kPixels = 4096 * 4096, kAtOnce = 100;
constexpr int64_t kPictures = 1000;
constexpr std::size_t kPromptBytes = 20'000;

int64_t pictures_of(const GenerationOptions& options) {
  const auto seeds = static_cast<int64_t>(options.seed_list().size());
  if (seeds > 0) return seeds;
  return options.sample.batch_position() ? 1 : options.sample.num_images_per_prompt();
}

// Empty if everything is within the limits.
std::string beyond_limits(const GenerationOptions& options, const std::vector<Axis>& axes) {
  const auto& sample = options.sample;
  int64_t places = 1;
  for (const auto& axis : axes) {
    places *= std::min<int64_t>(static_cast<int64_t>(axis.values.size()), kPlaces + 1);
  }
  if (places > kPlaces) {
    return fmt::format("--xy: expected at most {} places on a sheet, got {}", kPlaces,
                       places > kPlaces * kPlaces ? "more" : fmt::to_string(places));
  }
  const int64_t height = sample.height().value_or(512), width = sample.width().value_or(512);
  if (height > kSide || width > kSide || height * width > kPixels) {
    return fmt::format("--height and --width: expected at most {} pixels, got {} by {}", kPixels,
                       height, width);
  }
  const int64_t count = pictures_of(options);
  if (count > kPictures || sample.num_images_per_prompt() > kPictures) {
    return fmt::format("--num_images_per_prompt: expected at most {}, got {}", kPictures,
                       std::max(count, sample.num_images_per_prompt()));
  }
  const int64_t at_once = std::min(sample.batch_size(), count);
  if (at_once > kAtOnce) {
    return fmt::format("--batch_size: expected at most {} pictures at once, got {}", kAtOnce,
                       at_once);
  }
  for (const auto& text : {sample.prompt(), sample.negative_prompt().value_or("")}) {
    if (text.size() > kPromptBytes) {
      return fmt::format("--prompt: expected at most {} bytes, got {}", kPromptBytes, text.size());
    }
  }
  return "";
}

}  // namespace

void check_limits(const GenerationOptions& options, const std::vector<Axis>& axes) {
  if (const auto& place = options.sample.batch_position()) {
    TORCH_CHECK(*place >= 0 && *place < options.sample.num_images_per_prompt(), "'",
                options.from_png, "': expected the place of a picture among ",
                options.sample.num_images_per_prompt(), ", got ", *place);
  }
  if (options.allow_large) return;
  const auto problem = beyond_limits(options, axes);
  const std::string hint = "; hint: --allow_large lifts this limit";
  TORCH_CHECK_VALUE(problem.empty() || !options.from_png.empty(), problem, hint);
  TORCH_CHECK(problem.empty(), "'", options.from_png, "': ", problem, hint);
}

void check_start(const GenerationOptions& options, int64_t width, int64_t height) {
  TORCH_CHECK(
      options.allow_large || (width <= kSide && height <= kSide && height * width <= kPixels), "'",
      options.image, "': expected a start of at most ", kPixels, " pixels, got ", width, " by ",
      height, "; hint: --width or --height makes it smaller, --allow_large lifts ", "this limit");
}

std::string with_suffix(const std::string& path, const std::string& suffix) {
  if (!images::ends_as_png(path)) return path + suffix;
  constexpr std::size_t kEnding = 4;
  return path.substr(0, path.size() - kEnding) + suffix + path.substr(path.size() - kEnding);
}

namespace {

// What PNG files of so many pictures take at least: those of photographs take half of their values.
int64_t least_bytes(const GenerationOptions& options, int64_t pictures) {
  const auto& sample = options.sample;
  const auto side = [](const std::optional<int64_t>& given) {
    return static_cast<double>(given.value_or(64));  // of the smallest models
  };
  const double values = 3 * side(sample.height()) * side(sample.width());
  const double bytes = values / 8 * static_cast<double>(pictures);
  return static_cast<int64_t>(std::min(bytes, 1e18));
}

}  // namespace

void check_outputs(const GenerationOptions& options) {
  sd::Outputs outputs;
  const int64_t count = options.xy.empty() ? pictures_of(options) : 1;
  // Latents that are given decide on the number; nearly all that can go wrong shows in one name.
  const int64_t bytes = least_bytes(options, count);
  if (count == 1) outputs.add("--output", options.output, bytes);
  if (!options.output.empty()) {
    for (int64_t i = 0; i < std::min(count, kPictures) && count > 1; ++i) {
      outputs.add("--output", with_suffix(options.output, fmt::format("-{}", i)),
                  i == 0 ? bytes : 0);
    }
    if (options.grid && options.xy.empty()) {
      outputs.add("--grid", with_suffix(options.output, "-grid"));
    }
  }
  outputs.add("--save_latents", options.save_latents);
  outputs.add("--merge_to", options.merge_to);
  outputs.check();
}

}  // namespace generation
