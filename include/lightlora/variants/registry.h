// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/config.h>
#include <lightlora/variants/variants.h>

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
void insert_variant(std::vector<VariantEntry>& entries, const VariantEntry& entry);

std::vector<VariantEntry>& registered_variants();

// The module class of a variant of the library by its number; void where no variant has it.
template <int Number, typename = void>
struct LibraryImpl {
  using type = void;
};

template <int Number>
struct LibraryImpl<Number, std::void_t<typename LibraryVariant<Number>::Impl>> {
  using type = typename LibraryVariant<Number>::Impl;
};

using LibraryNumbers = std::make_integer_sequence<int, 100>;

template <typename AdapterImpl, int... Numbers>
constexpr bool is_library_variant(std::integer_sequence<int, Numbers...>) {
  return (std::is_same_v<AdapterImpl, typename LibraryImpl<Numbers>::type> || ...);
}

}  // namespace detail

/// Every variant that files and flags can name, by name.
const std::vector<VariantEntry>& variants();

/// Makes a variant of your own known by its name, once however often it is called: before its first
/// use, on one thread, `lightlora::register_variant<MyAdapterImpl>();`. Returns true.
/// Errors: c10::ValueError if another class has that name
template <typename AdapterImpl>
bool register_variant() {
  detail::insert_variant(detail::registered_variants(), variant_entry<AdapterImpl>());
  return true;
}

/// The variant of that name; c10::ValueError lists the known ones.
const VariantEntry& find_variant(const std::string& name);

/// What makes adapters of one module class. The library's own are made where the library is
/// compiled, so that a file that names one does not compile it once more.
template <typename AdapterImpl>
AdapterFactory factory_of() {
  if constexpr (detail::is_library_variant<AdapterImpl>(detail::LibraryNumbers())) {
    return find_variant(AdapterImpl::kVariant).make;
  } else {
    return variant_entry<AdapterImpl>().make;
  }
}

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/variants/registry-inl.h>
#endif
