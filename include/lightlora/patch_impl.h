// SPDX-License-Identifier: Apache-2.0
#pragma once

// The functions of patch.h that would hide its outline there.
#include <lightlora/patch.h>

#include <algorithm>
#include <iomanip>
#include <sstream>
#include <unordered_set>

namespace lightlora {

inline std::string PatchReport::to_string() const {
  std::ostringstream text;
  const double share = total > 0 ? 100.0 * static_cast<double>(trainable) / static_cast<double>(total) : 0.0;
  text << "trainable " << detail::with_commas(trainable) << " of " << detail::with_commas(total)
       << " (" << std::setprecision(share < 0.1 ? 1 : 3) << share << "%) in " << layers
       << (layers == 1 ? " layer" : " layers");
  return text.str();
}

inline std::string PatchReport::details() const {
  std::string text;
  for (const auto& hit : hits) {
    text += "  " + hit.pattern + ": " + detail::with_commas(hit.count) +
            (hit.count == 1 ? " layer\n" : " layers\n");
  }
  return text + to_string();
}

inline Activation::Activation(std::shared_ptr<PatchedImpl> patched) : patched_(std::move(patched)) {
  patched_->enter();
}

inline Activation::~Activation() {
  if (patched_) patched_->leave();
}

inline void PatchedImpl::collect(torch::nn::Module& model) {
  auto found = adaptable_layers(model);
  targets_ = std::move(found.targets);
  for (auto& [path, weight] : found.weights) sites_.push_back({path, std::move(weight), {}, {}});
  TORCH_CHECK(!sites_.empty(), "lightlora::patch: '", model.name(),
              "': expected a model with layers that can be adapted (", adaptable_types(),
              "), got none");
}

inline void PatchedImpl::freeze(torch::nn::Module& model) {
  std::unordered_set<const void*> seen;
  for (auto& parameter : model.parameters()) {
    if (!seen.insert(parameter.unsafeGetTensorImpl()).second) continue;
    report_.total += parameter.numel();
    flags_.emplace_back(parameter, parameter.requires_grad());
    parameter.set_requires_grad(false);
  }
}

inline void PatchedImpl::thaw() {
  for (auto& [parameter, flag] : flags_) parameter.set_requires_grad(flag);
  flags_.clear();
}

// A model that never got adapters, because its first targets were wrong, is as it was.
inline PatchedImpl::~PatchedImpl() {
  release();
  if (sets_.empty()) thaw();
}

inline void PatchedImpl::release() {
  for (const auto& site : sites_) {
    if (!site.adapters.empty()) detach(site);
  }
}

// Another handle may patch the layer then.
inline void PatchedImpl::detach(const Site& site) {
  detail::PatchedLayers::instance().erase(&site.weight.tensor());
  if (auto* slot = site.weight.slot()) slot->clear_cache();
}

inline void PatchedImpl::require_idle(const char* action) const {
  TORCH_CHECK(depth_ == 0, "lightlora::", action,
              ": expected no activation to be alive, got one; hint: let the result of activate() ",
              "go out of scope first");
  TORCH_CHECK(!merged_, "lightlora::", action,
              ": expected unmerged adapters, got merged ones; hint: call unmerge() first");
}

inline void PatchedImpl::require_set(const std::string& name) const {
  if (std::find(sets_.begin(), sets_.end(), name) != sets_.end()) return;
  TORCH_CHECK(!sets_.empty(), "lightlora: expected the name of an adapter set, got '", name,
              "' after all adapters have been removed");
  std::string known;
  for (const auto& set : sets_) known += (known.empty() ? "'" : ", '") + set + "'";
  TORCH_CHECK(false, "lightlora: expected the name of an adapter set (", known, "), got '", name,
              "'");
}

inline PatchedImpl::Site& PatchedImpl::site_of(const std::string& path) {
  for (auto& site : sites_) {
    if (site.path == path) return site;
  }
  TORCH_INTERNAL_ASSERT(false, "no site ", path);
}

inline void PatchedImpl::begin_set(const std::string& name) {
  require_idle("add");
  TORCH_CHECK(std::find(sets_.begin(), sets_.end(), name) == sets_.end(),
              "lightlora::add: expected a new name, got '", name, "' a second time");
}

inline void PatchedImpl::attach(Site& site, const std::string& name,
                                std::shared_ptr<Adapter> adapter) {
  if (site.adapters.empty()) {
    TORCH_CHECK(detail::PatchedLayers::instance().insert(&site.weight.tensor()),
                "lightlora::patch: '", site.path,
                "': expected a layer without adapters, got one that another handle has patched; ",
                "hint: add a second set with lora->add(name, ...), or remove() the first handle");
    ++report_.layers;
  }
  report_.trainable += adapter->trained_count();
  site.adapters[name] = std::move(adapter);
}

inline void PatchedImpl::finish_set(const std::string& name) {
  sets_.push_back(name);
  active_[name] = 1.0;
}

inline void PatchedImpl::add(const std::string& name, const AdapterFactory& make,
                             const LoRAOptions& options, const Targets& targets) {
  begin_set(name);
  std::vector<Targets::Hits> hits;
  // Everything that can fail is made before anything is attached.
  std::vector<std::pair<Site*, std::shared_ptr<Adapter>>> made;
  for (const auto& path : targets.select(targets_, &hits)) {
    LoRAOptions own = options;
    own.rank(targets.rank_of(path, options.rank()));
    if (double alpha = 0; targets.has_alpha(path, alpha)) own.network_alpha(alpha);
    Site& site = site_of(path);
    made.emplace_back(&site, make(own, site.weight.info(path)));
    if (!site.weight.slot()) require_no_dropout(*made.back().second);
    fit(*made.back().second, site.weight);
  }
  for (auto& [site, adapter] : made) attach(*site, name, std::move(adapter));
  for (auto& hit : hits) hit.set = name;
  report_.hits.insert(report_.hits.end(), hits.begin(), hits.end());
  finish_set(name);
}

inline void PatchedImpl::add(const std::string& name, const AdapterState& state) {
  begin_set(name);
  std::vector<std::pair<Site*, std::shared_ptr<Adapter>>> made;
  std::vector<std::string> paths;
  for (const auto& site : sites_) paths.push_back(site.path);
  std::vector<std::string> unmatched;
  for (const auto& layer : state) {
    if (std::find(paths.begin(), paths.end(), layer.layer.name) == paths.end()) {
      unmatched.push_back(layer.layer.name);
    }
  }
  TORCH_CHECK(unmatched.empty(), "lightlora: expected the model to have all ", state.size(),
              " layers of the adapter, got ", state.size() - unmatched.size(), "; missing '",
              unmatched.front(), "'", unmatched.size() > 1 ? " and more" : "",
              "; hint: it was trained on another model; nearest here: ",
              detail::nearest_names(unmatched.front(), paths, 1));
  for (const auto& layer : state) {
    Site& site = site_of(layer.layer.name);
    const LayerInfo here = site.weight.info(site.path);
    TORCH_CHECK(here.in == layer.layer.in && here.out == layer.layer.out, "lightlora: '",
                site.path, "': expected an adapter for ", here.in, " -> ", here.out, ", got ",
                layer.layer.in, " -> ", layer.layer.out,
                "; hint: it was trained on another model");
    made.emplace_back(&site, make_adapter(layer));
    place(*made.back().second, site.weight);
  }
  for (auto& [site, adapter] : made) attach(*site, name, std::move(adapter));
  finish_set(name);
}

inline void PatchedImpl::set_active(const std::map<std::string, double>& weights) {
  require_idle("set_active");
  for (const auto& item : weights) require_set(item.first);
  active_ = weights;
}

inline std::vector<ActiveAdapter> PatchedImpl::active_of(const Site& site) const {
  std::vector<ActiveAdapter> result;
  for (const auto& [name, weight] : active_) {
    const auto found = site.adapters.find(name);
    if (found != site.adapters.end()) result.push_back({found->second, weight});
  }
  return result;
}

inline void PatchedImpl::require_in_place() const {
  for (const auto& binding : bound_) {
    TORCH_CHECK(!binding->stale(), "lightlora::activate: expected the model where it was when the ",
                "adapters were activated, got it moved or cast since; hint: move it while no ",
                "activation is alive");
  }
  for (const auto& site : sites_) {
    for (const auto& [name, adapter] : site.adapters) {
      const auto& trained = adapter->trained();
      const auto device = site.weight.tensor().device();
      TORCH_CHECK(trained.front().value().device() == device, "lightlora::activate: '", site.path,
                  "': expected the adapter '", name, "' on ", device, " like its layer, got ",
                  trained.front().value().device(), "; hint: lora->to(device) moves the adapters");
    }
  }
}

inline void PatchedImpl::require_related(const torch::nn::Module& module) const {
  if (&module == model_) return;
  std::unordered_set<const torch::nn::Module*> held{&module};
  for (const auto& part : module.modules(/*include_self=*/false)) held.insert(part.get());
  for (const auto& site : sites_) {
    if (held.count(site.weight.layer().get())) return;
  }
  TORCH_CHECK(false, "lightlora: expected the patched model, a part of it or one that holds it, got '",
              module.name(), "', which has none of its ", sites_.size(), " adaptable layers; hint: ",
              "patch that model too, or call it without the handle");
}

inline void PatchedImpl::enter() {
  if (!merged_) require_in_place();
  if (depth_++ > 0 || merged_) return;
  try {
    for (auto& site : sites_) {
      auto active = active_of(site);
      if (active.empty()) continue;
      if (auto* slot = site.weight.slot()) {
        slot->set_active_adapters(std::move(active));
      } else {
        bound_.push_back(
            std::make_unique<WeightBinding>(site.weight, site.total_delta(active), site.path));
      }
    }
  } catch (...) {
    leave();
    throw;
  }
}

inline void PatchedImpl::leave() {
  if (--depth_ > 0) return;
  bound_.clear();
  for (auto& site : sites_) {
    if (auto* slot = site.weight.slot(); slot && !site.adapters.empty()) {
      slot->set_active_adapters({});
    }
  }
}

inline void PatchedImpl::merge(bool safe) {
  require_idle("merge");
  torch::NoGradGuard no_grad;
  if (safe) {
    for (const auto& site : sites_) {
      const auto active = active_of(site);
      TORCH_CHECK(active.empty() ||
                      site.weight.plus(site.total_delta(active)).isfinite().all().item<bool>(),
                  "lightlora::merge: '", site.path,
                  "': expected finite weights after merging, got some that are not; hint: the ",
                  "adapter diverged, or its scale overflows ",
                  site.weight.tensor().scalar_type());
    }
  }
  for (auto& site : sites_) {
    const auto active = active_of(site);
    if (active.empty()) continue;
    site.kept = site.weight.tensor().detach().clone();
    site.weight.tensor().copy_(site.weight.plus(site.total_delta(active)));
  }
  merged_ = true;
}

inline void PatchedImpl::unmerge() {
  TORCH_CHECK(merged_, "lightlora::unmerge: expected merged adapters, got unmerged ones");
  TORCH_CHECK(depth_ == 0, "lightlora::unmerge: expected no activation to be alive, got one");
  torch::NoGradGuard no_grad;
  for (auto& site : sites_) {
    if (site.kept.defined()) site.weight.tensor().copy_(site.kept);
    site.kept = torch::Tensor();
  }
  merged_ = false;
}

inline void PatchedImpl::merge_and_unload(bool safe) {
  merge(safe);
  for (auto& site : sites_) site.kept = torch::Tensor();
  merged_ = false;
  remove();
}

inline void PatchedImpl::remove() {
  if (merged_) unmerge();
  require_idle("remove");
  release();
  for (auto& site : sites_) site.adapters.clear();
  thaw();
  sets_.clear();
  active_.clear();
  report_ = PatchReport{{}, 0, 0, report_.total};
}

inline void PatchedImpl::remove(const std::string& name) {
  require_idle("remove");
  require_set(name);
  for (auto& site : sites_) {
    const auto found = site.adapters.find(name);
    if (found == site.adapters.end()) continue;
    report_.trainable -= found->second->trained_count();
    if (site.adapters.size() == 1) {
      detach(site);
      --report_.layers;
    }
    site.adapters.erase(found);
  }
  report_.hits.erase(std::remove_if(report_.hits.begin(), report_.hits.end(),
                                    [&](const Targets::Hits& hit) { return hit.set == name; }),
                     report_.hits.end());
  sets_.erase(std::find(sets_.begin(), sets_.end(), name));
  active_.erase(name);
}

inline std::vector<torch::Tensor> PatchedImpl::parameters() const {
  std::vector<torch::Tensor> result;
  for (const auto& name : sets_) {
    for (const auto& item : named_parameters(name)) result.push_back(item.value());
  }
  return result;
}

inline NamedTensors PatchedImpl::named_parameters(const std::string& name) const {
  NamedTensors result;
  for (const auto& adapter : adapters(name)) {
    const std::string& path = adapter->layer().name;
    for (const auto& item : adapter->trained()) {
      result.insert(path.empty() ? item.key() : path + "." + item.key(), item.value());
    }
  }
  return result;
}

inline std::vector<std::shared_ptr<Adapter>> PatchedImpl::adapters(const std::string& name) const {
  require_set(name);
  std::vector<std::shared_ptr<Adapter>> result;
  for (const auto& site : sites_) {
    const auto found = site.adapters.find(name);
    if (found != site.adapters.end()) result.push_back(found->second);
  }
  return result;
}

inline AdapterState PatchedImpl::state(const std::string& name, Bases bases) const {
  AdapterState result;
  for (const auto& adapter : adapters(name)) result.push_back(state_of(*adapter, bases));
  return result;
}

inline void PatchedImpl::load_state(const AdapterState& state, const std::string& name) {
  require_idle("load");
  const auto own = adapters(name);
  std::map<std::string, const LayerState*> by_path;
  for (const auto& layer : state) by_path[layer.layer.name] = &layer;
  for (const auto& adapter : own) {
    TORCH_CHECK(by_path.count(adapter->layer().name), "lightlora::load: '", adapter->layer().name,
                "': expected values for this layer, got none among ", state.size(), " layers");
  }
  TORCH_CHECK(by_path.size() == own.size(), "lightlora::load: expected values for ", own.size(),
              " layers, got ", by_path.size(),
              "; hint: patch with the targets that the file was trained with, or patch(model, ",
              "load_state(file))");
  // Checked first, so that a mismatch in a late layer leaves the early ones alone.
  for (const auto& adapter : own) check_fits(*adapter, *by_path[adapter->layer().name]);
  for (const auto& adapter : own) restore(*adapter, *by_path[adapter->layer().name]);
}

inline torch::Tensor PatchedImpl::weight_of(const std::string& path) const {
  for (const auto& site : sites_) {
    if (site.path != path) continue;
    TORCH_CHECK(bound_.empty(), "lightlora: expected no activation to be alive, got one");
    return site.weight.as_matrix(site.kept.defined() ? site.kept : site.weight.tensor()).detach();
  }
  TORCH_CHECK(false, "lightlora: expected the path of an adaptable layer, got '", path, "'");
}

inline void PatchedImpl::set_route(Route route) {
  for (auto& site : sites_) {
    if (auto* slot = site.weight.slot(); slot && !site.adapters.empty()) slot->set_route(route);
  }
}

inline void PatchedImpl::to(torch::Device device) {
  require_idle("to");
  for (auto& site : sites_) {
    for (auto& item : site.adapters) item.second->module().to(device);
  }
}

inline void PatchedImpl::train(bool on) {
  for (auto& site : sites_) {
    for (auto& item : site.adapters) item.second->module().train(on);
  }
}

}  // namespace lightlora
