// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace lightlora {

/// What one layer composes once and uses again until something that it was made from changes: the
/// merged weight, or the factors. A change is seen by a tensor's version counter or its memory, so
/// any in-place operation of LibTorch and any `to()` count. What writes past the version counter
/// (`Tensor::data()`, `at::_fused_adamw_`) must bump it:
/// `tensor.unsafeGetTensorImpl()->bump_version()`. Safe to use from several threads at once.
class InferenceCache {
 public:
  /// The tensors that `make()` returned last, or those that it returns now if `sources` or
  /// `numbers` differ from what they were then. `make` runs without autograd.
  template <typename Make>
  std::vector<at::Tensor> get(const std::vector<at::Tensor>& sources,
                              const std::vector<double>& numbers, const Make& make) {
    return get(sources, numbers, /*at_once=*/true, make);
  }

  /// The same, but only from the second call with equal sources and numbers on; nothing in the
  /// first, so that what changes in every call costs no `make`.
  template <typename Make>
  std::vector<at::Tensor> get_if_repeated(const std::vector<at::Tensor>& sources,
                                          const std::vector<double>& numbers, const Make& make) {
    return get(sources, numbers, /*at_once=*/false, make);
  }

  /// Gives the memory back.
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    values_.clear();
    sources_.clear();
    stamps_.clear();
  }

 private:
  template <typename Make>
  std::vector<at::Tensor> get(const std::vector<at::Tensor>& sources,
                              const std::vector<double>& numbers, bool at_once, const Make& make) {
    std::vector<Stamp> now;
    now.reserve(sources.size());
    for (const auto& source : sources) now.push_back(Stamp(source));
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool fresh = !sources_.empty() && numbers == numbers_ && now == stamps_;
    if (fresh && !values_.empty()) return values_;
    values_.clear();
    sources_ = sources;  // held, so that no other tensor can come to lie at their addresses
    stamps_ = std::move(now);
    numbers_ = numbers;
    // Tensors of the inference mode count no versions: nothing would tell of a change.
    const bool counted = std::none_of(sources.begin(), sources.end(), [](const at::Tensor& source) {
      return source.is_inference();
    });
    if (!at_once && (!fresh || !counted)) return {};
    const c10::NoGradGuard no_grad;
    std::vector<at::Tensor> made = make();
    if (counted) values_ = made;
    return made;
  }

  struct Stamp {
    explicit Stamp(const at::Tensor& tensor)
        : impl(tensor.unsafeGetTensorImpl()),
          data(tensor.const_data_ptr()),
          version(tensor.is_inference() ? 0 : tensor._version()) {}
    bool operator==(const Stamp& other) const {
      return impl == other.impl && data == other.data && version == other.version;
    }
    const void* impl;
    const void* data;
    int64_t version;
  };

  std::mutex mutex_;
  std::vector<at::Tensor> values_, sources_;
  std::vector<Stamp> stamps_;
  std::vector<double> numbers_;
};

}  // namespace lightlora
