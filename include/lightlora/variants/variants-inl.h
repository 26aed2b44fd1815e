// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/variants/variants.h>

#include <algorithm>

namespace lightlora {

LIGHTLORA_INLINE bool VariantEntry::takes(const std::string& option) const {
  return std::any_of(options.begin(), options.end(),
                     [&](const OwnOption& own) { return own.name == option; });
}

namespace detail {

LIGHTLORA_INLINE void insert_variant(std::vector<VariantEntry>& entries, VariantEntry entry) {
  const auto same = std::lower_bound(
      entries.begin(), entries.end(), entry,
      [](const VariantEntry& a, const VariantEntry& b) { return a.name < b.name; });
  if (same == entries.end() || same->name != entry.name) {
    entries.insert(same, std::move(entry));
    return;
  }
  TORCH_CHECK_VALUE(same->type == entry.type, "'", entry.name,
                    "': expected the name of a new variant, got one that another class has");
}

template <typename... Impls>
std::vector<VariantEntry> entries_of(const std::tuple<Impls...>* /*list*/) {
  std::vector<VariantEntry> entries;
  (insert_variant(entries, variant_entry<Impls>()), ...);
  return entries;
}

LIGHTLORA_INLINE std::vector<VariantEntry>& registered_variants() {
  static std::vector<VariantEntry> entries = entries_of(static_cast<LibraryVariants*>(nullptr));
  return entries;
}

LIGHTLORA_INLINE const VariantEntry* entry_of(const std::string& variant) {
  const auto& entries = registered_variants();
  const auto found = std::find_if(entries.begin(), entries.end(),
                                  [&](const auto& known) { return known.name == variant; });
  return found == entries.end() ? nullptr : &*found;
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
  TORCH_CHECK_VALUE(found, "expected a variant among ", known, ", got '", name, "'");
  return *found;
}

}  // namespace lightlora
