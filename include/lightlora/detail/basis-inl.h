// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/basis.h>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <lightlora/detail/basis_batch.h>
#include <lightlora/detail/basis_kernels.h>

#include <cmath>

namespace lightlora {

LIGHTLORA_INLINE uint64_t Philox::next() {
  if (used_ == 2) {
    refill();
    used_ = 0;
  }
  return buffer_[used_++];
}

LIGHTLORA_INLINE void Philox::refill() {
  uint32_t c[4] = {low(block_), high(block_), low(stream_), high(stream_)};
  uint32_t key[2] = {low(seed_), high(seed_)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next_c[4] = {high(p1) ^ c[1] ^ key[0], low(p1), high(p0) ^ c[3] ^ key[1],
                                low(p0)};
    for (int i = 0; i < 4; ++i) c[i] = next_c[i];
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  buffer_[0] = (uint64_t{c[1]} << 32) | c[0];
  buffer_[1] = (uint64_t{c[3]} << 32) | c[2];
  ++block_;
}

namespace detail {

// 64-bit FNV-1a over the text that names a basis.
inline uint64_t stream_of(Side side, const std::string& name, int64_t count, int64_t width) {
  const std::string text = "lightlora basis " + std::to_string(kBasisVersion) +
                           (side == Side::down ? " down " : " up ") + std::to_string(count) + "x" +
                           std::to_string(width) + " " + name;
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001B3ULL;
  return hash;
}

LIGHTLORA_INLINE double exact_log(double x) { return exact::log_of(x); }

LIGHTLORA_INLINE void BasisJob::run() const {
  const int64_t size = count * width;
  const at::Tensor scratch = at::empty({size}, at::TensorOptions().dtype(at::kDouble));
  double* rows = scratch.mutable_data_ptr<double>();
  exact::make({seed, stream, rows, count, width, kind == AuxInit::orthogonal}, exact::best());
  const bool scaled = kind == AuxInit::normal_scaled;
  const double factor = scaled ? 1.0 / std::sqrt(static_cast<double>(width)) : 1.0;
  float* out = basis.mutable_data_ptr<float>();
  const bool transposed = side == Side::up;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < width; ++k) {
      out[transposed ? k * count + i : i * width + k] =
          static_cast<float>(rows[i * width + k] * factor);
    }
  }
}

LIGHTLORA_INLINE void BasisBatch::finish() {
  const auto jobs = std::move(jobs_);
  jobs_.clear();
  at::parallel_for(0, static_cast<int64_t>(jobs.size()), /*grain_size=*/1,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) jobs[static_cast<size_t>(i)].run();
                   });
}

}  // namespace detail

LIGHTLORA_INLINE at::Tensor make_basis(Side side, int64_t count, int64_t width, uint64_t seed,
                                       const std::string& layer_name, AuxInit kind) {
  TORCH_CHECK_VALUE(count >= 1 && count <= width, "'", layer_name,
                    "': expected 1 <= directions <= ", width, " (the layer's width), got ", count);
  const bool down = side == Side::down;
  const auto sizes = down ? std::vector<int64_t>{count, width} : std::vector<int64_t>{width, count};
  const detail::BasisJob job{side,
                             count,
                             width,
                             seed,
                             detail::stream_of(side, layer_name, count, width),
                             kind,
                             at::empty(sizes, at::TensorOptions().dtype(at::kFloat))};
  if (!detail::BasisBatch::take(job)) job.run();
  return job.basis;
}

}  // namespace lightlora
