// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packages of AOTInductor: adapters are merged into the constants that the compiled code reads.
#include <lightlora/exported.h>

#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lightlora {

// An adapted weight: as it was, and what may join in.
struct PatchedPackage::Constant {
  at::Tensor base;  // where the package has it
  LayerWeight weight;
  std::map<std::string, std::shared_ptr<Adapter>> adapters;  // by the names of their sets
};

namespace detail {

// What a weight may be to its layer, of which a package keeps nothing but the shape.
inline std::vector<LayerKind> possible_kinds(int64_t dimensions) {
  if (dimensions == 2) return {LayerKind::linear, LayerKind::lookup};
  return {LayerKind::convolution, LayerKind::transposed_convolution};
}

// The name of a layer's weight among those of a package: "fc.weight", "attention.in_proj_weight".
inline std::string constant_name(const std::string& layer, const std::vector<std::string>& names) {
  for (const std::string& end : {std::string(".weight"), std::string("_weight")}) {
    if (std::find(names.begin(), names.end(), layer + end) != names.end()) return layer + end;
  }
  TORCH_CHECK(false, "'", layer, "': expected a weight of this layer among the ", names.size(),
              " constants of the package, got none; hint: weights that the compiler folded or ",
              "fused (freezing) cannot be changed any more, export without that; or the adapter ",
              "was trained on another model");
}

}  // namespace detail

LIGHTLORA_INLINE PatchedPackage::PatchedPackage(torch::inductor::AOTIModelPackageLoader& loader)
    : loader_(&loader) {}

LIGHTLORA_INLINE PatchedPackage::Constant& PatchedPackage::constant_of(const LayerState& layer) {
  const std::string& path = layer.layer.name;
  const std::string name = detail::constant_name(path, loader_->get_constant_fqns());
  const auto found = constants_.find(name);
  const auto fits = [&](const LayerInfo& here) {
    return here.in == layer.layer.in && here.out == layer.layer.out;
  };
  std::optional<LayerInfo> here;
  if (found != constants_.end()) {
    here = found->second->weight.info(path);
    if (fits(*here)) return *found->second;
  } else {
    const auto now = loader_->get_runner()->extract_constants_map(/*use_inactive=*/false);
    const at::Tensor base = now.at(name).detach().clone();
    for (const LayerKind kind : detail::possible_kinds(base.dim())) {
      LayerWeight weight(nullptr, base.cpu(), /*owned=*/true, "constant", kind);
      const LayerInfo as_kind = weight.info(path);
      if (!here) here = as_kind;
      if (!fits(as_kind)) continue;
      auto& constant = constants_[name];
      constant = std::make_shared<Constant>(Constant{base, std::move(weight), {}});
      return *constant;
    }
  }
  TORCH_CHECK(false, "'", path, "': expected an adapter for ", here->in, " -> ", here->out,
              ", got ", layer.layer.in, " -> ", layer.layer.out,
              "; hint: it was trained on another model");
}

LIGHTLORA_INLINE void PatchedPackage::add(const std::string& name, const AdapterState& state) {
  TORCH_CHECK_VALUE(sets_.count(name) == 0, "expected a new name for a set of adapters, got '",
                    name, "', which there is already");
  std::vector<std::pair<Constant*, std::shared_ptr<Adapter>>> made;
  for (const auto& layer : state) {
    Constant& constant = constant_of(layer);
    made.emplace_back(&constant, make_adapter(layer));
    place(*made.back().second, constant.weight);
  }
  for (auto& [constant, adapter] : made) constant->adapters[name] = std::move(adapter);
  sets_.insert(name);
}

LIGHTLORA_INLINE void PatchedPackage::merge(const std::map<std::string, double>& weights) {
  for (const auto& item : weights) {
    TORCH_CHECK_VALUE(sets_.count(item.first), "expected the name of a set of adapters, got '",
                      item.first, "'; hint: add it first");
  }
  const at::NoGradGuard no_grad;
  std::unordered_map<std::string, at::Tensor> changed;
  for (const auto& [name, constant] : constants_) {
    std::vector<ActiveAdapter> active;
    bool was_changed = false;
    for (const auto& [set, adapter] : constant->adapters) {
      was_changed = was_changed || merged_.count(set) > 0;
      const auto chosen = weights.find(set);
      if (chosen != weights.end()) active.push_back({adapter, chosen->second});
    }
    if (active.empty() && !was_changed) continue;
    changed[name] = constant->base;
    if (active.empty()) continue;
    const at::Tensor delta = total_delta(active, constant->weight.matrix());
    changed[name] = constant->weight.plus(delta).to(constant->base.options());
  }
  if (!changed.empty()) {
    loader_->load_constants(changed, /*use_inactive=*/false, /*check_full_update=*/false);
  }
  merged_ = weights;
}

LIGHTLORA_INLINE PatchedPackage patch(torch::inductor::AOTIModelPackageLoader& loader,
                                      const AdapterState& state, const std::string& name) {
  PatchedPackage patched(loader);
  patched.add(name, state);
  return patched;
}

}  // namespace lightlora
