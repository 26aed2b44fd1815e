// SPDX-License-Identifier: Apache-2.0
#pragma once

// The sets of adapters of a patched model: adding, choosing, reading and removing them.
#include <lightlora/detail/basis_batch.h>
#include <lightlora/patch.h>
#include <lightlora/targets-inl.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <unordered_map>

namespace lightlora {

namespace detail {

// Weights that some handle has patched, so that no two handles adapt one. A tied weight counts once
// for each kind of layer that has it.
class PatchedWeights {
 public:
  static PatchedWeights& instance() {
    static PatchedWeights weights;
    return weights;
  }
  // Whether nobody had it.
  bool insert(const torch::Tensor& weight, LayerKind kind) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool taken = std::any_of(weights_.begin(), weights_.end(), [&](const auto& other) {
      return looked_up_alike(other.second, kind) && share_memory(other.first, weight);
    });
    if (!taken) weights_.emplace_back(weight, kind);
    return !taken;
  }
  void erase(const torch::Tensor& weight, LayerKind kind) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = std::find_if(weights_.begin(), weights_.end(), [&](const auto& other) {
      return other.second == kind && other.first.is_same(weight);
    });
    if (found != weights_.end()) weights_.erase(found);
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<torch::Tensor, LayerKind>> weights_;
};

// Parameters that handles have frozen, with the flag that each had before the first of them. It
// comes back when the last one lets go.
class FrozenParameters {
 public:
  static FrozenParameters& instance() {
    static FrozenParameters parameters;
    return parameters;
  }
  void freeze(torch::Tensor parameter) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& entry = entries_[parameter.unsafeGetTensorImpl()];
    if (entry.handles++ == 0) entry.flag = parameter.requires_grad();
    parameter.set_requires_grad(false);
  }
  void release(torch::Tensor parameter, bool restore) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = entries_.find(parameter.unsafeGetTensorImpl());
    if (found == entries_.end() || --found->second.handles > 0) return;
    if (restore) parameter.set_requires_grad(found->second.flag);
    entries_.erase(found);
  }

 private:
  struct Entry {
    int64_t handles = 0;
    bool flag = false;
  };
  std::mutex mutex_;
  std::unordered_map<const void*, Entry> entries_;
};

// Makes adapters, and the bases together of those that do not look at them while they are made.
class AdaptersWithBases {
 public:
  // `at_once` where what is made compares its bases with others.
  template <typename Make>
  std::shared_ptr<Adapter> add(const Make& make, bool at_once = false) {
    if (at_once) finish();
    auto adapter = make();
    const bool patient = !at_once && adapter->waits_for_bases();
    if (batch_ && !patient) {  // it may have looked
      finish();
      adapter = make();
    }
    if (patient && !batch_) batch_.emplace();
    return adapter;
  }
  void finish() {
    if (batch_) batch_->finish();
    batch_.reset();
  }

 private:
  std::optional<BasisBatch> batch_;
};

}  // namespace detail

LIGHTLORA_INLINE void PatchedImpl::release() {
  for (auto& site : sites_) detach(site);
}

// Another handle may patch the layer then.
LIGHTLORA_INLINE void PatchedImpl::detach(Site& site) {
  if (site.patched.defined()) {
    detail::PatchedWeights::instance().erase(site.patched, site.weight.kind());
  }
  site.patched = torch::Tensor();
  site.state = std::make_shared<SiteState>();
  site.bound = site.may_be_unreached = false;
}

LIGHTLORA_INLINE void PatchedImpl::require_set(const std::string& name) const {
  if (std::find(sets_.begin(), sets_.end(), name) != sets_.end()) return;
  TORCH_CHECK(!sets_.empty(), "expected the name of an adapter set, got '", name,
              "' after all adapters have been removed");
  std::string known;
  for (const auto& set : sets_) known += (known.empty() ? "'" : ", '") + set + "'";
  TORCH_CHECK(false, "expected the name of an adapter set (", known, "), got '", name, "'");
}

LIGHTLORA_INLINE PatchedImpl::Site& PatchedImpl::site_of(const std::string& path) {
  for (auto& site : sites_) {
    if (site.path == path) return site;
  }
  std::vector<std::string> paths;
  for (const auto& site : sites_) paths.push_back(site.path);
  TORCH_CHECK(false, "'", path,
              "': expected the path of an adaptable layer, got none of that name; ",
              "hint: the nearest is ", detail::nearest_names(path, paths, 1));
}

