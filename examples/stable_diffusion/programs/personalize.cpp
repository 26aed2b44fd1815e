// SPDX-License-Identifier: Apache-2.0
// From one picture of a thing to adapters and pictures of it, by a network of train_hypernetwork.
// Ends with the files written and how long each part took.
#include "research/hypernetwork/personalize.h"
#include "support/cli/fmt.h"
#include "support/cli/run.h"

int main(int argc, char** argv) {
  hypernetwork::PersonalizeOptions options;
  cli::App app(
      "personalize",
      "Teaches a model one thing from one picture in seconds: a hypernetwork predicts the "
      "adapters, a few steps of training finish them.",
      "personalize --pretrained_model_name_or_path stable-diffusion-v1-5 --hypernetwork "
      "dog_network --image rex.jpg --prompt 'a photo of sks dog in a bucket' --output_dir rex");
  hypernetwork::bind(app, options);
  return cli::run(argc, argv, app, [&] {
    const auto result = hypernetwork::personalize(options);
    double total = 0;
    for (const auto& [part, seconds] : result.seconds) {
      fmt::print("{:<14} {:.1f} s\n", part + ":", seconds);
      total += seconds;
    }
    fmt::print("{:<14} {:.1f} s\nprediction:    {}\nadapters:      {}\n", "in all:", total,
               result.prediction, result.adapters);
    for (const auto& path : result.pictures) fmt::print("picture:       {}\n", path);
  });
}
