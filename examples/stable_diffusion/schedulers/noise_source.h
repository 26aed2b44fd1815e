// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Generator.h>
#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace sd {

/// Where the noise of a run comes from: CPU generators, so that a seed gives one picture on every
/// device. One generator draws for the whole batch at once; several draw for one picture each, as
/// diffusers does with a list of generators.
class NoiseSource {
 public:
  NoiseSource() = default;
  NoiseSource(at::Generator generator) : generators_{std::move(generator)} {}
  /// One seed for the whole batch, or one for each picture.
  explicit NoiseSource(const std::vector<uint64_t>& seeds);

  /// Draws for `count` pictures and keeps `kept` of them from number `first` on (from 0): pictures
  /// that were drawn as some of several come back without the others.
  /// Errors: c10::ValueError unless 0 <= first, 0 < kept and first + kept <= count
  void keep(int64_t count, int64_t first, int64_t kept);

  /// Unit normal values on the CPU.
  /// Shapes: (pictures, ...)
  /// Errors: c10::Error if the number of pictures does not fit the generators
  torch::Tensor draw(at::IntArrayRef sizes, at::ScalarType dtype) const;

  /// The generator of a picture.
  const at::Generator& generator(int64_t picture) const;
  bool shared() const { return generators_.size() == 1; }

 private:
  std::vector<at::Generator> generators_;
  int64_t count_ = 0, first_ = 0, kept_ = 0;  // no batch to choose from unless count_ is positive
};

}  // namespace sd