LIGHTLORA_INLINE void PatchedImpl::begin_set(const std::string& name) {
  require_idle();
  TORCH_CHECK(std::find(sets_.begin(), sets_.end(), name) == sets_.end(),
              "expected a new name, got '", name, "' a second time");
}

LIGHTLORA_INLINE void PatchedImpl::attach(Site& site, const std::string& name,
                                          std::shared_ptr<Adapter> adapter) {
  if (site.adapters.empty()) {
    const torch::Tensor& weight = site.weight.tensor();
    TORCH_CHECK(detail::PatchedWeights::instance().insert(weight, site.weight.kind()), "'",
                site.path,
                "': expected a layer without adapters, got one that another handle has patched; ",
                "hint: add a second set with lora->add(name, ...), or remove() the first handle");
    site.patched = weight;
    ++report_.layers;
  }
  report_.trainable += adapter->trained_count();
  site.adapters[name] = std::move(adapter);
}

// An operator sees a weight, not a layer: what two layers of one kind share cannot be told apart.
LIGHTLORA_INLINE void PatchedImpl::require_untied(
    const std::vector<std::pair<Site*, std::shared_ptr<Adapter>>>& made) const {
  std::vector<const Site*> seen;
  const auto check = [&](const Site& site) {
    for (const Site* other : seen) {
      const bool tied = other != &site &&
                        looked_up_alike(other->weight.kind(), site.weight.kind()) &&
                        share_memory(other->weight.tensor(), site.weight.tensor());
      TORCH_CHECK(
          !tied, "'", site.path, "': adapters cannot be combined with those of '", other->path,
          "': both layers have the same weight; hint: exclude one of them, it then computes with ",
          "the other's adapter");
    }
    seen.push_back(&site);
  };
  for (const auto& item : made) check(*item.first);
  for (const auto& site : sites_) {
    if (!site.adapters.empty()) check(site);
  }
}

LIGHTLORA_INLINE void PatchedImpl::finish_set(const std::string& name) {
  changed();
  sets_.push_back(name);
  active_[name] = 1.0;
}

LIGHTLORA_INLINE void PatchedImpl::add(const std::string& name, const AdapterFactory& make,
                                       const LoRAOptions& options, const Targets& targets) {
  begin_set(name);
  std::vector<Targets::Hits> hits;
  // Everything that can fail is made before anything is attached.
  std::vector<std::pair<Site*, std::shared_ptr<Adapter>>> made;
  detail::AdaptersWithBases adapters;
  for (const auto& path : targets.select(targets_, &hits)) {
    Site& site = site_of(path);
    const bool vector = site.weight.kind() == LayerKind::vector;
    const AdapterFactory of_site = vector ? factory_of<FullAdapterImpl>() : make;
    LoRAOptions own = vector ? LoRAOptions(1) : options;
    if (!vector) own.rank(targets.rank_of(path, options.rank()));
    if (const auto alpha = targets.alpha_of(path); alpha && !vector) own.network_alpha(*alpha);
    made.emplace_back(&site, adapters.add([&] { return of_site(own, site.weight.info(path)); }));
    if (site.bound || site.weight.kind() == LayerKind::recurrent) {
      require_no_dropout(*made.back().second);
    }
  }
  adapters.finish();
  for (auto& [site, adapter] : made) fit(*adapter, site->weight);
  require_untied(made);
  for (auto& [site, adapter] : made) attach(*site, name, std::move(adapter));
  for (auto& hit : hits) hit.set = name;
  report_.hits.insert(report_.hits.end(), hits.begin(), hits.end());
  finish_set(name);
}

LIGHTLORA_INLINE void PatchedImpl::add(const std::string& name, const AdapterState& state) {
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
  TORCH_CHECK(unmatched.empty(), "expected the model to have all ", state.size(),
              " layers of the adapter, got ", state.size() - unmatched.size(), "; missing '",
              unmatched.front(), "'", unmatched.size() > 1 ? " and more" : "",
              "; hint: it was trained on another model; nearest here: ",
              detail::nearest_names(unmatched.front(), paths, 1));
  detail::AdaptersWithBases adapters;
  for (const auto& layer : state) {
    Site& site = site_of(layer.layer.name);
    const LayerInfo here = site.weight.info(site.path);
    LayerState own = layer;  // some files do not tell both sizes
    if (own.layer.in == 0) {
      own.layer.in = here.in;
      own.layer.kernel = here.kernel;
    }
    if (own.layer.out == 0) own.layer.out = here.out;
    if (site.weight.layer()) {  // it knows what of the files only native ones say
      own.layer.groups = here.groups;
      own.layer.uncommon = here.uncommon;
      own.layer.padding_row = here.padding_row;
    }
    TORCH_CHECK(here.in == own.layer.in && here.out == own.layer.out, "'", site.path,
                "': expected an adapter for ", here.in, " -> ", here.out, ", got ", own.layer.in,
                " -> ", own.layer.out, "; hint: it was trained on another model");
    const auto make = [&] { return detail::make_adapter_over(own, site.weight.matrix()); };
    made.emplace_back(&site, adapters.add(make, /*at_once=*/!own.frozen.empty()));
  }
  adapters.finish();
  for (auto& [site, adapter] : made) place(*adapter, site->weight);
  require_untied(made);
  for (auto& [site, adapter] : made) attach(*site, name, std::move(adapter));
  finish_set(name);
}

