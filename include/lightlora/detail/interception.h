// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/detail/inference_cache.h>
#include <lightlora/detail/layer_weights.h>
#include <lightlora/options.h>

#include <c10/core/DispatchKey.h>
#include <c10/util/SmallVector.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
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
  at::Tensor index;  ///< (rows), int64
};

/// A weight with the adapters that are active over it.
struct AdaptedSite {
  std::string path;                   ///< of the layer, for messages
  LayerWeight weight;                 ///< where the weight is
  at::Tensor tensor;                  ///< the weight itself, when the table was made
  std::vector<ActiveAdapter> active;  ///< what joins in; with `rows` one for each set or null
  std::shared_ptr<SiteState> state;   ///< shared by all tables of a handle
  std::shared_ptr<const PackedWeight> packed = {};  ///< or null
  const Packable* packable = nullptr;               ///< the layer, if it is one
  std::shared_ptr<const RowChoice> rows = {};       ///< or null: all rows alike

  /// All that composed values depend on: trained and frozen tensors, and last the weight.
  std::vector<at::Tensor> sources = {};
  /// What evaluation keeps.
  struct Kept {
    InferenceCache merged, factors;
  };
  std::shared_ptr<Kept> kept = std::make_shared<Kept>();
};

/// A site as it is now. What joins in may be null where `rows` chooses.
AdaptedSite make_site(std::string path, const LayerWeight& weight,
                      std::vector<ActiveAdapter> active, std::shared_ptr<SiteState> state);

namespace detail {

/// The dispatch key that is switched on while something is active.
constexpr auto kModeKey = c10::DispatchKey::TESTING_ONLY_GenericMode;

/// The sites of one activation by their storage. Never changes once it is made.
class ActiveTable {
 public:
  /// `owner` tells handles apart: of nested activations of one, the inner counts.
  explicit ActiveTable(const void* owner) : owner_(owner) {}

  /// Whose sites these are.
  const void* owner() const { return owner_; }
  /// Takes a site in.
  void add(AdaptedSite site);
  /// The sites with weights in this storage, or null.
  const std::vector<const AdaptedSite*>* find(const void* storage) const;
  /// All of them.
  const std::deque<AdaptedSite>& sites() const { return sites_; }
  /// Whether each weight still lies, and is packed, as when the table was made.
  bool holds() const;

 private:
  const void* owner_;
  std::deque<AdaptedSite> sites_;
  std::unordered_map<const void*, std::vector<const AdaptedSite*>> by_storage_;
};

/// What is active in a thread. LibTorch itself carries it, as its other thread state, into the
/// threads of the backward pass, at::launch and TorchScript's fork.
struct ActiveFrame : c10::DebugInfoBase {
  std::vector<std::shared_ptr<const ActiveTable>> tables;  ///< one for each activation
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
  ~ActiveScope();
  ActiveScope(ActiveScope&&) = default;
  ActiveScope& operator=(ActiveScope&&) = delete;
  ActiveScope(const ActiveScope&) = delete;
  ActiveScope& operator=(const ActiveScope&) = delete;

 private:
  std::shared_ptr<const ActiveTable> table_;
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
/// Whether this runs inside a node of the backward pass in which nothing was activated: LibTorch's
/// own derivatives use weights there that must stay what they are.
bool in_derivative();

/// Has LibTorch call the kernels, once per process.
void register_kernels();

}  // namespace detail

/// Whether adapters are active, in this thread, over a weight or parts of it.
bool is_adapted(const at::Tensor& weight);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/interception-inl.h>
#endif
