// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>

// What a file from a stranger may ask for, beyond the values that it holds. Each bound is several
// times what honest files of the largest known models need.

namespace lightlora::detail {

inline constexpr int64_t kMostFeatures = 1'000'000;      // of a layer, on either side
inline constexpr std::size_t kMostLayers = 100'000;      // of a native file
inline constexpr int64_t kMostKernel = 1024;             // in each of a convolution's dimensions
inline constexpr int64_t kMostBasis = int64_t{1} << 23;  // values of one frozen basis
inline constexpr int64_t kMostBases = int64_t{1} << 29;  // values of all bases of a file
inline constexpr int64_t kMostDelta = int64_t{1} << 26;  // values of a delta made without a model
inline constexpr int64_t kMostMadeValues = int64_t{1} << 25;  // by products, with what is stored
inline constexpr int64_t kMadePerStored = 32;
inline constexpr uint64_t kMostConfigurationBytes = 16'000'000;  // of a JSON file beside weights
inline constexpr std::size_t kMostTokenBytes = 256;              // of an embedding's name

/// The product of sizes, or the largest number if it does not fit.
inline int64_t saturating_product(std::initializer_list<int64_t> sizes) {
  constexpr int64_t most = std::numeric_limits<int64_t>::max();
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size <= 0) return 0;
  }
  for (const int64_t size : sizes) {
    if (product > most / size) return most;
    product *= size;
  }
  return product;
}

/// For a delta that is made without a model: nothing but a file says how large its layer is.
/// Errors: c10::Error naming the layer
inline void check_delta(const std::string& layer, int64_t in, int64_t out) {
  TORCH_CHECK(saturating_product({in, out}) <= kMostDelta, "'", layer,
              "': expected a delta of at most ", kMostDelta,
              " values to make without a model, got ", out, " x ", in);
}

/// How many values the readers of one file may make out of those that it stores.
class ValueBudget {
 public:
  explicit ValueBudget(uint64_t stored_bytes) {
    const uint64_t stored = stored_bytes / 2;  // in the smallest type that adapters come in
    const auto most = static_cast<uint64_t>(std::numeric_limits<int64_t>::max() / 4);
    left_ = kMostMadeValues +
            static_cast<int64_t>(stored > most / kMadePerStored ? most : stored * kMadePerStored);
  }

  /// Errors: c10::Error beginning with `where` if the file has asked for too much
  void spend(const std::string& where, std::initializer_list<int64_t> sizes) {
    const int64_t values = saturating_product(sizes);
    TORCH_CHECK(values <= left_, where, "expected sizes that go with what the file holds, got ",
                "ones that would make far more values of it; hint: is the file damaged?");
    left_ -= values;
  }

 private:
  int64_t left_ = 0;
};

}  // namespace lightlora::detail