LIGHTLORA_INLINE void PatchedImpl::set_active(const std::map<std::string, double>& weights) {
  TORCH_CHECK(!is_active(), "expected no activation to be alive, got one; hint: ",
              "activate(weights) chooses for a while");
  const std::lock_guard<std::mutex> lock(mutex_);
  TORCH_CHECK(!merged_, "expected unmerged adapters, got merged ones; hint: call ",
              "unmerge() first");
  for (const auto& item : weights) require_set(item.first);
  active_ = weights;
}

LIGHTLORA_INLINE std::map<std::string, double> PatchedImpl::active() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return active_;
}

LIGHTLORA_INLINE std::vector<ActiveAdapter> PatchedImpl::active_of(const Site& site,
                                                                   const Weights& weights) {
  std::vector<ActiveAdapter> result;
  if (site.adapters.empty()) return result;
  for (const auto& [name, weight] : weights) {
    const auto found = site.adapters.find(name);
    if (found != site.adapters.end()) result.push_back({found->second, weight});
  }
  return result;
}

LIGHTLORA_INLINE void PatchedImpl::remove() {
  if (merged_) unmerge();
  require_idle();
  changed();
  release();
  for (auto& site : sites_) site.adapters.clear();
  thaw(/*restore=*/true);
  sets_.clear();
  active_.clear();
  report_ = PatchReport{{}, 0, 0, report_.total};
}

LIGHTLORA_INLINE void PatchedImpl::remove(const std::string& name) {
  require_idle();
  require_set(name);
  changed();
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

LIGHTLORA_INLINE std::vector<torch::Tensor> PatchedImpl::parameters() const {
  std::vector<torch::Tensor> result;
  for (const auto& name : sets_) {
    for (const auto& item : named_parameters(name)) result.push_back(item.value());
  }
  return result;
}

LIGHTLORA_INLINE NamedTensors PatchedImpl::named_parameters(const std::string& name) const {
  NamedTensors result;
  for (const auto& adapter : adapters(name)) {
    const std::string& path = adapter->layer().name;
    for (const auto& item : adapter->trained()) {
      result.insert(path.empty() ? item.key() : path + "." + item.key(), item.value());
    }
  }
  return result;
}

LIGHTLORA_INLINE std::vector<std::shared_ptr<Adapter>> PatchedImpl::adapters(
    const std::string& name) const {
  require_set(name);
  std::vector<std::shared_ptr<Adapter>> result;
  for (const auto& site : sites_) {
    const auto found = site.adapters.find(name);
    if (found != site.adapters.end()) result.push_back(found->second);
  }
  return result;
}

LIGHTLORA_INLINE AdapterState PatchedImpl::state(const std::string& name, Bases bases) const {
  AdapterState result;
  for (const auto& adapter : adapters(name)) result.push_back(state_of(*adapter, bases));
  return result;
}

LIGHTLORA_INLINE void PatchedImpl::assign(const AdapterState& state, const std::string& name) {
  require_idle();
  const auto own = adapters(name);
  std::map<std::string, const LayerState*> by_path;
  for (const auto& layer : state) by_path[layer.layer.name] = &layer;
  for (const auto& adapter : own) {
    TORCH_CHECK(by_path.count(adapter->layer().name), "'", adapter->layer().name,
                "': expected values for this layer, got none among ", state.size(), " layers");
  }
  TORCH_CHECK(by_path.size() == own.size(), "expected values for ", own.size(), " layers, got ",
              by_path.size(),
              "; hint: patch with the targets that the file was trained with, or patch(model, ",
              "read_state(file))");
  // Checked first, so that a mismatch in a late layer leaves the early ones alone.
  for (const auto& adapter : own) check_fits(*adapter, *by_path[adapter->layer().name]);
  for (const auto& adapter : own) restore(*adapter, *by_path[adapter->layer().name]);
}

}  // namespace lightlora
