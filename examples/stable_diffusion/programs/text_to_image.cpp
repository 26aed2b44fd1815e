// SPDX-License-Identifier: Apache-2.0
// Draws pictures of a prompt with a Stable Diffusion model and any number of LoRA files.
// Ends with one line for each picture written.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "generation/checks.h"
#include "generation/from_png.h"
#include "generation/generator.h"
#include "generation/lora_tags.h"
#include "pipeline/embeddings.h"
#include "pipeline/single_file.h"
#include "support/cli/fmt.h"
#include "support/cli/interrupt.h"
#include "support/cli/message.h"
#include "support/cli/run.h"
#include "support/images/png.h"
#include "support/images/sheet.h"

namespace {

using generation::GeneratedImage;
using generation::GenerationOptions;
using generation::Generator;

// The text as it stands, unless the other syntax is asked for.
void print_tokens(const GenerationOptions& options) {
  const auto tokenizers = sd::load_tokenizers(options.model.path, options.model.load.model_config(),
                                              lightlora::SafetensorsOptions().allow_trailing_bytes(
                                                  options.model.load.allow_trailing_bytes()));
  const auto syntax = options.prompt_syntax.value_or(sd::PromptSyntax::plain);
  const bool weighs = syntax == sd::PromptSyntax::a1111;
  const auto& prompt = options.sample.prompt();
  const auto text = weighs ? generation::take_lora_tags(prompt).text : prompt;
  int number = 0;
  for (const auto& tokenizer : tokenizers) {
    for (const auto& words : options.learned_embeds) {
      for (const auto& word : sd::read_embeddings(words)) sd::add_embedding(*tokenizer, word);
    }
    if (tokenizers.size() > 1) fmt::print("{}:\n", ++number == 1 ? "tokenizer" : "tokenizer_2");
    for (const auto& chunk : sd::prompt_chunks(*tokenizer, text, syntax)) {
      fmt::print("{}\n", nlohmann::json(chunk.ids).dump());
    }
  }
}

void save(const std::string& path, const GeneratedImage& image) {
  images::save_png(path, image.picture, {{"parameters", image.parameters}});
}

// All pictures in rows that are about as many as the columns.
images::Image sheet_of(const std::vector<images::Image>& pictures, const std::string& title) {
  images::Sheet sheet;
  sheet.title = title;
  std::size_t columns = 1;
  while (columns * columns < pictures.size()) ++columns;
  for (std::size_t i = 0; i < pictures.size(); ++i) {
    if (i % columns == 0) sheet.rows.emplace_back();
    sheet.rows.back().push_back(pictures[i]);
  }
  return images::draw_sheet(sheet);
}

void print_stop(const generation::Drawn& drawn) {
  if (drawn.pictures == drawn.asked) return;
  const auto text =
      fmt::format("stopped by request after {} of {} pictures", drawn.pictures, drawn.asked);
  fmt::print("{}\n", text);
  cli::stopped(text);
}

void write_pictures(const GenerationOptions& options, const distributed::Group& group,
                    Generator& generator) {
  GeneratedImage first;
  std::vector<images::Image> pictures;
  const auto drawn = generator.generate([&](const GeneratedImage& image, int64_t i, int64_t count) {
    const std::string path =
        generation::with_suffix(options.output, count > 1 ? fmt::format("-{}", i) : std::string());
    save(path, image);
    if (i == 0) first = image;
    if (options.grid) pictures.push_back(image.picture);
    return fmt::format("picture: {} (seed {}{})", cli::printable(path), image.seed,
                       count > 1 && options.seeds.empty() ? fmt::format(", {} of {}", i + 1, count)
                                                          : std::string());
  });
  if (!group.is_main()) return;
  if (!options.save_latents.empty() && drawn.pictures > 0) {
    fmt::print("latents: {}\n", cli::printable(options.save_latents));
  }
  if (!pictures.empty()) {
    const std::string path = generation::with_suffix(options.output, "-grid");
    save(path, {sheet_of(pictures, options.sample.prompt()), first.parameters, first.seed});
    fmt::print("sheet: {}\n", cli::printable(path));
  }
  print_stop(drawn);
}

void write_sheet(const GenerationOptions& options, const distributed::Group& group,
                 Generator& generator, const std::vector<generation::Axis>& axes) {
  uint64_t seed = 0;
  const auto drawn = generator.generate_sheet(axes, [&](const GeneratedImage& sheet) {
    save(options.output, sheet);
    seed = sheet.seed;
  });
  if (!group.is_main()) return;
  if (drawn.pictures > 0) fmt::print("sheet: {} (seed {})\n", cli::printable(options.output), seed);
  print_stop(drawn);
}

// Whether there is something to draw, and not only a model to write.
bool draws(const cli::App& app, const GenerationOptions& options) {
  return !options.from_png.empty() || app.get_option("--prompt")->count() > 0;
}

// What has to hold before the model is read.
void check(const cli::App& app, const GenerationOptions& options) {
  const bool drawing = draws(app, options);
  TORCH_CHECK_VALUE(drawing || !options.merge_to.empty(),
                    "missing required flag '--prompt'; hint: see --help");
  TORCH_CHECK_VALUE(!drawing || options.print_tokens || !options.output.empty(),
                    "--output: expected a file to write, got none");
  images::check_png_name(options.output);
  TORCH_CHECK_VALUE(options.merge_to.empty() ||
                        std::filesystem::path(options.merge_to).extension() == ".safetensors",
                    "--merge_to: expected a name that ends in .safetensors, got '",
                    options.merge_to, "'");
  TORCH_CHECK_VALUE(options.seeds.empty() || app.get_option("--seed")->count() == 0,
                    "--seeds: expected no --seed beside it");
  TORCH_CHECK_VALUE(
      options.seeds.empty() || options.initial_latents.empty(),
      "--seeds: expected no --initial_latents beside it, which are the noise already");
  for (const auto& axis : generation::parse_axes(options.xy)) {
    TORCH_CHECK_VALUE(
        axis.name != "seed" || options.initial_latents.empty(),
        "--xy seed: expected no --initial_latents beside it, which are the noise already");
  }
  const bool several =
      options.sample.num_images_per_prompt() > 1 && !options.sample.batch_position();
  TORCH_CHECK_VALUE(options.seeds.empty() || !several ||
                        static_cast<int64_t>(options.seed_list().size()) ==
                            options.sample.num_images_per_prompt(),
                    "--seeds: expected as many as --num_images_per_prompt ",
                    options.sample.num_images_per_prompt(), ", got ", options.seed_list().size());
  TORCH_CHECK_VALUE(options.xy.empty() || (!several && options.seeds.empty()),
                    "--xy: expected one picture in each place, got more; hint: --xy seed=1,2,3");
}

void read_png(cli::App& app, GenerationOptions& options) {
  const auto unused = generation::apply_png(options.from_png, app, options);
  if (unused.empty()) return;
  fmt::print("notice: '{}': not used: {}\n", cli::printable(options.from_png),
             cli::printable(fmt::format("{}", fmt::join(unused, ", "))));
}

void draw(cli::App& app, GenerationOptions& options, const distributed::Group& group) {
  check(app, options);
  if (options.print_tokens) {
    generation::check_limits(options, {});
    return print_tokens(options);
  }
  auto axes = generation::parse_axes(options.xy);
  generation::check_limits(options, axes);
  if (group.is_main()) generation::check_outputs(options);
  for (auto& axis : axes) generation::settle_seeds(axis, group);
  generation::settle_seeds(options, group);
  Generator generator(options, group);
  if (!options.merge_to.empty()) fmt::print("model: {}\n", cli::printable(options.merge_to));
  if (!draws(app, options)) return;
  for (const auto& line : generator.notices()) fmt::print("notice: {}\n", cli::printable(line));
  axes.empty() ? write_pictures(options, group, generator)
               : write_sheet(options, group, generator, axes);
}

}  // namespace

int main(int argc, char** argv) {
  GenerationOptions options;
  cli::App app("text_to_image",
               "Draws pictures of a prompt with a Stable Diffusion 1.x, 2.x or XL model.",
               "text_to_image --pretrained_model_name_or_path stable-diffusion-v1-5 --lora "
               "out/pytorch_lora_weights.safetensors:0.8 --prompt 'a photo of sks dog in a bucket' "
               "--seed 1 --output dog.png");
  generation::bind(app, options);
  return cli::run(argc, argv, app, [&] {
    distributed::run(app, options.group, [&](const distributed::Group& group) {
      if (!options.from_png.empty()) read_png(app, options);
      generation::naming_picture(options, [&] { draw(app, options, group); });
    });
  });
}
