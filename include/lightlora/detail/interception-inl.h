// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/interception.h>

#include <lightlora/detail/interception_kernels-inl.h>

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <typeinfo>

namespace lightlora {

LIGHTLORA_INLINE AdaptedSite make_site(std::string path, const LayerWeight& weight,
                                       std::vector<ActiveAdapter> active,
                                       std::shared_ptr<SiteState> state) {
  AdaptedSite site{std::move(path), weight, weight.tensor(), std::move(active), std::move(state)};
  for (const auto& item : site.active) {
    if (!item.adapter) continue;
    for (const auto& tensor : item.adapter->trained()) site.sources.push_back(tensor.value());
    for (const auto& tensor : item.adapter->frozen()) site.sources.push_back(tensor.value());
  }
  site.sources.push_back(site.tensor);
  return site;
}

namespace detail {

// The kinds of LibTorch's debug information are its own; the one for its tests is what is left. Newer
// versions have no constant of it.
inline c10::DebugInfoKind frame_kind() { return c10::DebugInfoKind::TEST_INFO_2; }

inline const ActiveFrame* frame_of_thread() {
  const c10::DebugInfoBase* info = c10::ThreadLocalDebugInfo::get(frame_kind());
  return info && typeid(*info) == typeid(ActiveFrame) ? static_cast<const ActiveFrame*>(info)
                                                      : nullptr;
}

inline bool is_on_top(c10::DebugInfoKind kind) {
  try {
    return c10::ThreadLocalDebugInfo::_peek(kind) != nullptr;
  } catch (const c10::Error&) {
    return false;
  }
}

// Takes information of other kinds that lies above ours off, such as a profiler's, and gives it in
// the order of taking.
inline auto take_what_lies_above() {
  using Kind = c10::DebugInfoKind;
  std::vector<std::pair<Kind, std::shared_ptr<c10::DebugInfoBase>>> taken;
  while (!is_on_top(frame_kind())) {
    bool found = false;
    for (const Kind kind : {Kind::PRODUCER_INFO, Kind::MOBILE_RUNTIME_INFO, Kind::PROFILER_STATE,
                            Kind::INFERENCE_CONTEXT, Kind::PARAM_COMMS_INFO, Kind::TEST_INFO}) {
      if (!is_on_top(kind)) continue;
      taken.emplace_back(kind, c10::ThreadLocalDebugInfo::_pop(kind));
      found = true;
      break;
    }
    if (!found) break;
  }
  return taken;
}

inline void set_frame(const std::shared_ptr<const ActiveFrame>& frame) {
  decltype(take_what_lies_above()) above;
  if (frame_of_thread()) {
    above = take_what_lies_above();
    if (is_on_top(frame_kind())) c10::ThreadLocalDebugInfo::_pop(frame_kind());
  }
  const bool any = frame && !(frame->tables.empty() && frame->packings.empty());
  if (any) {
    c10::ThreadLocalDebugInfo::_push(frame_kind(), std::const_pointer_cast<ActiveFrame>(frame));
  }
  for (auto item = above.rbegin(); item != above.rend(); ++item) {
    c10::ThreadLocalDebugInfo::_push(item->first, item->second);
  }
  c10::impl::tls_set_dispatch_key_included(kModeKey, any);
}

LIGHTLORA_INLINE std::shared_ptr<const ActiveFrame> current_frame() {
  const ActiveFrame* frame = frame_of_thread();
  return frame ? std::make_shared<ActiveFrame>(*frame) : nullptr;
}

LIGHTLORA_INLINE std::shared_ptr<const ActiveTable> current_table(const void* owner) {
  const ActiveFrame* frame = frame_of_thread();
  if (!frame) return nullptr;
  for (auto table = frame->tables.rbegin(); table != frame->tables.rend(); ++table) {
    if ((*table)->owner() == owner) return *table;
  }
  return nullptr;
}

inline const void* current_node() { return torch::autograd::get_current_node().get(); }

// A frame is never changed once it is a thread's: backward passes may hold it.
template <typename Change>
void change_frame(const Change& change) {
  const ActiveFrame* before = frame_of_thread();
  auto frame = before ? std::make_shared<ActiveFrame>(*before) : std::make_shared<ActiveFrame>();
  change(*frame);
  set_frame(frame);
}

template <typename Table>
void erase_last(std::vector<std::shared_ptr<const Table>>& tables,
                const std::shared_ptr<const Table>& table) {
  const auto last = std::find(tables.rbegin(), tables.rend(), table);
  if (last != tables.rend()) tables.erase(std::next(last).base());
}

LIGHTLORA_INLINE ActiveScope::ActiveScope(std::shared_ptr<const ActiveTable> table)
    : table_(std::move(table)) {
  register_kernels();
  change_frame([&](ActiveFrame& frame) {
    frame.tables.push_back(table_);
    frame.node = current_node();
  });
}

LIGHTLORA_INLINE ActiveScope::ActiveScope(std::shared_ptr<const PackedTable> packing)
    : packing_(std::move(packing)) {
  register_kernels();
  change_frame([&](ActiveFrame& frame) {
    frame.packings.push_back(packing_);
    frame.node = current_node();
  });
}

LIGHTLORA_INLINE ActiveScope::~ActiveScope() {
  if (!(table_ || packing_) || !frame_of_thread()) return;
  change_frame([&](ActiveFrame& frame) {
    if (table_) erase_last(frame.tables, table_);
    if (packing_) erase_last(frame.packings, packing_);
  });
}

LIGHTLORA_INLINE FrameScope::FrameScope(const std::shared_ptr<const ActiveFrame>& frame)
    : before_(current_frame()) {
  if (!frame) {
    set_frame(nullptr);
    return;
  }
  auto here = std::make_shared<ActiveFrame>(*frame);
  here->node = current_node();
  set_frame(here);
}

LIGHTLORA_INLINE FrameScope::~FrameScope() { set_frame(before_); }

LIGHTLORA_INLINE bool in_derivative() {
  const ActiveFrame* frame = frame_of_thread();
  return !frame || frame->node != current_node();
}

// Calls body(site) for each active site whose weight lies in the tensor's storage; inner
// activations first, until `body` says true.
template <typename Body>
bool for_each_site_of(const at::Tensor& tensor, const Body& body) {
  const ActiveFrame* frame = frame_of_thread();
  if (!frame || !tensor.defined() || !tensor.has_storage()) return false;
  const void* const storage = tensor.storage().unsafeGetStorageImpl();
  const auto& tables = frame->tables;
  for (auto table = tables.rbegin(); table != tables.rend(); ++table) {
    const auto* sites = (*table)->find(storage);
    const bool shadowed = std::any_of(tables.rbegin(), table, [&](const auto& inner) {
      return inner->owner() == (*table)->owner();
    });
    if (!sites || shadowed) continue;
    for (const AdaptedSite* site : *sites) {
      if (body(*site)) return true;
    }
  }
  return false;
}

// A matrix in memory. The stride of a dimension of size 1 says nothing.
struct MatrixLayout {
  int64_t rows, columns, row_stride, column_stride, offset;

