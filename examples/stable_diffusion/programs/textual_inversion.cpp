// SPDX-License-Identifier: Apache-2.0
// Teaches a Stable Diffusion model a new word from a few pictures: only the word's vectors are
// learned. Ends with the file written and the command that draws with it.
#include <filesystem>

#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/cli/run.h"
#include "training/inversion.h"

namespace {

void print_end(const training::InversionOptions& options) {
  const auto path = std::filesystem::path(options.run.output_dir) / training::Inversion::kFile;
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path));
  fmt::print("learned word:   {} ({})\n", path.string(), cli::format_bytes(bytes));
  fmt::print("draw with it:   {}\n", training::draw_command(options, path.string()));
}

}  // namespace

int main(int argc, char** argv) {
  training::InversionOptions options;
  cli::App app("textual_inversion",
               "Teaches a Stable Diffusion 1.x, 2.x or XL model a new word from a few pictures.",
               "textual_inversion --pretrained_model_name_or_path stable-diffusion-v1-5 "
               "--train_data_dir photos --placeholder_token '<my-cat>' --initializer_token cat "
               "--output_dir word");
  training::bind(app, options);
  return cli::run(argc, argv, app, [&] {
    distributed::run(app, options.group, [&](const distributed::Group& group) {
      training::train_inversion(options, group);
      if (group.is_main()) print_end(options);
    });
  });
}
