// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/quantised_weight.h>
#include <lightlora/patch.h>

#include <lightlora/patch_active-inl.h>
#include <lightlora/patch_sets-inl.h>
#include <lightlora/patch_values-inl.h>

#include <ATen/MemoryOverlap.h>

#include <iomanip>
#include <sstream>
#include <unordered_set>

namespace lightlora {

namespace detail {

inline std::string with_commas(int64_t value) {
  std::string text = std::to_string(value);
  for (int64_t at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3) {
    text.insert(static_cast<std::size_t>(at), ",");
  }
  return text;
}

}  // namespace detail

LIGHTLORA_INLINE PatchedImpl::PatchedImpl(torch::nn::Module& model)
    : PatchedImpl(model.name(), adaptable_layers(model), model.parameters()) {
  model_ = &model;
  scripted_ = false;
}

LIGHTLORA_INLINE PatchedImpl::PatchedImpl(const std::string& name, AdaptableLayers layers,
                                          const std::vector<torch::Tensor>& parameters)
    : scripted_(true), targets_(std::move(layers.targets)) {
  for (auto& [path, weight] : layers.weights) sites_.push_back({path, std::move(weight)});
  const bool any = std::any_of(sites_.begin(), sites_.end(), [](const Site& site) {
    return site.weight.kind() != LayerKind::vector;
  });
  TORCH_CHECK(any, "'", name, "': expected a model with layers that can be adapted (",
              adaptable_types(), "), got none");
  freeze(parameters);
  // Before there are threads that use operators: the first registration writes to their tables.
  detail::register_kernels();
}

LIGHTLORA_INLINE PatchedImpl& Patched::get() const {
  TORCH_CHECK(impl_, "expected a handle that patch(...) returned, got an empty one");
  return *impl_;
}

LIGHTLORA_INLINE Patched patch(torch::nn::Module& model, const std::string& variant,
                               const LoRAOptions& options, const Targets& targets,
                               const std::string& name) {
  return patch(model, find_variant(variant).make, options, targets, name);
}

LIGHTLORA_INLINE Patched patch(torch::nn::Module& model, AdapterFactory make,
                               const LoRAOptions& options, const Targets& targets,
                               const std::string& name) {
  auto impl = std::make_shared<PatchedImpl>(model);
  impl->add(name, make, options, targets);
  return Patched(std::move(impl));
}

LIGHTLORA_INLINE Patched patch(torch::nn::Module& model, const AdapterState& state,
                               const std::string& name) {
  auto impl = std::make_shared<PatchedImpl>(model);
  impl->add(name, state);
  return Patched(std::move(impl));
}

LIGHTLORA_INLINE std::string PatchReport::to_string() const {
  std::ostringstream text;
  const double share =
      total > 0 ? 100.0 * static_cast<double>(trainable) / static_cast<double>(total) : 0.0;
  text << "trainable " << detail::with_commas(trainable) << " of " << detail::with_commas(total)
       << " (" << std::setprecision(share < 0.1 ? 1 : 3) << share << "%) in " << layers
       << (layers == 1 ? " layer" : " layers");
  return text.str();
}

LIGHTLORA_INLINE std::string PatchReport::details() const {
  std::string text;
  for (const auto& hit : hits) {
    text += "  " + hit.pattern + ": " + detail::with_commas(hit.count) +
            (hit.count == 1 ? " layer\n" : " layers\n");
  }
  return text + to_string();
}

LIGHTLORA_INLINE void PatchedImpl::freeze(const std::vector<torch::Tensor>& parameters) {
  std::unordered_set<const void*> seen;
  for (const auto& parameter : parameters) {
    if (!seen.insert(parameter.unsafeGetTensorImpl()).second) continue;
    report_.total += parameter.numel();
    frozen_.push_back(parameter);
    detail::FrozenParameters::instance().freeze(parameter);
  }
}

LIGHTLORA_INLINE void PatchedImpl::thaw(bool restore) {
  for (const auto& parameter : frozen_) {
    detail::FrozenParameters::instance().release(parameter, restore);
  }
  frozen_.clear();
}

// A model that never got adapters, because its first targets were wrong, is as it was.
LIGHTLORA_INLINE PatchedImpl::~PatchedImpl() {
  release();
  thaw(/*restore=*/sets_.empty());
}

LIGHTLORA_INLINE void PatchedImpl::require_idle() const {
  TORCH_CHECK(depth_ == 0,
              "expected no activation to be alive, got one; hint: let the result of activate() ",
              "go out of scope first");
  TORCH_CHECK(!merged_, "expected unmerged adapters, got merged ones; hint: call unmerge() first");
}

LIGHTLORA_INLINE void PatchedImpl::require_in_place() const {
  for (const auto& site : sites_) {
    for (const auto& [name, adapter] : site.adapters) {
      const auto& trained = adapter->trained();
      const auto device = site.weight.tensor().device();
      TORCH_CHECK(trained.front().value().device() == device, "'", site.path,
                  "': expected the adapter '", name, "' on ", device, " like its layer, got ",
                  trained.front().value().device(), "; hint: lora->to(device) moves the adapters");
    }
  }
}

LIGHTLORA_INLINE void PatchedImpl::require_related(const torch::nn::Module& module) const {
  if (&module == model_) return;
  std::unordered_set<const torch::nn::Module*> held{&module};
  for (const auto& part : module.modules(/*include_self=*/false)) held.insert(part.get());
  std::size_t layers = 0;  // norms and biases are none
  for (const auto& site : sites_) {
    if (held.count(site.weight.layer().get())) return;
    layers += site.weight.kind() == LayerKind::vector ? 0 : 1;
  }
  TORCH_CHECK(false, "expected the patched model, a part of it or one that holds it, got '",
              module.name(), "', which has none of its ", layers,
              " adaptable layers; hint: ", "patch that model too, or call it without the handle");
}

// Merging writes to one tensor, which is another layer's weight too where they are tied.
LIGHTLORA_INLINE void PatchedImpl::require_own_weights(const Site& site) const {
  const torch::Tensor& weight = site.weight.tensor();
  if (const auto* held = QuantisedWeight::of(weight)) {
    TORCH_CHECK(
        false, "'", site.path, "': merging cannot be combined with a weight in ", held->kept_in(),
        ", which would round most of a delta away; hint: activate the adapters instead, or ",
        "lightlora::dequantize the model, merge, and quantize it again");
  }
  TORCH_CHECK(
      at::has_internal_overlap(weight) != at::MemOverlap::Yes, "'", site.path,
      "': expected a weight with memory for each of its values, got an expanded one; hint: ",
      "give the layer its contiguous() form");
  for (const auto& other : sites_) {
    TORCH_CHECK(&other == &site || !share_memory(other.weight.tensor(), weight), "'", site.path,
                "': merging cannot be combined with the weight that it shares with '", other.path,
                "': that layer would change too; hint: give one of them a weight of its ",
                "own, or activate the adapters instead");
  }
}

namespace detail {

// The weight of a layer with its adapters in it. Errors: c10::Error with `safe`, if it is not finite
inline torch::Tensor merged_weight(const LayerWeight& weight, const std::string& path,
                                   const std::vector<ActiveAdapter>& active, bool safe) {
  torch::Tensor sum = weight.plus(total_delta(active, weight.matrix()));
  TORCH_CHECK(!safe || sum.isfinite().all().item<bool>(), "'", path,
              "': expected finite weights after merging, got some that are not; hint: the ",
              "adapter diverged, or its scale overflows ", weight.tensor().scalar_type());
  return sum;
}

}  // namespace detail

LIGHTLORA_INLINE void PatchedImpl::merge(bool safe) {
  require_idle();
  require_in_place();
  torch::NoGradGuard no_grad;
  for (const auto& site : sites_) {
    if (!active_of(site, active_).empty()) require_own_weights(site);
  }
  try {
    for (auto& site : sites_) {
      const auto active = active_of(site, active_);
      if (active.empty()) continue;
      const auto sum = detail::merged_weight(site.weight, site.path, active, safe);
      site.kept = site.weight.tensor().detach().clone();
      site.weight.tensor().copy_(sum);
    }
  } catch (...) {
    undo_merge();
    throw;
  }
  merged_ = true;
}

LIGHTLORA_INLINE void PatchedImpl::undo_merge() noexcept {
  for (auto& site : sites_) {
    try {
      if (site.kept.defined()) site.weight.tensor().copy_(site.kept);
    } catch (...) {
      // What made merging fail is what the caller is told, and the other layers still come back.
    }
    site.kept = torch::Tensor();
  }
}

LIGHTLORA_INLINE void PatchedImpl::unmerge() {
  TORCH_CHECK(merged_, "expected merged adapters, got unmerged ones");
  TORCH_CHECK(depth_ == 0, "expected no activation to be alive, got one");
  torch::NoGradGuard no_grad;
  for (auto& site : sites_) {
    if (site.kept.defined()) site.weight.tensor().copy_(site.kept);
    site.kept = torch::Tensor();
  }
  merged_ = false;
}

// Without a copy of the old weights, which are as much as the model itself: what can fail is tried
// before anything is changed.
LIGHTLORA_INLINE void PatchedImpl::merge_and_unload(bool safe) {
  require_idle();
  require_in_place();
  torch::NoGradGuard no_grad;
  for (const bool trial : {true, false}) {
    for (auto& site : sites_) {
      const auto active = active_of(site, active_);
      if (active.empty()) continue;
      if (trial) require_own_weights(site);
      const auto sum = detail::merged_weight(site.weight, site.path, active, safe && trial);
      if (!trial) site.weight.tensor().copy_(sum);
    }
  }
  remove();
}

LIGHTLORA_INLINE torch::Tensor PatchedImpl::weight_of(const std::string& path) const {
  for (const auto& site : sites_) {
    if (site.path != path) continue;
    TORCH_CHECK(bound_.empty(), "expected no activation to be alive, got one");
    return site.weight.as_matrix(site.kept.defined() ? site.kept : site.weight.tensor()).detach();
  }
  TORCH_CHECK(false, "expected the path of an adaptable layer, got '", path, "'");
}

LIGHTLORA_INLINE void PatchedImpl::set_route(Route route) {
  for (auto& site : sites_) site.state->route = route;
}

LIGHTLORA_INLINE void PatchedImpl::to(torch::Device device) {
  require_idle();
  changed();
  for (auto& site : sites_) {
    for (auto& item : site.adapters) item.second->module().to(device);
  }
}

LIGHTLORA_INLINE void PatchedImpl::train(bool on) {
  for (auto& site : sites_) {
    for (auto& item : site.adapters) item.second->module().train(on);
  }
}

}  // namespace lightlora
