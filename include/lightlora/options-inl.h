// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/options.h>

#include <c10/util/Exception.h>

#include <array>
#include <map>
#include <sstream>

namespace lightlora {

namespace detail {

template <typename Enum, std::size_t N>
using EnumNames = std::array<std::pair<Enum, const char*>, N>;

inline const EnumNames<Init, 3>& names_of(Init) {
  static const EnumNames<Init, 3> names{
      {{Init::up_zero, "up_zero"}, {Init::down_zero, "down_zero"}, {Init::both_zero, "both_zero"}}};
  return names;
}

inline const EnumNames<AuxInit, 3>& names_of(AuxInit) {
  static const EnumNames<AuxInit, 3> names{{{AuxInit::orthogonal, "orthogonal"},
                                            {AuxInit::normal, "normal"},
                                            {AuxInit::normal_scaled, "normal_scaled"}}};
  return names;
}

inline const EnumNames<Route, 3>& names_of(Route) {
  static const EnumNames<Route, 3> names{
      {{Route::automatic, "auto"}, {Route::bypass, "bypass"}, {Route::merged, "merged"}}};
  return names;
}

template <typename Enum>
std::string enum_to_string(Enum value) {
  for (const auto& [candidate, name] : names_of(value)) {
    if (candidate == value) return name;
  }
  TORCH_INTERNAL_ASSERT(false, "an enumerator without a name");
}

template <typename Enum>
Enum enum_from_string(const std::string& text) {
  std::string known;
  std::optional<Enum> found;
  for (const auto& [value, name] : names_of(Enum{})) {
    if (text == name) found = value;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  TORCH_CHECK_VALUE(found, "lightlora: expected one of ", known, ", got '", text, "'");
  return *found;
}

}  // namespace detail

LIGHTLORA_INLINE std::string to_string(Init init) { return detail::enum_to_string(init); }

LIGHTLORA_INLINE std::string to_string(AuxInit aux_init) {
  return detail::enum_to_string(aux_init);
}

LIGHTLORA_INLINE Init parse_init(const std::string& name) {
  return detail::enum_from_string<Init>(name);
}

LIGHTLORA_INLINE AuxInit parse_aux_init(const std::string& name) {
  return detail::enum_from_string<AuxInit>(name);
}

LIGHTLORA_INLINE std::string to_string(Route route) { return detail::enum_to_string(route); }

LIGHTLORA_INLINE Route parse_route(const std::string& name) {
  return detail::enum_from_string<Route>(name);
}

namespace detail {

// The names of the fields below.
constexpr const char* kStructureFields[] = {"dora",           "dora_inputs", "decompose_factor",
                                            "decompose_both", "full_matrix", "lokr_shape",
                                            "scale_input"};

// The options that only some variants have, as text: what a file says beside rank, alpha and bases
// so that the same tensors can be made again. Options at their default are left out.
inline std::map<std::string, std::string> structure_fields(const LoRAOptions& options) {
  std::map<std::string, std::string> fields;
  if (options.dora()) fields["dora"] = "1";
  if (options.dora_inputs()) fields["dora_inputs"] = "1";
  if (options.decompose_factor() != -1) {
    fields["decompose_factor"] = std::to_string(options.decompose_factor());
  }
  if (options.decompose_both()) fields["decompose_both"] = "1";
  if (options.full_matrix()) fields["full_matrix"] = "1";
  if (!options.lokr_shape().empty()) {
    fields["lokr_shape"] = std::to_string(options.lokr_shape().front()) + " " +
                           std::to_string(options.lokr_shape().back());
  }
  if (options.scale_input()) fields["scale_input"] = "1";
  return fields;
}

// Sets one of the fields that `structure_fields` writes; false if the name is none of them or the
// text is not a number.
inline bool set_structure_field(LoRAOptions& options, const std::string& name,
                                const std::string& text) {
  std::istringstream numbers(text);
  int64_t first = 0, second = 0;
  if (!(numbers >> first)) return false;
  if (name == "dora") return options.dora(first != 0), true;
  if (name == "dora_inputs") return options.dora_inputs(first != 0), true;
  if (name == "decompose_factor") return options.decompose_factor(first), true;
  if (name == "decompose_both") return options.decompose_both(first != 0), true;
  if (name == "full_matrix") return options.full_matrix(first != 0), true;
  if (name == "scale_input") return options.scale_input(first != 0), true;
  if (name != "lokr_shape" || !(numbers >> second)) return false;
  return options.lokr_shape({first, second}), true;
}

}  // namespace detail

}  // namespace lightlora
