// SPDX-License-Identifier: Apache-2.0
#pragma once

// What is active in a patched model: in which thread, with which weights, and whether it was
// reached.
#include <lightlora/patch.h>

#include <torch/csrc/jit/python/update_graph_executor_opt.h>

#include <algorithm>
#include <string_view>
#include <unordered_set>

namespace lightlora {

namespace detail {

// From the second call on TorchScript's executor makes derivatives of its own, which know nothing
// of adapters (their gradients would be zero, in silence), and may copy weights together. While
// this lives, it does neither.
class ExecutorGuard {
 public:
  ExecutorGuard() : before_(torch::jit::getGraphExecutorOptimize()) {
    torch::jit::setGraphExecutorOptimize(false);
  }
  ~ExecutorGuard() { torch::jit::setGraphExecutorOptimize(before_); }
  ExecutorGuard(const ExecutorGuard&) = delete;
  ExecutorGuard& operator=(const ExecutorGuard&) = delete;

 private:
  bool before_;
};

}  // namespace detail

LIGHTLORA_INLINE Activation::Activation(std::shared_ptr<PatchedImpl> patched,
                                        std::shared_ptr<const detail::ActiveTable> table)
    : patched_(std::move(patched)) {
  if (table) scope_.emplace(std::move(table));
  if (patched_->scripted_) executor_ = std::make_shared<detail::ExecutorGuard>();
}

LIGHTLORA_INLINE Activation::~Activation() {
  scope_.reset();
  if (patched_) patched_->leave();
}

LIGHTLORA_INLINE Activation PatchedImpl::activate() { return enter(nullptr); }

LIGHTLORA_INLINE Activation PatchedImpl::activate(const std::map<std::string, double>& weights) {
  for (const auto& item : weights) require_set(item.first);
  return enter(&weights);
}

LIGHTLORA_INLINE Activation PatchedImpl::activate_rows(const std::vector<std::string>& names,
                                                       const torch::Tensor& index) {
  detail::register_kernels();
  const std::lock_guard<std::mutex> lock(mutex_);
  TORCH_CHECK(!merged_,
              "expected unmerged adapters to choose among for each row, got merged ones; ",
              "hint: call unmerge() first");
  Table table = rows_table(names, index);
  ++depth_;
  return {shared_from_this(), std::move(table)};
}

LIGHTLORA_INLINE Activation PatchedImpl::enter(const Weights* weights) {
  detail::register_kernels();
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto outer = detail::current_table(this);
  TORCH_CHECK(!outer || outer->holds(), "expected the model where it was when ",
              "the adapters were activated, got it moved or cast since; hint: move it while no ",
              "activation is alive");
  Table table;
  if (merged_) {
    TORCH_CHECK(!weights, "expected unmerged adapters to choose among, got merged ",
                "ones; hint: call unmerge() first");
  } else if (!outer || weights) {
    const Weights& chosen = weights ? *weights : active_;
    table = table_of(chosen);
    bind(chosen);
    if (table->sites().empty() && bound_.empty() && !outer) table = nullptr;
  }
  ++depth_;
  return {shared_from_this(), std::move(table)};
}

LIGHTLORA_INLINE void PatchedImpl::changed() {
  tables_.clear();
  rows_.clear();
}

LIGHTLORA_INLINE void PatchedImpl::leave() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (--depth_ == 0) bound_.clear();
}

LIGHTLORA_INLINE void PatchedImpl::bind(const Weights& weights) {
  const bool any =
      std::any_of(sites_.begin(), sites_.end(), [](const Site& site) { return site.bound; });
  if (!any) return;
  TORCH_CHECK(
      depth_ == 0 || weights == bound_weights_,
      "expected one choice of adapters at a time while weights are bound, got another from ",
      "another activation; hint: bind_weights is for one thread");
  if (depth_ > 0) return;
  try {
    for (auto& site : sites_) {
      const auto active = site.bound ? active_of(site, weights) : std::vector<ActiveAdapter>();
      if (active.empty()) continue;
      bound_.push_back(std::make_unique<WeightBinding>(
          site.weight, total_delta(active, site.weight.matrix()), site.path));
    }
  } catch (...) {
    bound_.clear();
    throw;
  }
  bound_weights_ = weights;
}

LIGHTLORA_INLINE PatchedImpl::Table PatchedImpl::table_of(const Weights& weights) {
  constexpr std::size_t kMost = 16;  // choices whose composed values are worth their memory
  const auto found = tables_.find(weights);
  if (found != tables_.end() && found->second->holds()) return found->second;
  require_in_place();
  auto table = std::make_shared<detail::ActiveTable>(this);
  for (const auto& site : sites_) {
    auto active = site.bound ? std::vector<ActiveAdapter>() : active_of(site, weights);
    if (!active.empty()) {
      table->add(make_site(site.path, site.weight, std::move(active), site.state));
    }
  }
  if (tables_.size() >= kMost) tables_.clear();
  tables_[weights] = table;
  return table;
}

namespace detail {

// Whether a path is that of an attention's output projection. LibTorch calls it with the sequence
// first, so that its rows are no rows of the batch, however long both are.
template <typename Sites>
bool is_attention_output(const Sites& sites, const std::string& path) {
  constexpr std::string_view name = "out_proj";
  if (path.size() < name.size() || path.compare(path.size() - name.size(), name.npos, name) != 0) {
    return false;
  }
  const std::string parent = path.substr(0, path.size() - name.size());
  return std::any_of(sites.begin(), sites.end(), [&](const auto& other) {
    return std::string_view(other.weight.type()) == "MultiheadAttention" &&
           other.path == parent + other.weight.part();
  });
}

}  // namespace detail

