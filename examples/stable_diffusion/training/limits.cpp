// SPDX-License-Identifier: Apache-2.0
// How large the numbers of a run may be unless --allow_large is given. docs/limits.md lists them.
#include <c10/util/Exception.h>

#include <filesystem>
#include <system_error>

#include "support/cli/fmt.h"
#include "training/options.h"
#include "training/validation.h"

namespace training {

namespace {

constexpr int64_t kSide = 16'384, kPixels = 4096 * 4096, kBatch = 256, kBatches = 10'000;
constexpr int64_t kPictures = 100, kClassPictures = 10'000, kRepeats = 100'000;
constexpr std::size_t kPromptBytes = 20'000;
constexpr const char* kHint = "; hint: --allow_large lifts this limit";

void at_most(const std::string& what, int64_t value, int64_t most) {
  TORCH_CHECK_VALUE(value <= most, what, ": expected at most ", most, ", got ", value, kHint);
}

void check_prompt(const std::string& what, const std::string& text) {
  TORCH_CHECK_VALUE(text.size() <= kPromptBytes, what, ": expected at most ", kPromptBytes,
                    " bytes, got ", text.size(), kHint);
}

void check_samples(const RunOptions& run, const std::vector<SamplePrompt>& samples) {
  check_prompt("--validation_prompt", run.validation_prompt);
  at_most("--num_validation_images", run.num_validation_images, kPictures);
  const auto what = fmt::format("'{}'", run.sample_prompts);
  TORCH_CHECK_VALUE(samples.size() <= kPictures, what, ": expected at most ", kPictures,
                    " prompts, got ", samples.size(), kHint);
  for (const auto& sample : samples) {
    check_prompt(what, sample.prompt);
    check_prompt(what, sample.negative_prompt);
    check_picture_size(what, sample.width.value_or(512), sample.height.value_or(512));
  }
}

}  // namespace

void check_picture_size(const std::string& what, int64_t width, int64_t height) {
  TORCH_CHECK_VALUE(width <= kSide && height <= kSide && width * height <= kPixels, what,
                    ": expected at most ", kPixels, " pixels, got ", height, " by ", width, kHint);
}

void check_limits(const TrainingOptions& options) {
  // What is wrong in the file is found now in any case, and not after the pictures are encoded.
  const auto& prompts = options.run.sample_prompts;
  const auto samples =
      prompts.empty() ? std::vector<SamplePrompt>() : read_sample_prompts(prompts, /*seed=*/0);
  if (options.machine.allow_large) return;
  const auto& data = options.data;
  const int64_t resolution = data.resolution.value_or(512);
  check_picture_size("--resolution", resolution, resolution);
  at_most("--max_bucket_reso", data.max_bucket_reso.value_or(0), kSide);
  at_most("--train_batch_size", options.optimization.train_batch_size, kBatch);
  at_most("--gradient_accumulation_steps", options.optimization.gradient_accumulation_steps,
          kBatches);
  check_samples(options.run, samples);
}

void check_apart(const std::string& flag, const std::string& pictures,
                 const std::string& output_dir) {
  std::error_code error;
  const bool same = std::filesystem::equivalent(pictures, output_dir, error);
  TORCH_CHECK_VALUE(error || !same, "--output_dir: expected another folder than ", flag, ", got '",
                    pictures, "' for both; hint: a contact sheet in it would be learned from");
}

void check_limits(const DreamBoothOptions& options) {
  check_limits(static_cast<const TrainingOptions&>(options));
  if (options.machine.allow_large) return;
  check_prompt("--instance_prompt", options.instance_prompt);
  check_prompt("--class_prompt", options.prior.class_prompt);
  at_most("--num_class_images", options.prior.num_class_images, kClassPictures);
  at_most("--sample_batch_size", options.prior.sample_batch_size, kPictures);
}

void check_limits(const InversionOptions& options) {
  check_limits(static_cast<const TrainingOptions&>(options));
  if (options.machine.allow_large) return;
  at_most("--repeats", options.repeats, kRepeats);
}

}  // namespace training
