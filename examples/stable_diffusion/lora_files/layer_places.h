// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "lora_files/families.h"

namespace lora_files {

/// A layer of a family's pipeline.
struct Place {
  int component = 0, kind = 0;       ///< in the family's tables
  std::vector<std::string> numbers;  ///< of its blocks
  int part = kWhole;                 ///< which of diffusers' layers, or the original's one for all

  static constexpr int kWhole = -1;

  bool operator<(const Place& other) const {
    return std::tie(component, kind, numbers, part) <
           std::tie(other.component, other.kind, other.numbers, other.part);
  }
};

/// A layer whose name one of the families has.
struct NamedPlace {
  int family = 0;
  Place place;
  bool original = false;  ///< the name is the original model's
};

/// What a name of a layer, with whatever programs put before it, can mean. A name that both sides
/// have alike counts as diffusers'.
std::vector<NamedPlace> places_of(const std::string& layer);

/// The kind of layer at a place.
const LayerKind& kind_at(const Family& family, const Place& place);
/// The original model's name of a layer, without its component's.
std::string original_name(const Family& family, const Place& place);
/// diffusers' name of a layer, without its component's; of the part if it is one, else the first.
std::string diffusers_name(const Family& family, const Place& place);
/// The place of diffusers' name, without aliases; none if the family has no such layer.
std::optional<Place> find_diffusers(const Family& family, int component, const std::string& name);

}  // namespace lora_files
