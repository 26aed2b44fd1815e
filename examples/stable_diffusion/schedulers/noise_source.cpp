// SPDX-License-Identifier: Apache-2.0
#include "schedulers/noise_source.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

namespace sd {

NoiseSource::NoiseSource(const std::vector<uint64_t>& seeds) {
  for (const uint64_t seed : seeds) generators_.push_back(at::detail::createCPUGenerator(seed));
}

void NoiseSource::keep(int64_t count, int64_t first, int64_t kept) {
  TORCH_CHECK_VALUE(0 <= first && 0 < kept && first + kept <= count,
                    "noise: expected pictures of a batch from 0 to ", count - 1, ", got ", first,
                    " to ", first + kept - 1);
  count_ = count;
  first_ = first;
  kept_ = kept;
}

const at::Generator& NoiseSource::generator(int64_t picture) const {
  return generators_.at(shared() ? 0 : static_cast<size_t>(picture));
}

torch::Tensor NoiseSource::draw(at::IntArrayRef sizes, at::ScalarType dtype) const {
  const auto options = at::TensorOptions().dtype(dtype);
  auto shape = sizes.vec();
  if (count_ > 0) {
    TORCH_CHECK(shared() && shape.at(0) == kept_, "noise: expected ", kept_,
                " pictures and one generator, got ", shape.at(0), " and ", generators_.size());
    shape[0] = count_;
    return at::randn(shape, generators_.at(0), options).narrow(0, first_, kept_).clone();
  }
  if (shared()) return at::randn(shape, generators_[0], options);
  TORCH_CHECK(static_cast<size_t>(shape.at(0)) == generators_.size(),
              "noise: expected one seed for each of ", shape[0], " pictures, got ",
              generators_.size());
  shape[0] = 1;
  std::vector<torch::Tensor> rows;
  for (const auto& generator : generators_) rows.push_back(at::randn(shape, generator, options));
  return at::cat(rows);
}

}  // namespace sd
