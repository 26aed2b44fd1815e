// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/config.h>
#include <lightlora/options.h>

#include <cstdint>
#include <string>

namespace lightlora {

/// Version of the algorithm that turns (seed, layer name, shape) into a basis. Files state it.
constexpr int64_t kBasisVersion = 1;

/// The side of a layer that a basis belongs to.
enum class Side { down, up };

/// Counter-based random numbers: Philox 4x32 with ten rounds (Salmon et al. 2011, "Parallel random
/// numbers: as easy as 1, 2, 3"). Integer arithmetic only, so equal on every machine; any block can
/// be drawn without the ones before it, and no two streams share a state.
class Philox {
 public:
  /// One stream for each (seed, stream) pair.
  Philox(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  /// The next 64 random bits.
  uint64_t next();

  /// A double strictly between 0 and 1 with 52 random bits.
  double uniform() { return (static_cast<double>(next() >> 12) + 0.5) * 0x1p-52; }

 private:
  void refill();

  static uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
  static uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

  uint64_t seed_;
  uint64_t stream_;
  uint64_t block_ = 0;
  uint64_t buffer_[2] = {0, 0};
  int used_ = 2;
};

namespace detail {

// Natural logarithm from + - * / alone, because libm's differs between systems.
// With x = m * 2^e and m in [sqrt(1/2), sqrt(2)): ln x = e ln 2 + 2 artanh((m - 1) / (m + 1)).
double exact_log(double x);

}  // namespace detail

/// Frozen basis of one side of one layer, fp32 on the CPU.
///
/// Its bits follow from (kBasisVersion, seed, layer name, side, shape) alone, on every machine,
/// compiler and LibTorch version; LibTorch's own generators are neither read nor changed.
/// Paper:  HyperDreamBooth's "Lightweight DreamBooth", arXiv:2307.06949, section 3.2
/// Shapes: Side::down (count, width) with orthonormal rows; Side::up (width, count) with
///         orthonormal columns
/// Errors: c10::ValueError unless 1 <= count <= width
at::Tensor make_basis(Side side, int64_t count, int64_t width, uint64_t seed,
                      const std::string& layer_name, AuxInit kind = AuxInit::orthogonal);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/basis-inl.h>
#endif
