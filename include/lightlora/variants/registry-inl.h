// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/variants/registry.h>

#include <algorithm>

namespace lightlora {

namespace detail {

LIGHTLORA_INLINE void insert_variant(std::vector<VariantEntry>& entries,
                                     const VariantEntry& entry) {
  const auto same = std::lower_bound(
      entries.begin(), entries.end(), entry,
      [](const VariantEntry& a, const VariantEntry& b) { return a.name < b.name; });
  if (same == entries.end() || same->name != entry.name) {
    entries.insert(same, entry);
    return;
  }
  TORCH_CHECK_VALUE(same->type == entry.type,
                    "lightlora::register_variant: expected a new name, got '", entry.name,
                    "', which another variant has");
}

template <int Number>
void insert_library_variant(std::vector<VariantEntry>& entries) {
  using Impl = typename LibraryImpl<Number>::type;
  if constexpr (!std::is_void_v<Impl>) insert_variant(entries, variant_entry<Impl>());
}

template <int... Numbers>
std::vector<VariantEntry> library_variants(std::integer_sequence<int, Numbers...>) {
  std::vector<VariantEntry> entries;
  (insert_library_variant<Numbers>(entries), ...);
  return entries;
}

LIGHTLORA_INLINE std::vector<VariantEntry>& registered_variants() {
  static std::vector<VariantEntry> entries = library_variants(LibraryNumbers());
  return entries;
}

}  // namespace detail

LIGHTLORA_INLINE const std::vector<VariantEntry>& variants() {
  return detail::registered_variants();
}

LIGHTLORA_INLINE const VariantEntry& find_variant(const std::string& name) {
  std::string known;
  const VariantEntry* found = nullptr;
  for (const auto& entry : variants()) {
    if (entry.name == name) found = &entry;
    known += (known.empty() ? "" : ", ") + entry.name;
  }
  TORCH_CHECK_VALUE(found, "lightlora: expected a variant among ", known, ", got '", name, "'");
  return *found;
}

}  // namespace lightlora
