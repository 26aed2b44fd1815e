// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/variants/classic_lora.h>
#include <lightlora/variants/fused_down_up_lora.h>
#include <lightlora/variants/ia3.h>
#include <lightlora/variants/light_lora.h>
#include <lightlora/variants/loha.h>
#include <lightlora/variants/lokr.h>
#include <lightlora/variants/lora_xs.h>
#include <lightlora/variants/vera.h>

#include <memory>
#include <string>
#include <vector>

namespace lightlora {

/// Makes an adapter of one variant for one layer.
using AdapterFactory = std::shared_ptr<Adapter> (*)(LoRAOptions, LayerInfo);

/// A variant by name.
struct VariantEntry {
  std::string name;     ///< in files and flags
  AdapterFactory make;  ///< how it is made
};

/// Entry of a variant's module class.
template <typename AdapterImpl>
VariantEntry variant_entry() {
  return {AdapterImpl::kVariant,
          [](LoRAOptions options, LayerInfo layer) -> std::shared_ptr<Adapter> {
            return std::make_shared<AdapterImpl>(std::move(options), std::move(layer));
          }};
}

/// Every variant that files and flags can name. A new variant is its own file and a line here.
inline const std::vector<VariantEntry>& variants() {
  static const std::vector<VariantEntry> entries{
      variant_entry<ClassicAdapterImpl>(),
      variant_entry<LightAdapterImpl>(),
      variant_entry<FusedAdapterImpl>(),
      variant_entry<LoHaAdapterImpl>(),
      variant_entry<LoKrAdapterImpl>(),
      variant_entry<VeRAAdapterImpl>(),
      variant_entry<IA3AdapterImpl>(),
      variant_entry<LoRAXSAdapterImpl>(),
  };
  return entries;
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
