// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/config.h>
#include <lightlora/variants/adalora.h>
#include <lightlora/variants/boft.h>
#include <lightlora/variants/classic_lora.h>
#include <lightlora/variants/diag_oft.h>
#include <lightlora/variants/dora.h>
#include <lightlora/variants/full.h>
#include <lightlora/variants/fused_down_up_lora.h>
#include <lightlora/variants/glora.h>
#include <lightlora/variants/gralora.h>
#include <lightlora/variants/hira.h>
#include <lightlora/variants/ia3.h>
#include <lightlora/variants/light_lora.h>
#include <lightlora/variants/loha.h>
#include <lightlora/variants/lokr.h>
#include <lightlora/variants/lora_xs.h>
#include <lightlora/variants/miss.h>
#include <lightlora/variants/oft.h>
#include <lightlora/variants/psoft.h>
#include <lightlora/variants/shira.h>
#include <lightlora/variants/tlora.h>
#include <lightlora/variants/vera.h>

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <typeindex>
#include <utility>
#include <vector>

namespace lightlora {

/// Every variant of the library: a new one is its file, included above, and its word here. Naming a
/// class compiles nothing, so a program pays only for the variants that it uses.
using LibraryVariants =
    std::tuple<ClassicAdapterImpl, LightAdapterImpl, FusedAdapterImpl, LoHaAdapterImpl,
               LoKrAdapterImpl, VeRAAdapterImpl, IA3AdapterImpl, LoRAXSAdapterImpl, OFTAdapterImpl,
               HiRAAdapterImpl, MiSSAdapterImpl, GraLoRAAdapterImpl, FullAdapterImpl,
               DiagOFTAdapterImpl, PSOFTAdapterImpl, SHiRAAdapterImpl, GLoRAAdapterImpl,
               TLoRAAdapterImpl, AdaLoRAAdapterImpl, BOFTAdapterImpl>;

/// Makes an adapter of one variant for one layer.
using AdapterFactory = std::shared_ptr<Adapter> (*)(LoRAOptions, LayerInfo);

/// An option of a variant's own, for flags and messages.
struct OwnOption {
  /// What its value is.
  enum class Kind { toggle, integer, natural, real, text, list };

  std::string name;   ///< in files and flags
  std::string help;   ///< one line
  std::string usual;  ///< its default, as text
  Kind kind;          ///< of its value; enumerations are text, and lists whole numbers
};

/// A variant by name.
struct VariantEntry {
  std::string name;                ///< in files and flags
  AdapterFactory make;             ///< how it is made
  std::type_index type;            ///< of its module class
  std::vector<OwnOption> options;  ///< what it takes beside the shared ones
  /// Its own options as adapters hold them, those at their default left out.
  /// Errors: c10::ValueError, naming the second argument, for a name that it does not take or a
  ///         text that is no such value
  OwnOptions (*canonical)(const OwnOptions&, const std::string&);
  /// See `AdapterModule::layer_of`.
  LayerInfo (*layer_of)(LayerInfo, const TrainedValues&);
  /// See `AdapterModule::canonical`; of an adapter with these options and these frozen tensors.
  Canonical (*canonical_values)(const LoRAOptions&, const TrainedValues&);
  bool makes_bases;   ///< see `AdapterModule::kMakesBases`
  bool trains_whole;  ///< see `AdapterModule::kTrainsWhole`

  /// Whether it takes an option of that name beside the shared ones.
  bool takes(const std::string& option) const;
};

namespace detail {

template <typename Value>
constexpr OwnOption::Kind kind_of(const Value& /*value*/) {
  using Kind = OwnOption::Kind;
  if (std::is_same_v<Value, bool>) return Kind::toggle;
  if (std::is_integral_v<Value>) return std::is_signed_v<Value> ? Kind::integer : Kind::natural;
  if (std::is_floating_point_v<Value>) return Kind::real;
  return std::is_enum_v<Value> ? Kind::text : Kind::list;
}

}  // namespace detail

/// Entry of a variant's module class.
template <typename AdapterImpl>
VariantEntry variant_entry() {
  using Options = typename AdapterImpl::Options;
  std::vector<OwnOption> options;
  detail::OptionTable<Options>::each([&](const auto& field) {
    const auto usual = Options().*field.value;
    options.push_back({field.name, field.help, detail::value_text(usual), detail::kind_of(usual)});
  });
  return {AdapterImpl::kVariant,
          [](LoRAOptions all, LayerInfo layer) -> std::shared_ptr<Adapter> {
            return std::make_shared<AdapterImpl>(std::move(all), std::move(layer));
          },
          typeid(AdapterImpl),
          std::move(options),
          [](const OwnOptions& own, const std::string& where) {
            return detail::own_to_text(
                detail::own_from_text<Options>(own, where, AdapterImpl::kVariant));
          },
          &AdapterImpl::layer_of,
          &AdapterImpl::canonical,
          AdapterImpl::kMakesBases,
          AdapterImpl::kTrainsWhole};
}

namespace detail {

// In order of their names, whatever the order in which they become known.
void insert_variant(std::vector<VariantEntry>& entries, VariantEntry entry);

std::vector<VariantEntry>& registered_variants();

// The entry of a variant, or null if nobody has registered it.
const VariantEntry* entry_of(const std::string& variant);

template <typename AdapterImpl, typename... Known>
constexpr bool is_one_of(const std::tuple<Known...>* /*list*/) {
  return (std::is_same_v<AdapterImpl, Known> || ...);
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
  if constexpr (detail::is_one_of<AdapterImpl>(static_cast<LibraryVariants*>(nullptr))) {
    return find_variant(AdapterImpl::kVariant).make;
  } else {
    return variant_entry<AdapterImpl>().make;
  }
}

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/variants/variants-inl.h>
#endif
