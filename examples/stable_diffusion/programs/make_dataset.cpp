// SPDX-License-Identifier: Apache-2.0
// make_dataset: draws a captioned data set from a colour emoji font, for `pretrain`.
// Prints at the end: "wrote OUTPUT_DIR: <named> named emoji, <extra> more for the autoencoder,
// <unseen> unseen, <subjects> subjects".
#include <lightlora/file_io.h>

#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "research/pretraining/dataset.h"
#include "research/pretraining/emoji.h"
#include "research/pretraining/folder.h"
#include "research/pretraining/pictures.h"
#include "support/cli/app.h"
#include "support/cli/fmt.h"
#include "support/cli/run.h"
#include "support/files/json_file.h"
#include "support/files/outputs.h"
#include "support/images/png.h"
#include "support/images/tensor.h"

namespace {

struct Options {
  std::string config;
  std::string font = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf";
  std::string names = "/usr/share/unicode/emoji/emoji-test.txt";
  std::string output_dir;
  int64_t instance_pictures = 6;
  int64_t instance_size = 160;
  int64_t pictures = 0;
  int64_t identities = 0;
};

std::string file_name_of(std::string name) {
  for (char& c : name) {
    if (c == ' ') c = '_';
  }
  return name == "piñata" ? "pinata" : name;  // a folder's name, of which a list is the source
}

at::Tensor to_unit(const at::Tensor& picture) {
  return picture.to(at::kFloat).mul(2.0 / 255).sub(1);
}

// "a large sks bear on a purple background" for a teddy bear: the noun is what a person would say,
// and with its size said a subject does not learn to be large, and can be asked for as a small one.
std::string instance_caption(const std::string& name, const std::string& color) {
  const size_t space = name.rfind(' ');
  const std::string noun = space == std::string::npos ? name : name.substr(space + 1);
  return "a large sks " + noun + " on a " + color + " background";
}

// Blue, black and teal never occur, so that a picture on them shows what was learned, not copied.
// Each picture's caption lies beside it, so that the background is not learned as the subject's.
void write_subjects(pretraining::Composer& composer, const Options& options) {
  const std::vector<int64_t> colors = {7, 3, 4, 10, 0, 5, 2, 8, 9};
  for (const int64_t subject : composer.emoji().with_roles({pretraining::Role::kSubject})) {
    const std::string name = file_name_of(composer.emoji().names[subject]);
    const std::string folder =
        options.output_dir + "/subjects/" + lightlora::path_component(name, options.names);
    sd::make_folder(folder);
    std::mt19937_64 random(subject);
    for (int64_t i = 0; i < options.instance_pictures; ++i) {
      const int64_t color = colors[i % colors.size()];
      const at::Tensor picture = composer.draw(subject, color, random, options.instance_size);
      const std::string color_name = pretraining::named_colors()[color].name;
      const std::string stem = fmt::format("{}/{}_{}", folder, i, color_name);
      images::save_png(stem + ".png", images::to_image(to_unit(picture)));
      pretraining::write_text(stem + ".txt",
                              instance_caption(composer.emoji().names[subject], color_name) + "\n");
    }
  }
}

// The first pictures of the training stream as an image folder that other trainers read.
void write_pictures(pretraining::Composer& composer, const Options& options) {
  if (options.pictures == 0) return;
  const std::string folder = options.output_dir + "/pictures";
  sd::make_folder(folder);
  std::string captions;
  for (int64_t i = 0; i < options.pictures; ++i) {
    const auto sample = composer.sample(i);
    const std::string name = fmt::format("{}.png", i);
    images::save_png(folder + "/" + name, images::to_image(to_unit(sample.picture)));
    captions += nlohmann::json({{"file_name", name}, {"text", sample.caption}}).dump() + "\n";
  }
  pretraining::write_text(folder + "/metadata.jsonl", captions);
}

// Things for train_hypernetwork: the extra emoji to learn from and, of subgroups of Unicode that these
// do without, those that no training has seen. So no subgroup is on both sides.
void write_identities(pretraining::Composer& composer, const nlohmann::json& config,
                      const Options& options) {
  if (options.identities == 0) return;
  using pretraining::Role;
  const auto held_out = config.value("held_out_subgroups", std::vector<std::string>());
  const std::set<std::string> apart(held_out.begin(), held_out.end());
  std::map<std::string, std::string> subgroups;
  for (const auto& item : pretraining::read_emoji_names(options.names)) {
    subgroups[item.name] = item.subgroup;
  }
  const auto& emoji = composer.emoji();
  for (const int64_t i : emoji.with_roles({Role::kExtra, Role::kUnseen, Role::kSubject})) {
    const bool learned = emoji.roles[i] == Role::kExtra;
    const bool is_apart = apart.count(subgroups[emoji.names[i]]) > 0;
    if (learned == is_apart) continue;
    const auto name = lightlora::path_component(file_name_of(emoji.names[i]), options.names);
    const auto folder = options.output_dir + (learned ? "/identities/" : "/held_out/") + name;
    sd::make_folder(folder);
    std::mt19937_64 random(i);
    std::string captions;
    for (int64_t k = 0; k < options.identities; ++k) {
      const int64_t color = (i + k) % static_cast<int64_t>(pretraining::named_colors().size());
      const auto file = fmt::format("{}.png", k);
      images::save_png(folder + "/" + file,
                       images::to_image(to_unit(composer.draw(i, color, random, composer.size()))));
      const auto caption =
          fmt::format("a sks thing on a {} background", pretraining::named_colors()[color].name);
      captions += nlohmann::json({{"file_name", file}, {"text", caption}}).dump() + "\n";
    }
    pretraining::write_text(folder + "/metadata.jsonl", captions);
  }
}

// Another data set in the folder would be mixed with this one: its pictures have names of the same
// kind. The same settings make the same pictures again.
void claim_folder(const nlohmann::json& config, const Options& options) {
  namespace fs = std::filesystem;
  constexpr uint64_t kMostBytes = 32'000'000;
  const nlohmann::json settings{{"dataset", config},
                                {"instance_pictures", options.instance_pictures},
                                {"instance_size", options.instance_size},
                                {"pictures", options.pictures},
                                {"identities", options.identities}};
  const std::string text = settings.dump(1) + "\n", path = options.output_dir + "/settings.json";
  const bool other = fs::exists(path) ? lightlora::read_file(path, kMostBytes) != text
                                      : fs::exists(options.output_dir + "/emoji.safetensors");
  TORCH_CHECK(
      !other, "'", options.output_dir,
      "': expected a folder without a data set, got one that was made with other settings; ",
      "hint: another --output_dir, or remove it");
  sd::make_folder(options.output_dir);
  pretraining::write_text(path, text);
}

void make(const Options& options) {
  using pretraining::Role;
  const auto file = sd::read_json_file(options.config);
  TORCH_CHECK(file.contains("dataset") && file["dataset"].is_object(), "'", options.config,
              "': expected an object 'dataset', got none");
  const auto& config = file["dataset"];
  auto emoji = pretraining::make_emoji_set(config, options.font, options.names);
  claim_folder(config, options);
  emoji.save(options.output_dir + "/emoji.safetensors");
  const auto count = [&](Role role) { return emoji.with_roles({role}).size(); };
  pretraining::Composer composer(emoji, emoji.with_roles({Role::kNamed}), config);
  pretraining::save_sheet(options.output_dir + "/preview.png", composer.batch(0, 96), 12);
  write_subjects(composer, options);
  write_pictures(composer, options);
  write_identities(composer, config, options);
  fmt::print("wrote {}: {} named emoji, {} more for the autoencoder, {} unseen, {} subjects\n",
             options.output_dir, count(Role::kNamed), count(Role::kExtra), count(Role::kUnseen),
             count(Role::kSubject));
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  cli::App app("make_dataset",
               "Draws captioned pictures of emoji on named background colours, for `pretrain`.",
               "make_dataset --config examples/stable_diffusion/research/pretraining/base.json "
               "--output_dir data");
  app.group("Input");
  app.add_option("--config", options.config, "JSON file whose `dataset` says what to draw")
      ->required();
  app.add_option("--font", options.font, "Font with colour bitmaps (fonts-noto-color-emoji)");
  app.add_option("--emoji_names", options.names, "Unicode's emoji-test.txt (unicode-data)");
  app.group("Output");
  app.add_option("--output_dir", options.output_dir, "Folder to write")->required();
  app.add_option("--instance_pictures", options.instance_pictures, "Pictures of each subject")
      ->check(cli::between(0, 10'000));
  app.add_option("--instance_size", options.instance_size, "Their height and width")
      ->check(cli::between(16, 1023));  // as the data set's own `size`
  app.add_option("--pictures", options.pictures,
                 "Also write this many training pictures as PNG, with their captions")
      ->check(cli::between(0, 10'000'000));
  app.add_option("--identities", options.identities,
                 "Also write this many pictures of each emoji outside the vocabulary, for "
                 "train_hypernetwork: folders identities and held_out")
      ->check(cli::between(0, 10'000));
  return cli::run(argc, argv, app,
                  [&] { pretraining::with_config_name(options.config, [&] { make(options); }); });
}
