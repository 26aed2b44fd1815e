// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/dataset.h"

#include <ATen/ATen.h>
#include <lightlora/file_io.h>
#include <torch/nn/functional/upsampling.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "research/pretraining/emoji.h"
#include "support/files/json_file.h"

namespace pretraining {
namespace {

namespace F = torch::nn::functional;

std::string article(const std::string& words, bool proper) {
  const bool vowel = std::string("aeiou").find(words.front()) != std::string::npos;
  return vowel && proper ? "an " : "a ";
}

std::mt19937_64 generator_at(uint64_t seed, int64_t index) {
  return std::mt19937_64((seed + 1) * 0x9e3779b97f4a7c15ull + static_cast<uint64_t>(index));
}

}  // namespace

const std::vector<NamedColor>& named_colors() {
  static const std::vector<NamedColor> colors = {
      {"white", {245, 245, 245}}, {"black", {25, 25, 28}},    {"red", {200, 45, 45}},
      {"orange", {235, 140, 40}}, {"yellow", {240, 215, 70}}, {"green", {60, 150, 70}},
      {"blue", {50, 95, 190}},    {"purple", {125, 65, 165}}, {"pink", {240, 150, 185}},
      {"gray", {128, 130, 134}},  {"brown", {120, 80, 50}},   {"teal", {40, 150, 150}}};
  return colors;
}

std::vector<int64_t> EmojiSet::with_roles(const std::vector<Role>& wanted) const {
  std::vector<int64_t> found;
  for (size_t i = 0; i < roles.size(); ++i) {
    if (std::count(wanted.begin(), wanted.end(), roles[i])) found.push_back(i);
  }
  return found;
}

void EmojiSet::save(const std::string& path) const {
  std::vector<int> numbers;
  for (const Role role : roles) numbers.push_back(static_cast<int>(role));
  lightlora::save_safetensors(
      path, {{"bitmaps", bitmaps}},
      {{"names", nlohmann::json(names).dump()}, {"roles", nlohmann::json(numbers).dump()}});
}

EmojiSet EmojiSet::load(const std::string& path) {
  const lightlora::SafetensorsFile file(path);
  TORCH_CHECK(file.contains("bitmaps") && file.metadata().count("names"), "'", path,
              "': expected the emoji of a data set, got another safetensors file",
              "; hint: make_dataset writes emoji.safetensors");
  EmojiSet set;
  set.bitmaps = file.load("bitmaps");
  const auto list = [&](const char* key) {
    const auto found = file.metadata().find(key);
    TORCH_CHECK(found != file.metadata().end(), "'", path, "': expected metadata '", key,
                "', got none");
    const auto value = sd::parse_json(found->second, "'" + path + "': metadata '" + key + "'");
    TORCH_CHECK(value.is_array(), "'", path, "': expected a list as metadata '", key, "', got ",
                value.type_name());
    return value;
  };
  for (const auto& name : list("names")) {
    TORCH_CHECK(name.is_string() && !name.get<std::string>().empty(), "'", path,
                "': expected names of emoji, got ", name.dump());
    set.names.push_back(name.get<std::string>());
  }
  for (const auto& role : list("roles")) {
    const int64_t number = role.is_number_integer() ? role.get<int64_t>() : -1;
    TORCH_CHECK(number >= 0 && number <= static_cast<int64_t>(Role::kSubject), "'", path,
                "': expected roles of emoji from 0 to ", static_cast<int64_t>(Role::kSubject),
                ", got ", role.dump());
    set.roles.push_back(static_cast<Role>(number));
  }
  const auto& bitmaps = set.bitmaps;
  TORCH_CHECK(bitmaps.dim() == 4 && bitmaps.size(1) == 4 && bitmaps.numel() > 0 &&
                  bitmaps.scalar_type() == at::kByte &&
                  bitmaps.size(0) == static_cast<int64_t>(set.names.size()) &&
                  set.names.size() == set.roles.size(),
              "'", path,
              "': expected a name and a role for each bitmap (n, 4, height, width), got ",
              set.names.size(), " names, ", set.roles.size(), " roles and bitmaps ",
              bitmaps.scalar_type(), " ", bitmaps.sizes());
  return set;
}

EmojiSet make_emoji_set(const nlohmann::json& options, const std::string& font_path,
                        const std::string& names_path) {
  const ColorFont font(font_path);
  std::map<std::string, Role> wanted;
  for (const std::string name : options.at("emoji")) wanted[name] = Role::kNamed;
  for (const std::string name : options.at("subjects")) wanted[name] = Role::kSubject;
  const auto groups = options.at("extra_groups").get<std::set<std::string>>();
  const int64_t unseen_every = options.value("unseen_every", 10);
  TORCH_CHECK_VALUE(unseen_every > 0, "dataset: expected unseen_every to be positive, got ",
                    unseen_every);
  EmojiSet set;
  std::vector<at::Tensor> bitmaps;
  int64_t others = 0;
  for (const EmojiName& emoji : read_emoji_names(names_path)) {
    const auto found = wanted.find(emoji.name);
    if (found == wanted.end() && !groups.count(emoji.group)) continue;
    at::Tensor bitmap = font.bitmap(emoji.code_point);
    if (!bitmap.defined()) continue;
    const bool unseen = found == wanted.end() && others++ % unseen_every == 0;
    set.roles.push_back(found != wanted.end() ? found->second
                                              : (unseen ? Role::kUnseen : Role::kExtra));
    set.names.push_back(emoji.name);
    bitmaps.push_back(bitmap);
    if (found != wanted.end()) wanted.erase(found);
  }
  TORCH_CHECK_VALUE(wanted.empty(), "dataset: expected every emoji to be in '", names_path,
                    "' and in the font, got '", wanted.begin()->first, "', which is not");
  set.bitmaps = at::stack(bitmaps);
  return set;
}

Composer::Composer(EmojiSet emoji, std::vector<int64_t> choice, const nlohmann::json& options)
    : emoji_(std::move(emoji)),
      choice_(std::move(choice)),
      size_(options.at("size")),
      layouts_(read_layouts(options)),
      seed_(options.at("seed")),
      without_color_(options.value("captions_without_color", 0.0)),
      with_made_up_word_(options.value("captions_with_made_up_word", 0.0)),
      with_an_(options.value("captions_with_an", 0.0)) {
  TORCH_CHECK_VALUE(!choice_.empty(), "dataset: expected emoji to draw, got none");
  TORCH_CHECK_VALUE(size_ >= 8 && size_ < 1024, "dataset: expected a size from 8 to 1023, got ",
                    size_);
}

void Composer::mix_in(std::vector<int64_t> others, double share) {
  others_ = std::move(others);
  share_of_others_ = others_.empty() ? 0 : share;
}

const at::Tensor& Composer::resized(int64_t emoji, int64_t side) {
  at::Tensor& slot = resized_[emoji * 1024 + side];
  if (!slot.defined()) {
    const auto bitmap = emoji_.bitmaps[emoji].unsqueeze(0).to(at::kFloat);
    slot = F::interpolate(bitmap, F::InterpolateFuncOptions()
                                      .size(std::vector<int64_t>{side, side})
                                      .mode(torch::kBilinear)
                                      .align_corners(false)
                                      .antialias(true))
               .squeeze(0)
               .round()
               .to(at::kByte)
               .contiguous();
  }
  return slot;
}

at::Tensor Composer::draw(int64_t emoji, int64_t color, std::mt19937_64& random, int64_t size) {
  // No caption is made, so how often captions name the size changes no picture.
  Layout silent = layouts_.front();
  silent.size_said = 0;
  return draw(emoji, color, place_by(silent, size, random), random, size);
}

at::Tensor Composer::draw(int64_t emoji, int64_t color, const Placement& placement,
                          std::mt19937_64& random, int64_t size) {
  const int64_t side = placement.side;
  const bool anywhere = placement.place < 0;
  const int64_t left = edge_of(anywhere ? -1 : placement.place % 3, side, size, random);
  const int64_t top = edge_of(anywhere ? -1 : placement.place / 3, side, size, random);
  const at::Tensor& bitmap = resized(emoji, side);
  const uint8_t* source = bitmap.const_data_ptr<uint8_t>();
  const uint8_t* alpha = source + 3 * side * side;
  at::Tensor picture = at::empty({3, size, size}, at::kByte);
  for (int64_t c = 0; c < 3; ++c) {
    const int base = named_colors()[color].rgb[c] + static_cast<int>(below(random, 9)) - 4;
    const int background = std::min(255, std::max(0, base));
    uint8_t* plane = picture.mutable_data_ptr<uint8_t>() + c * size * size;
    std::fill(plane, plane + size * size, static_cast<uint8_t>(background));
    for (int64_t y = 0; y < side; ++y) {
      for (int64_t x = 0; x < side; ++x) {
        const int64_t i = y * side + x;
        const int value = source[c * side * side + i] + (background * (255 - alpha[i]) + 127) / 255;
        plane[(top + y) * size + left + x] = static_cast<uint8_t>(std::min(255, value));
      }
    }
  }
  return picture;
}

std::string Composer::caption(int64_t emoji, int64_t color, const Placement& placement,
                              std::mt19937_64& random) const {
  std::string text;
  if (!placement.size_word.empty()) text += placement.size_word + ' ';
  // A word without meaning, as personalisation puts it before the noun: the rest stays readable.
  if (uniform(random) < with_made_up_word_) {
    for (int i = 0; i < 3; ++i) text += static_cast<char>('a' + below(random, 26));
    text += ' ';
  }
  text += emoji_.names[emoji];
  if (placement.place_said) text += ' ' + place_phrases()[placement.place];
  // People write "a owl" too; both articles should mean the same.
  const bool proper = with_an_ > 0 && uniform(random) < with_an_;
  if (uniform(random) >= without_color_) {
    const std::string name = named_colors()[color].name;
    text += " on " + article(name, proper) + name + " background";
  }
  return article(text, proper) + text;
}

Sample Composer::sample(int64_t index) {
  auto random = generator_at(seed_, index);
  Sample sample;
  const bool other = share_of_others_ > 0 && uniform(random) < share_of_others_;
  const auto& choice = other ? others_ : choice_;
  sample.emoji = choice[below(random, choice.size())];
  sample.color = below(random, named_colors().size());
  const Placement placement = place_by(pick_layout(layouts_, random), size_, random);
  sample.picture = draw(sample.emoji, sample.color, placement, random, size_);
  sample.caption = caption(sample.emoji, sample.color, placement, random);
  return sample;
}

at::Tensor Composer::batch(int64_t first, int64_t count, std::vector<std::string>* captions) {
  std::vector<at::Tensor> pictures;
  for (int64_t i = first; i < first + count; ++i) {
    Sample next = sample(i);
    pictures.push_back(next.picture);
    if (captions) captions->push_back(std::move(next.caption));
  }
  return at::stack(pictures).to(at::kFloat).mul_(2.0 / 255).sub_(1);
}

std::vector<int64_t> nameable(const EmojiSet& emoji, Role role) {
  const auto plain = [](char c) { return (c >= 'a' && c <= 'z') || c == ' ' || c == '-'; };
  std::vector<int64_t> found;
  for (const int64_t i : emoji.with_roles({role})) {
    const std::string& name = emoji.names[i];
    if (std::all_of(name.begin(), name.end(), plain)) found.push_back(i);
  }
  return found;
}

std::vector<std::string> all_captions(const EmojiSet& emoji, const nlohmann::json& options) {
  std::vector<std::string> captions;
  for (const int64_t i : emoji.with_roles({Role::kNamed})) {
    for (const NamedColor& color : named_colors()) {
      captions.push_back("a " + emoji.names[i] + " on a " + color.name + " background");
    }
  }
  if (options.value("share_of_others", 0.0) > 0) {
    for (const int64_t i : nameable(emoji, Role::kExtra)) captions.push_back(emoji.names[i]);
  }
  if (options.value("captions_with_an", 0.0) > 0) captions.push_back("an");
  for (const Layout& layout : read_layouts(options)) {
    if (layout.placed)
      captions.insert(captions.end(), place_phrases().begin(), place_phrases().end());
    captions.push_back(layout.size_word);
  }
  return captions;
}

}  // namespace pretraining
