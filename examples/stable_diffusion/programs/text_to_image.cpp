// SPDX-License-Identifier: Apache-2.0
// Draws pictures of a prompt with a Stable Diffusion model and any number of LoRA files.
// Ends with one line for each picture written.
#include <iostream>
#include <nlohmann/json.hpp>

#include "support/cli/app.h"
#include "support/cli/run.h"
#include "generation/drawing.h"
#include "generation/lora_tags.h"
#include "generation/parameters.h"
#include "support/images/png.h"
#include "support/images/sheet.h"
#include "pipeline/embeddings.h"
#include "pipeline/single_file.h"

namespace {

using generation::Drawing;
using generation::Flags;

// The text as it stands, unless the other syntax is asked for.
void print_tokens(const Flags& flags) {
  const auto loaded = sd::load_tokenizer(
      flags.model, flags.model_config,
      lightlora::SafetensorsOptions().allow_trailing_bytes(flags.allow_trailing_bytes));
  sd::Tokenizer& tokenizer = *loaded;
  for (const auto& text : flags.learned_embeds) {
    for (const auto& embedding : sd::read_embeddings(text)) sd::add_embedding(tokenizer, embedding);
  }
  const bool weighs = flags.prompt_syntax == "a1111";
  const auto text = weighs ? generation::take_lora_tags(flags.prompt).text : flags.prompt;
  const auto syntax = weighs ? sd::PromptSyntax::a1111 : sd::PromptSyntax::plain;
  for (const auto& chunk : sd::prompt_chunks(tokenizer, text, syntax)) {
    std::cout << nlohmann::json(chunk.ids).dump() << "\n";
  }
}

// "dir/cat.png" with "-0" is "dir/cat-0.png".
std::string with_suffix(const std::string& path, const std::string& suffix) {
  const bool png = path.size() > 4 && path.compare(path.size() - 4, 4, ".png") == 0;
  return png ? path.substr(0, path.size() - 4) + suffix + ".png" : path + suffix;
}

void save(const std::string& path, const Drawing& drawing) {
  images::save_png(path, drawing.picture, {{"parameters", drawing.parameters}});
}

// All pictures in rows that are about as many as the columns.
images::Image sheet_of(const std::vector<Drawing>& drawings, const std::string& title) {
  images::Sheet sheet;
  sheet.title = title;
  std::size_t columns = 1;
  while (columns * columns < drawings.size()) ++columns;
  for (std::size_t i = 0; i < drawings.size(); ++i) {
    if (i % columns == 0) sheet.rows.emplace_back();
    sheet.rows.back().push_back(drawings[i].picture);
  }
  return images::draw_sheet(sheet);
}

void write_pictures(const Flags& flags, const distributed::Group& group,
                    generation::Artist& artist) {
  const auto drawings = artist.draw();
  if (!group.is_main()) return;
  if (!flags.save_latents.empty()) std::cout << "latents: " << flags.save_latents << "\n";
  for (std::size_t i = 0; i < drawings.size(); ++i) {
    const std::string suffix = drawings.size() > 1 ? "-" + std::to_string(i) : "";
    const std::string path = with_suffix(flags.output, suffix);
    save(path, drawings[i]);
    std::cout << "picture: " << path << " (seed " << drawings[i].seed << ")\n";
  }
  if (!flags.grid) return;
  const std::string path = with_suffix(flags.output, "-grid");
  save(path, {sheet_of(drawings, flags.prompt), drawings.front().parameters});
  std::cout << "sheet: " << path << "\n";
}

void write_sheet(const Flags& flags, const distributed::Group& group, generation::Artist& artist,
                 const std::vector<generation::Axis>& axes) {
  const auto drawing = artist.draw_sheet(axes);
  if (!group.is_main()) return;
  save(flags.output, drawing);
  std::cout << "sheet: " << flags.output << " (seed " << drawing.seed << ")\n";
}

// Whether there is something to draw, and not only a model to write.
bool draws(const cli::App& app, const Flags& flags) {
  return !flags.from_png.empty() || app.get_option("--prompt")->count() > 0;
}

// What has to hold before the model is read.
void check(const cli::App& app, const Flags& flags) {
  const bool drawing = draws(app, flags);
  TORCH_CHECK_VALUE(drawing || !flags.merge_to.empty(),
                    "missing required flag '--prompt'; hint: see --help");
  TORCH_CHECK_VALUE(!drawing || flags.print_tokens || !flags.output.empty(),
                    "--output: expected a file to write, got none");
  TORCH_CHECK_VALUE(flags.merge_to.empty() ||
                        std::filesystem::path(flags.merge_to).extension() == ".safetensors",
                    "--merge_to: expected a name that ends in .safetensors, got '", flags.merge_to,
                    "'");
  TORCH_CHECK_VALUE(flags.seeds.empty() || app.get_option("--seed")->count() == 0,
                    "--seeds: expected no --seed beside it");
  TORCH_CHECK_VALUE(flags.seeds.empty() || flags.initial_latents.empty(),
                    "--seeds: expected no --initial_latents beside it, which are the noise already");
  const bool several = flags.num_images_per_prompt > 1 && !flags.batch_position;
  TORCH_CHECK_VALUE(
      flags.seeds.empty() || !several ||
          static_cast<int64_t>(flags.seed_list().size()) == flags.num_images_per_prompt,
      "--seeds: expected as many as --num_images_per_prompt ", flags.num_images_per_prompt,
      ", got ", flags.seed_list().size());
  TORCH_CHECK_VALUE(flags.xy.empty() || (!several && flags.seeds.empty()),
                    "--xy: expected one picture in each place, got more; hint: --xy seed=1,2,3");
}

void draw(cli::App& app, Flags& flags, const distributed::Group& group) {
  std::vector<std::string> known_loras;
  if (!flags.from_png.empty()) {
    auto settings = generation::apply_png(flags.from_png, app, flags);
    known_loras = std::move(settings.lora_files);
    std::string list;
    for (const auto& name : settings.ignored) list += (list.empty() ? "" : ", ") + name;
    if (!list.empty())
      std::cout << "notice: '" << flags.from_png << "': not used: " << list << "\n";
  }
  check(app, flags);
  if (flags.print_tokens) return print_tokens(flags);
  const auto axes = generation::parse_axes(flags.xy);
  generation::Artist artist(flags, known_loras, group);
  if (!flags.merge_to.empty()) std::cout << "model: " << flags.merge_to << "\n";
  if (!draws(app, flags)) return;
  for (const auto& line : artist.notices()) std::cout << "notice: " << line << "\n";
  axes.empty() ? write_pictures(flags, group, artist) : write_sheet(flags, group, artist, axes);
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  cli::App app("text_to_image",
               "Draws pictures of a prompt with a Stable Diffusion 1.x or 2.x model.",
               "text_to_image --pretrained_model_name_or_path stable-diffusion-v1-5 --lora "
               "out/pytorch_lora_weights.safetensors:0.8 --prompt 'a photo of sks dog in a bucket' "
               "--seed 1 --output dog.png");
  generation::add_flags(app, flags);
  return cli::run(argc, argv, app, [&] {
    distributed::run(app, flags.group,
                     [&](const distributed::Group& group) { draw(app, flags, group); });
  });
}
