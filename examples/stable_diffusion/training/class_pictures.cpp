// SPDX-License-Identifier: Apache-2.0
#include "training/class_pictures.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "support/cli/fmt.h"
#include "support/cli/interrupt.h"
#include "support/cli/progress.h"
#include "support/images/png.h"
#include "support/images/tensor.h"
#include "training/picture_text.h"
#include "training/random.h"

namespace training {

namespace fs = std::filesystem;

int64_t missing_class_pictures(const ClassPictureOptions& options) {
  return std::max<int64_t>(0, options.count - count_pictures(options.folder));
}

std::vector<PictureFile> read_class_pictures(const ClassPictureOptions& options) {
  auto files = read_pictures(options.folder);
  const auto present = static_cast<int64_t>(files.size());
  if (present <= options.count) return files;
  fmt::print(
      "notice: '{}': the first {} of {} class pictures are used; hint: --num_class_images "
      "{} takes all\n",
      options.folder, options.count, present, present);
  files.resize(static_cast<std::size_t>(options.count));
  return files;
}

namespace {

fs::path class_picture_path(const ClassPictureOptions& options, int64_t number) {
  return fs::path(options.folder) / fmt::format("class-{}.png", number);
}

// The numbers of the pictures to draw: those that follow the ones that are there, then any gap.
std::vector<int64_t> missing_numbers(const ClassPictureOptions& options) {
  const int64_t missing = missing_class_pictures(options), present = options.count - missing;
  std::vector<int64_t> numbers;
  for (int64_t i = 0; i < options.count; ++i) {
    const int64_t number = (present + i) % options.count;
    if (static_cast<int64_t>(numbers.size()) == missing) break;
    if (!fs::exists(class_picture_path(options, number))) numbers.push_back(number);
  }
  return numbers;
}

}  // namespace

bool draw_class_pictures(sd::StableDiffusion& pipeline, const ClassPictureOptions& options,
                         const distributed::Group& group) {
  fs::create_directories(options.folder);
  std::vector<int64_t> numbers;
  const auto all = missing_numbers(options);
  group.barrier();  // everybody has looked before anybody writes
  for (size_t i = static_cast<size_t>(group.rank()); i < all.size();
       i += static_cast<size_t>(group.size())) {
    numbers.push_back(all[i]);
  }
  const auto count = static_cast<int64_t>(numbers.size());
  cli::Progress progress("Class pictures", count * options.steps);
  for (int64_t done = 0; done < count && !cli::interrupted();) {
    const int64_t batch = std::min(options.batch_size, count - done);
    const int64_t* now = numbers.data() + done;
    std::vector<uint64_t> seeds;
    for (int64_t i = 0; i < batch; ++i) {
      seeds.push_back(generator_for(options.seed, Stream::class_image, now[i]).current_seed());
    }
    const auto sample = sd::SampleOptions()
                            .prompt(options.prompt)
                            .prompt_syntax(sd::PromptSyntax::plain)  // as captions
                            .clip_skip(options.clip_skip)
                            .num_inference_steps(options.steps)
                            .seeds(seeds)
                            .callback([&](int64_t step, int64_t) {
                              progress.update(done * options.steps + batch * step);
                            });
    const auto result = pipeline.sample(sample);
    for (int64_t i = 0; i < batch; ++i) {
      const auto picture = images::to_image(result.pictures[i] * 2 - 1);
      images::save_png(class_picture_path(options, now[i]).string(), picture,
                       {{"parameters", picture_text(options.model, {}, sample, picture,
                                                    seeds[static_cast<size_t>(i)])}});
    }
    done += batch;
  }
  progress.finish();
  return !group.any(cli::interrupted());
}

}  // namespace training