LIGHTLORA_INLINE PatchedImpl::Table PatchedImpl::rows_table(const std::vector<std::string>& names,
                                                            const torch::Tensor& index) {
  for (const auto& name : names) require_set(name);
  const auto count = static_cast<int64_t>(names.size());
  TORCH_CHECK_VALUE(index.dim() == 1 && index.scalar_type() == at::kLong && index.numel() > 0,
                    "expected an index of one int64 for each row, got ", index.sizes(), " ",
                    index.scalar_type());
  TORCH_CHECK_VALUE(index.min().item<int64_t>() >= -1 && index.max().item<int64_t>() < count,
                    "expected an index from -1 to ", count - 1, ", got ",
                    index.min().item<int64_t>(), " to ", index.max().item<int64_t>());
  require_in_place();
  const auto rows = std::make_shared<RowChoice>(RowChoice{index});
  auto table = std::make_shared<detail::ActiveTable>(this);
  for (const auto& site : sites_) {
    std::vector<ActiveAdapter> active;
    bool any = false;
    for (const auto& name : names) {
      const auto found = site.adapters.find(name);
      const auto adapter = found == site.adapters.end() ? nullptr : found->second;
      TORCH_CHECK(!adapter || !has_dropout(*adapter) || !adapter->module().is_training(), "'",
                  site.path, "': adapters chosen for each row cannot be combined with a dropout ",
                  "in training; hint: lora->eval(), or options without one");
      any = any || adapter;
      active.push_back({adapter, 1.0});
    }
    if (!any) continue;
    const LayerKind kind = site.weight.kind();
    const bool attention = detail::is_attention_output(sites_, site.path);
    TORCH_CHECK(
        kind != LayerKind::bag && kind != LayerKind::bilinear && kind != LayerKind::recurrent &&
            kind != LayerKind::vector && !site.bound && !attention && site.weight.part().empty(),
        "'", site.path, "': adapters chosen for each row cannot be combined with ",
        site.bound  ? "a bound weight"
        : attention ? "MultiheadAttention"
                    : site.weight.type(),
        ": its input has no dimension of rows that is known; hint: leave it out of the sets");
    AdaptedSite made = make_site(site.path, site.weight, std::move(active), site.state);
    made.rows = rows;
    // The index changes with every batch, the sets do not.
    auto& kept = rows_[names][&site];
    if (!kept) kept = made.kept;
    made.kept = kept;
    table->add(std::move(made));
  }
  return table;
}

// By path or by its end, as targets select.
LIGHTLORA_INLINE std::vector<PatchedImpl::Site*> PatchedImpl::sites_named(
    const std::vector<std::string>& names) {
  std::vector<Site*> found;
  for (const auto& name : names) {
    const std::size_t before = found.size();
    for (auto& site : sites_) {
      const std::string end = "." + name;
      const bool ends = site.path.size() > end.size() &&
                        site.path.compare(site.path.size() - end.size(), end.size(), end) == 0;
      if (site.path == name || ends) found.push_back(&site);
    }
    if (found.size() == before) site_of(name);  // which names the nearest one
  }
  return found;
}

LIGHTLORA_INLINE void PatchedImpl::bind_weights(const std::vector<std::string>& names) {
  require_idle();
  for (Site* found : sites_named(names)) {
    Site& site = *found;
    TORCH_CHECK(site.weight.is_member(), "'", site.path,
                "': expected a layer that reads its weight from a ", "member, got ",
                site.weight.type(), "; hint: leave it out of the targets");
    for (const auto& item : site.adapters) require_no_dropout(*item.second);
    site.bound = true;
  }
  changed();
}

LIGHTLORA_INLINE void PatchedImpl::allow_unreached(const std::vector<std::string>& names) {
  for (Site* site : sites_named(names)) site->may_be_unreached = true;
}

LIGHTLORA_INLINE std::vector<std::string> PatchedImpl::unreached() const {
  std::vector<std::string> paths;
  for (const auto& site : sites_) {
    const bool counts = !site.bound && !site.may_be_unreached && !site.state->reached;
    if (counts && !active_of(site, active_).empty()) paths.push_back(site.path);
  }
  return paths;
}

LIGHTLORA_INLINE void PatchedImpl::require_reached(const torch::nn::Module* module) const {
  const auto table = detail::current_table(this);
  if (!table) return;
  std::vector<std::string> missing;
  std::unordered_set<const torch::nn::Module*> held;
  for (const auto& active : table->sites()) {
    if (active.state->reached) continue;
    const auto site = std::find_if(sites_.begin(), sites_.end(),
                                   [&](const Site& other) { return other.state == active.state; });
    if (site == sites_.end() || site->may_be_unreached) continue;
    if (module && module != model_ && held.empty()) {
      held.insert(module);
      for (const auto& part : module->modules(/*include_self=*/false)) held.insert(part.get());
    }
    if (held.empty() || held.count(site->weight.layer().get())) missing.push_back(site->path);
  }
  if (missing.empty()) return;
  constexpr std::size_t kNamed = 3;
  std::string names;
  for (std::size_t i = 0; i < std::min(missing.size(), kNamed); ++i) {
    names += (i == 0 ? "'" : ", '") + missing[i] + "'";
  }
  TORCH_CHECK(
      false, names,
      missing.size() > kNamed ? " and " + std::to_string(missing.size() - kNamed) + " more" : "",
      ": expected every adapted weight to come to an operator of its layer, got a call without ",
      missing.size() == 1 ? "this one" : "these", "; hint: lora->bind_weights({\"", missing.front(),
      "\"}) where the model computes with the weight itself, ",
      "lora->allow_unreached(...) where a call may leave the layer out");
}

}  // namespace lightlora
