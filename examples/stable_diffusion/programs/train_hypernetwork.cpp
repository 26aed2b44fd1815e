// SPDX-License-Identifier: Apache-2.0
// Trains a network that predicts adapters from one picture. Ends with the files written.
#include "research/hypernetwork/task.h"
#include "support/cli/fmt.h"
#include "support/cli/run.h"

int main(int argc, char** argv) {
  hypernetwork::TrainOptions options;
  cli::App app(
      "train_hypernetwork",
      "Trains a network that looks at one picture of a thing and predicts adapters that "
      "draw it, as HyperDreamBooth does; personalize uses it.",
      "train_hypernetwork --pretrained_model_name_or_path stable-diffusion-v1-5 "
      "--identities_dir dogs --instance_prompt 'a photo of sks dog' --output_dir dog_network");
  hypernetwork::bind(app, options);
  return cli::run(argc, argv, app, [&] {
    distributed::run(app, options.group, [&](const distributed::Group& group) {
      const auto steps = hypernetwork::train_hypernetwork(options, group, app.settings());
      if (!group.is_main()) return;
      fmt::print("{} steps done\nnetwork:      {}/{}\nmean adapter: {}/{}\n", steps,
                 options.output_dir, hypernetwork::kNetworkFile, options.output_dir,
                 hypernetwork::kMeanFile);
    });
  });
}
