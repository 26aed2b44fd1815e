// SPDX-License-Identifier: Apache-2.0
#include "lora_files/layer_places.h"

#include <algorithm>
#include <map>
#include <utility>

namespace lora_files {
namespace {

constexpr std::size_t kMostDigits = 6;

// One name of one kind of layer.
struct Pattern {
  int family, component, kind, part;
  bool original;
  std::string dotted, flat;
};

std::string with_underscores(std::string name) {
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

void add_patterns(std::vector<Pattern>& patterns, const LayerKind& kind, Pattern pattern) {
  const auto add = [&](const std::string& name, int part, bool original) {
    pattern.part = part;
    pattern.original = original;
    pattern.dotted = name;
    pattern.flat = with_underscores(name);
    patterns.push_back(pattern);
  };
  const bool alike = !kind.is_fused() && kind.original == kind.diffusers[0];
  if (!alike) add(kind.original, Place::kWhole, true);
  if (kind.alias) return;
  for (size_t i = 0; i < kind.diffusers.size(); ++i) {
    add(kind.diffusers[i], kind.is_fused() ? static_cast<int>(i) : Place::kWhole, false);
  }
}

const std::vector<Pattern>& patterns() {
  static const std::vector<Pattern> all = [] {
    std::vector<Pattern> made;
    const auto& known = families();
    for (size_t f = 0; f < known.size(); ++f) {
      for (size_t c = 0; c < known[f].components.size(); ++c) {
        const auto& kinds = known[f].components[c].kinds;
        for (size_t k = 0; k < kinds.size(); ++k) {
          Pattern pattern{
              static_cast<int>(f), static_cast<int>(c), static_cast<int>(k), 0, false, "", ""};
          add_patterns(made, kinds[k], pattern);
        }
      }
    }
    return made;
  }();
  return all;
}

bool fits(std::string_view pattern, std::string_view text, std::vector<std::string>& numbers) {
  for (; !pattern.empty(); pattern.remove_prefix(1)) {
    if (pattern[0] == '*') {
      const auto end = std::min(text.find_first_not_of("0123456789"), text.size());
      if (end == 0 || end > kMostDigits) return false;
      numbers.emplace_back(text.substr(0, end));
      text.remove_prefix(end);
    } else {
      if (text.empty() || text[0] != pattern[0]) return false;
      text.remove_prefix(1);
    }
  }
  return text.empty();
}

std::string filled(const std::string& pattern, const std::vector<std::string>& numbers) {
  std::string name;
  size_t next = 0;
  for (const char c : pattern) {
    if (c == '*' && next < numbers.size()) {
      name += numbers[next++];
    } else {
      name += c;
    }
  }
  return name;
}

// Whether `layer` begins with it; `rest` is what follows.
bool follows(std::string_view layer, std::string_view prefix, std::string_view& rest) {
  if (layer.substr(0, prefix.size()) != prefix) return false;
  rest = layer.substr(prefix.size());
  return true;
}

// What may stand before a layer's name.
struct Start {
  std::string text;
  bool flat;
};

std::vector<Start> starts_of(const Family& family, int component) {
  const auto& own = family.components[static_cast<size_t>(component)];
  std::vector<Start> starts{{own.comfyui, false}, {own.diffusers, false}};
  if (!own.kohya.empty()) starts.insert(starts.begin(), Start{own.kohya, true});
  if (component == 0) {
    // VideoX-Fun has the second underscore.
    starts.insert(starts.end(), {{"lora_unet__", true},
                                 {"lora_transformer_", true},
                                 {"lycoris_", true},
                                 {"model.diffusion_model.", false},
                                 {"base_model.model.", false},
                                 {"", false}});
  }
  // sd-scripts' name of a single text encoder.
  if (own.kohya == "lora_te1_") starts.push_back({"lora_te_", true});
  return starts;
}

using Starts = std::map<std::pair<int, int>, std::vector<Start>>;  // by family and component

const Starts& all_starts() {
  static const Starts all = [] {
    Starts made;
    for (const auto& pattern : patterns()) {
      auto& own = made[{pattern.family, pattern.component}];
      if (own.empty()) {
        own = starts_of(families()[static_cast<size_t>(pattern.family)], pattern.component);
      }
    }
    return made;
  }();
  return all;
}

}  // namespace

std::vector<NamedPlace> places_of(const std::string& layer) {
  std::vector<NamedPlace> found;
  // What follows the prefixes of the component at hand, and whether it has underscores for dots.
  std::vector<std::pair<std::string_view, bool>> rests;
  int family = -1, component = -1;
  for (const auto& pattern : patterns()) {
    if (pattern.family != family || pattern.component != component) {
      family = pattern.family;
      component = pattern.component;
      rests.clear();
      for (const auto& start : all_starts().at({family, component})) {
        std::string_view rest;
        if (follows(layer, start.text, rest)) rests.emplace_back(rest, start.flat);
      }
    }
    for (const auto& [rest, flat] : rests) {
      std::vector<std::string> numbers;
      if (!fits(flat ? pattern.flat : pattern.dotted, rest, numbers)) continue;
      found.push_back(
          {family, {component, pattern.kind, std::move(numbers), pattern.part}, pattern.original});
      break;
    }
  }
  return found;
}

const LayerKind& kind_at(const Family& family, const Place& place) {
  return family.components.at(static_cast<size_t>(place.component))
      .kinds.at(static_cast<size_t>(place.kind));
}

std::string original_name(const Family& family, const Place& place) {
  return filled(kind_at(family, place).original, place.numbers);
}

std::string diffusers_name(const Family& family, const Place& place) {
  const auto& names = kind_at(family, place).diffusers;
  return filled(names.at(place.part == Place::kWhole ? 0 : static_cast<size_t>(place.part)),
                place.numbers);
}

std::optional<Place> find_diffusers(const Family& family, int component, const std::string& name) {
  const auto& kinds = family.components.at(static_cast<size_t>(component)).kinds;
  for (size_t k = 0; k < kinds.size(); ++k) {
    if (kinds[k].alias) continue;
    for (size_t i = 0; i < kinds[k].diffusers.size(); ++i) {
      std::vector<std::string> numbers;
      if (!fits(kinds[k].diffusers[i], name, numbers)) continue;
      return Place{component, static_cast<int>(k), std::move(numbers),
                   kinds[k].is_fused() ? static_cast<int>(i) : Place::kWhole};
    }
  }
  return std::nullopt;
}

}  // namespace lora_files
