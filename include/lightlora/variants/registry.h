// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/variants/variants.h>

#include <algorithm>
#include <memory>
#include <string>
#include <type_traits>
#include <typeindex>
#include <utility>
#include <vector>

namespace lightlora {

/// Makes an adapter of one variant for one layer.
using AdapterFactory = std::shared_ptr<Adapter> (*)(LoRAOptions, LayerInfo);

/// A variant by name.
struct VariantEntry {
  std::string name;     ///< in files and flags
  AdapterFactory make;  ///< how it is made
  std::type_index type;  ///< of its module class
};

/// Entry of a variant's module class.
template <typename AdapterImpl>
VariantEntry variant_entry() {
  return {AdapterImpl::kVariant,
          [](LoRAOptions options, LayerInfo layer) -> std::shared_ptr<Adapter> {
            return std::make_shared<AdapterImpl>(std::move(options), std::move(layer));
          },
          typeid(AdapterImpl)};
}

namespace detail {

// In order of their names, whatever the order in which they become known.
inline void insert_variant(std::vector<VariantEntry>& entries, const VariantEntry& entry) {
  const auto same = std::lower_bound(
      entries.begin(), entries.end(), entry,
      [](const VariantEntry& a, const VariantEntry& b) { return a.name < b.name; });
  if (same == entries.end() || same->name != entry.name) {
    entries.insert(same, entry);
    return;
  }
  TORCH_CHECK_VALUE(same->type == entry.type, "lightlora::register_variant: expected a new name, got '",
                    entry.name, "', which another variant has");
}

template <int Number, typename = void>
struct InsertLibraryVariant {
  void operator()(std::vector<VariantEntry>&) const {}  // a number that no variant has
};

template <int Number>
struct InsertLibraryVariant<Number, std::void_t<typename LibraryVariant<Number>::Impl>> {
  void operator()(std::vector<VariantEntry>& entries) const {
    insert_variant(entries, variant_entry<typename LibraryVariant<Number>::Impl>());
  }
};

template <int... Numbers>
std::vector<VariantEntry> library_variants(std::integer_sequence<int, Numbers...>) {
  std::vector<VariantEntry> entries;
  (InsertLibraryVariant<Numbers>()(entries), ...);
  return entries;
}

inline std::vector<VariantEntry>& registered_variants() {
  static std::vector<VariantEntry> entries = library_variants(std::make_integer_sequence<int, 100>());
  return entries;
}

}  // namespace detail

/// Every variant that files and flags can name, by name.
inline const std::vector<VariantEntry>& variants() { return detail::registered_variants(); }

/// Makes a variant of your own known by its name, once however often it is called: before its first
/// use, on one thread, `lightlora::register_variant<MyAdapterImpl>();`. (The library's own are known.)
/// Returns true.
/// Errors: c10::ValueError if another class has that name
template <typename AdapterImpl>
bool register_variant() {
  detail::insert_variant(detail::registered_variants(), variant_entry<AdapterImpl>());
  return true;
}

/// The variant of that name; c10::ValueError lists the known ones.
inline const VariantEntry& find_variant(const std::string& name) {
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