  static MatrixLayout of(const at::Tensor& t) {
    return {t.size(0), t.size(1), t.stride(0), t.stride(1), t.storage_offset()};
  }
  MatrixLayout transposed() const { return {columns, rows, column_stride, row_stride, offset}; }
};

// The rows that a site's matrix and an operator's share, if they are laid out alike.
inline std::optional<MatchedRows> shared_rows(const MatrixLayout& given, const AdaptedSite& site) {
  const at::Tensor& weight = site.tensor;
  const bool flat = weight.dim() == 2;
  if (!flat && !weight.is_contiguous()) return {};
  const int64_t rows = weight.size(0), columns = rows > 0 ? weight.numel() / rows : 0;
  const int64_t row_stride = flat ? weight.stride(0) : columns;
  const int64_t column_stride = flat ? weight.stride(1) : 1;
  if (columns != given.columns) return {};
  if (columns > 1 && column_stride != given.column_stride) return {};
  const bool one_row = given.rows == 1 || rows == 1;
  if (!one_row && row_stride != given.row_stride) return {};
  const int64_t stride = rows > 1 ? row_stride : given.rows > 1 ? given.row_stride : columns;
  const int64_t distance = weight.storage_offset() - given.offset;
  if (stride <= 0 || distance % stride != 0) return {};
  const int64_t start = distance / stride;
  const int64_t begin = std::max<int64_t>(0, start), end = std::min(given.rows, start + rows);
  if (begin >= end) return {};
  return MatchedRows{&site, begin - start, begin, end - begin};
}

// Written once: threads that share a site do not wait for each other.
inline void note_reached(const AdaptedSite& site) {
  auto& reached = site.state->reached;
  if (!reached.load(std::memory_order_relaxed)) reached.store(true, std::memory_order_relaxed);
}

inline Match match_layout(const at::Tensor& matrix, const MatrixLayout& layout, bool transposed) {
  Match match;
  match.transposed = transposed;
  match.rows = layout.rows;
  for_each_site_of(matrix, [&](const AdaptedSite& site) {
    const LayerKind kind = site.weight.kind();
    if (kind != LayerKind::linear && kind != LayerKind::convolution) return false;
    const auto shared = shared_rows(layout, site);
    if (!shared) return false;
    const bool taken = std::any_of(match.parts.begin(), match.parts.end(), [&](const auto& part) {
      return shared->begin < part.begin + part.count && part.begin < shared->begin + shared->count;
    });
    if (!taken) match.parts.push_back(*shared);
    return false;
  });
  std::sort(match.parts.begin(), match.parts.end(),
            [](const auto& a, const auto& b) { return a.begin < b.begin; });
  for (const auto& part : match.parts) note_reached(*part.site);
  return match;
}

LIGHTLORA_INLINE Match match_matrix(const at::Tensor& matrix) {
  if (!frame_of_thread() || matrix.dim() != 2 || !matrix.has_storage()) return {};
  const auto layout = MatrixLayout::of(matrix);
  Match match = match_layout(matrix, layout, /*transposed=*/false);
  return match ? match : match_layout(matrix, layout.transposed(), /*transposed=*/true);
}

// Whether two tensors of one storage are the same part of it.
inline bool is_laid_out_as(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.strides() == b.strides() &&
         a.storage_offset() == b.storage_offset();
}

LIGHTLORA_INLINE const AdaptedSite* match_whole(const at::Tensor& weight, LayerKind kind) {
  const AdaptedSite* found = nullptr;
  for_each_site_of(weight, [&](const AdaptedSite& site) {
    if (site.weight.kind() != kind || !is_laid_out_as(site.tensor, weight)) return false;
    found = &site;
    return true;
  });
  if (found) note_reached(*found);
  return found;
}

LIGHTLORA_INLINE bool packs() {
  const ActiveFrame* frame = frame_of_thread();
  return frame && !frame->packings.empty();
}

LIGHTLORA_INLINE const PackedSite* find_packed(const at::Tensor& weight) {
  const ActiveFrame* frame = frame_of_thread();
  if (!frame || frame->packings.empty() || !weight.has_storage()) return nullptr;
  const void* const storage = weight.storage().unsafeGetStorageImpl();
  for (const auto& packing : frame->packings) {
    const auto* sites = packing->find(storage);
    if (!sites) continue;
    for (const PackedSite* site : *sites) {
      if (is_laid_out_as(site->tensor, weight)) return site;
    }
  }
  return nullptr;
}

}  // namespace detail

LIGHTLORA_INLINE bool is_adapted(const at::Tensor& weight) {
  return detail::for_each_site_of(weight, [](const AdaptedSite&) { return true; });
}

LIGHTLORA_INLINE std::optional<ActiveValues> active_values(const at::Tensor& weight) {
  ActiveValues values;
  const bool differ = detail::for_each_site_of(weight, [&](const AdaptedSite& site) {
    if (site.rows || site.given || detail::is_dropping(site)) return true;
    values.sources.insert(values.sources.end(), site.sources.begin(), site.sources.end());
    const auto numbers = detail::numbers_of(site);
    values.numbers.insert(values.numbers.end(), numbers.begin(), numbers.end());
    return false;
  });
  if (differ) return std::nullopt;
  return values;
}

}  // namespace lightlora
