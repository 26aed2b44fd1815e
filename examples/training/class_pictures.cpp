// SPDX-License-Identifier: Apache-2.0
#include "training/class_pictures.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>

#include "cli/interrupt.h"
#include "cli/progress.h"
#include "images/load.h"
#include "images/png.h"
#include "images/tensor.h"
#include "training/random.h"

namespace training {

namespace fs = std::filesystem;

int64_t missing_class_pictures(const ClassPictureOptions& options) {
  int64_t present = 0;
  if (fs::is_directory(options.folder)) {
    present = static_cast<int64_t>(images::list_images(options.folder).images.size());
  }
  return std::max<int64_t>(0, options.count - present);
}

bool draw_class_pictures(sd::StableDiffusion& pipeline, const ClassPictureOptions& options) {
  fs::create_directories(options.folder);
  const int64_t missing = missing_class_pictures(options);
  const int64_t channels = pipeline.unet()->options.in_channels();
  const auto size = pipeline.default_size();
  const int64_t factor = pipeline.vae_scale_factor();
  cli::Progress progress("Class pictures", missing);
  int64_t number = options.count - missing;
  for (int64_t done = 0; done < missing && !cli::interrupted();) {
    const int64_t batch = std::min(options.batch_size, missing - done);
    std::vector<at::Tensor> noise;
    for (int64_t i = 0; i < batch; ++i) {
      auto generator = generator_for(options.seed, Stream::class_image, number + i);
      noise.push_back(at::randn({channels, size[0] / factor, size[1] / factor}, generator,
                                at::TensorOptions(at::kFloat)));
    }
    const auto result = pipeline.sample(sd::SampleOptions()
                                            .prompt(options.prompt)
                                            .num_inference_steps(options.steps)
                                            .initial_latents(at::stack(noise)));
    for (int64_t i = 0; i < batch; ++i, ++number) {
      const auto path = fs::path(options.folder) / ("class-" + std::to_string(number) + ".png");
      images::save_png(path.string(), images::to_image(result.pictures[i] * 2 - 1),
                       {{"parameters", options.prompt}});
    }
    done += batch;
    progress.update(done);
  }
  progress.finish();
  return missing_class_pictures(options) == 0;
}

}  // namespace training
