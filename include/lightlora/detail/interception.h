// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/detail/inference_cache.h>
#include <lightlora/detail/layer_weights.h>
#include <lightlora/detail/packed_weight.h>
#include <lightlora/options.h>

#include <c10/core/DispatchKey.h>
#include <c10/util/SmallVector.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lightlora {

// How a layer of any model is adapted: not by changing it, but by taking over the operator call
// that it makes, in the threads where its adapters are active. A dispatch key of LibTorch's that
// lies above autograd and autocast, TESTING_ONLY_GenericMode, is switched on per thread; every
// operator falls through it, but for those through which layers use their weights
// (interception_kernels-inl.h). Their kernels look the weight up by its storage, because a layer
// may pass an alias of it, its transpose, or some of its rows.

/// What the calls of one handle share about a site, whatever is active.
struct SiteState {
  std::atomic<bool> reached{false};            ///< its weight has come to an operator
  std::atomic<Route> route{Route::automatic};  ///< how it is to be computed
};

/// Which adapter set each row of a batch uses: row i the set number index[i], or none if it is -1.
struct RowChoice {
  at::Tensor index;  ///< (rows), int64; undefined where the factors are `given`
};

/// Factors from outside for each row of a batch, or for all rows if there is one entry; the scale
/// is in `up`.
struct GivenFactors {
  at::Tensor down, up;  ///< (entries, r, in) and (entries, out, r)
};

/// A weight with the adapters that are active over it.
struct AdaptedSite {
  std::string path;                   ///< of the layer, for messages
  LayerWeight weight;                 ///< where the weight is
  at::Tensor tensor;                  ///< the weight itself, when the table was made
  std::vector<ActiveAdapter> active;  ///< what joins in; with `rows` one for each set or null
  std::shared_ptr<SiteState> state;   ///< shared by all tables of a handle
  std::shared_ptr<const RowChoice> rows = {};  ///< or null: all rows alike
  std::optional<GivenFactors> given = {};      ///< in place of the adapters', with `rows`

  /// All that composed values depend on: trained and frozen tensors, and last the weight.
  std::vector<at::Tensor> sources = {};
  /// What evaluation keeps.
  struct Kept {
    InferenceCache merged, factors;
  };
  std::shared_ptr<Kept> kept = std::make_shared<Kept>();
};

/// A weight that the CPU's kernels find in their own layout too.
struct PackedSite {
  LayerWeight weight;                          ///< where the weight is
  at::Tensor tensor;                           ///< the weight itself, when the table was made
  std::shared_ptr<const PackedWeight> packed;  ///< the copy
};

/// A site as it is now. What joins in may be null where `rows` chooses.
AdaptedSite make_site(std::string path, const LayerWeight& weight,
                      std::vector<ActiveAdapter> active, std::shared_ptr<SiteState> state);

namespace detail {

/// The dispatch key that is switched on while something is active.
constexpr auto kModeKey = c10::DispatchKey::TESTING_ONLY_GenericMode;

/// Sites by their storage. Never changes once it is made.
template <typename Site>
class SiteTable {
 public:
  /// Takes a site in.
  void add(Site site) {
    sites_.push_back(std::move(site));
    const Site& added = sites_.back();
    if (added.tensor.has_storage()) {
      by_storage_[added.tensor.storage().unsafeGetStorageImpl()].push_back(&added);
    }
  }
  /// The sites with weights in this storage, or null.
  const std::vector<const Site*>* find(const void* storage) const {
    const auto found = by_storage_.find(storage);
    return found == by_storage_.end() ? nullptr : &found->second;
  }
  /// All of them.
  const std::deque<Site>& sites() const { return sites_; }
  /// Whether each weight still lies as when the table was made.
  bool holds() const {
    return std::all_of(sites_.begin(), sites_.end(), [this](const Site& site) {
      const at::Tensor& now = site.weight.tensor();
      if (!now.is_same(site.tensor) || !now.has_storage()) return false;
      const auto* here = find(now.storage().unsafeGetStorageImpl());
      return here && std::find(here->begin(), here->end(), &site) != here->end();
    });
  }

