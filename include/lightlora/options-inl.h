// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/options.h>

#include <c10/util/Exception.h>

#include <array>
#include <string>
#include <utility>

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
  TORCH_CHECK_VALUE(found, "expected one of ", known, ", got '", text, "'");
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

}  // namespace lightlora