 private:
  std::deque<Site> sites_;
  std::unordered_map<const void*, std::vector<const Site*>> by_storage_;
};

/// The sites of one activation.
class ActiveTable : public SiteTable<AdaptedSite> {
 public:
  /// `owner` tells handles apart: of nested activations of one, the inner counts.
  explicit ActiveTable(const void* owner) : owner_(owner) {}

  /// Whose sites these are.
  const void* owner() const { return owner_; }

 private:
  const void* owner_;
};

/// The packed weights of one model.
using PackedTable = SiteTable<PackedSite>;

/// What is active in a thread. LibTorch itself carries it, as its other thread state, into the
/// threads of the backward pass, at::launch and TorchScript's fork.
struct ActiveFrame : c10::DebugInfoBase {
  std::vector<std::shared_ptr<const ActiveTable>> tables;    ///< one for each activation
  std::vector<std::shared_ptr<const PackedTable>> packings;  ///< likewise, of packed weights
  /// The node of the backward pass inside of which the activation was made, or null.
  const void* node = nullptr;
};

/// What is active in this thread, or null.
std::shared_ptr<const ActiveFrame> current_frame();
/// The table of this owner that counts in this thread, or null.
std::shared_ptr<const ActiveTable> current_table(const void* owner);

/// While it lives, a table is active in the thread that made it. Movable, within that thread.
class ActiveScope {
 public:
  explicit ActiveScope(std::shared_ptr<const ActiveTable> table);
  explicit ActiveScope(std::shared_ptr<const PackedTable> packing);
  ~ActiveScope();
  ActiveScope(ActiveScope&&) = default;
  ActiveScope& operator=(ActiveScope&&) = delete;
  ActiveScope(const ActiveScope&) = delete;
  ActiveScope& operator=(const ActiveScope&) = delete;

 private:
  std::shared_ptr<const ActiveTable> table_;
  std::shared_ptr<const PackedTable> packing_;
};

/// While it lives, exactly what a frame holds is active: for what runs again in a backward pass.
class FrameScope {
 public:
  explicit FrameScope(const std::shared_ptr<const ActiveFrame>& frame);
  ~FrameScope();
  FrameScope(const FrameScope&) = delete;
  FrameScope& operator=(const FrameScope&) = delete;

 private:
  std::shared_ptr<const ActiveFrame> before_;
};

/// Some rows of a matrix that an operator got, which are rows of an adapted weight.
struct MatchedRows {
  const AdaptedSite* site;
  int64_t first;  ///< row of the site's matrix
  int64_t begin;  ///< row of the operator's matrix
  int64_t count;
};

/// What a matrix of an operator is made of.
struct Match {
  c10::SmallVector<MatchedRows, 3> parts;  ///< in the order of `begin`, none overlapping
  bool transposed = false;                 ///< the operator got the transpose
  int64_t rows = 0;                        ///< of the matrix, untransposed
  explicit operator bool() const { return !parts.empty(); }
};

/// Which adapted weights a matrix is, or is the transpose of, or has rows of.
Match match_matrix(const at::Tensor& matrix);
/// The adapted weight of this kind that a tensor is, or null.
const AdaptedSite* match_whole(const at::Tensor& weight, LayerKind kind);
/// Whether packed weights are active in this thread.
bool packs();
/// Where the packed copy of exactly this weight is, or null.
const PackedSite* find_packed(const at::Tensor& weight);
/// Whether this runs inside a node of the backward pass in which nothing was activated: LibTorch's
/// own derivatives use weights there that must stay what they are.
bool in_derivative();

/// Has LibTorch call the kernels, once per process.
void register_kernels();

}  // namespace detail

/// Whether adapters are active, in this thread, over a weight or parts of it.
bool is_adapted(const at::Tensor& weight);

/// All that the adapters which are active over a weight add to it follows from: tensors and numbers
/// as InferenceCache takes them.
struct ActiveValues {
  std::vector<at::Tensor> sources;  ///< trained and frozen values, and the weight
  std::vector<double> numbers;      ///< scales, and weights of the sets
};

/// For whoever keeps what a layer made, as long as the same adapters with the same values are active
/// in this thread. Empty where none are; nothing where two calls may differ anyhow: a dropout, or
/// rows with adapters of their own.
std::optional<ActiveValues> active_values(const at::Tensor& weight);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/interception-inl.h>
#endif
