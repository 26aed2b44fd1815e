// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

// Vectors of fp32, and of bf16 in memory, in the compiler's own terms: the loops are compiled for
// AVX-512 and AVX2 and chosen at run time. x86-64 with GCC or Clang, and only in optimised builds;
// everything else takes LibTorch's operators.
#if defined(__x86_64__) && defined(__GNUC__) && defined(__OPTIMIZE__)
#define SD_VECTORS 1
#define SD_VECTORS_INLINE __attribute__((always_inline)) inline
#else
#define SD_VECTORS 0
#endif

namespace sd::passes {

/// Instruction sets that the loops are compiled for.
enum class Isa { none, avx2, avx512 };

inline Isa best_isa() {
#if SD_VECTORS
  static const Isa best = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
    return Isa::none;
  }();
  return best;
#else
  return Isa::none;
#endif
}

/// A bfloat16 as it lies in memory.
struct Half16 {
  uint16_t bits;
};

#if SD_VECTORS

/// W floats at once.
template <int W_>
struct Shape {
  static constexpr int W = W_;
  typedef float Vector __attribute__((vector_size(W_ * 4), aligned(4), may_alias));
  typedef int32_t Ints __attribute__((vector_size(W_ * 4), aligned(4), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(W_ * 4), aligned(4), may_alias));
  typedef uint16_t Short __attribute__((vector_size(W_ * 2), aligned(2), may_alias));
};

// By reference and not as results: how a wide vector is returned depends on the instruction set.
template <typename S>
SD_VECTORS_INLINE void load(typename S::Vector& to, const float* from) {
  to = *reinterpret_cast<const typename S::Vector*>(from);
}

template <typename S>
SD_VECTORS_INLINE void load(typename S::Vector& to, const Half16* from) {
  const auto bits = *reinterpret_cast<const typename S::Short*>(from);
  const typename S::Bits wide = __builtin_convertvector(bits, typename S::Bits) << 16;
  to = (typename S::Vector)wide;
}

template <typename S>
SD_VECTORS_INLINE void store(float* to, const typename S::Vector& value) {
  *reinterpret_cast<typename S::Vector*>(to) = value;
}

// To the nearest, ties to even; a NaN stays one.
template <typename S>
SD_VECTORS_INLINE void store(Half16* to, const typename S::Vector& value) {
  const typename S::Bits bits = (typename S::Bits)value;
  typename S::Bits rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const auto nan = (typename S::Bits)(value != value);
  rounded = (rounded & ~nan) | (nan & 0x7FC0u);
  *reinterpret_cast<typename S::Short*>(to) = __builtin_convertvector(rounded, typename S::Short);
}

/// The first `count` lanes of a vector, zeros behind them.
template <typename S, typename T>
SD_VECTORS_INLINE void load_some(typename S::Vector& to, const T* from, int64_t count) {
  if (count >= S::W) return load<S>(to, from);
  T lanes[S::W] = {};
  std::memcpy(lanes, from, static_cast<size_t>(count) * sizeof(T));
  load<S>(to, lanes);
}

template <typename S, typename T>
SD_VECTORS_INLINE void store_some(T* to, const typename S::Vector& value, int64_t count) {
  if (count >= S::W) return store<S>(to, value);
  T lanes[S::W];
  store<S>(lanes, value);
  std::memcpy(to, lanes, static_cast<size_t>(count) * sizeof(T));
}

/// The sum of a vector's elements, by halves.
template <typename S>
SD_VECTORS_INLINE float sum_of(const typename S::Vector& value) {
  float lanes[S::W];
  store<S>(lanes, value);
  for (int half = S::W / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

/// e^x to about one unit in the last place, x taken as within [-87, 87]. As Cephes' expf.
template <typename S>
SD_VECTORS_INLINE void exponential(typename S::Vector& y, const typename S::Vector& x) {
  using V = typename S::Vector;
  const V most = V{} + 87.0F, shift = V{} + 12582912.0F;  // 1.5 * 2^23: rounds to whole numbers
  V in = x > most ? most : x;
  in = in < -most ? -most : in;
  const V n = (in * 1.44269504F + shift) - shift;
  const V r = (in - n * 0.693359375F) - n * -2.12194440e-4F;
  V p = V{} + 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  const V e = p * (r * r) + (r + 1.0F);
  const auto power = (__builtin_convertvector(n, typename S::Ints) + 127) << 23;
  y = e * (V)power;
}

/// 1 / (1 + e^-x)
template <typename S>
SD_VECTORS_INLINE void sigmoid(typename S::Vector& y, const typename S::Vector& x) {
  typename S::Vector e;
  exponential<S>(e, -x);
  y = 1.0F / (1.0F + e);
}

/// The normal distribution's cumulative and its density. erfc(t) = e^(-t^2) P(1 / (1 + 0.4 t)) for
/// t >= 0, P fitted to a relative error of 3e-8, so that the lower tail is as exact as the rest.
template <typename S>
SD_VECTORS_INLINE void normal(typename S::Vector& cumulative, typename S::Vector& density,
                              const typename S::Vector& x) {
  using V = typename S::Vector;
  V e;
  exponential<S>(e, x * x * -0.5F);
  const V size = x < 0.0F ? -x : x;
  const V q = 1.0F / (1.0F + size * 0.28284271F);  // 0.4 / sqrt(2)
  V p = V{} + 2.8695497661828995e-2F;
  p = p * q - 7.474756240844727e-2F;
  p = p * q - 6.368972361087799e-2F;
  p = p * q + 2.757928967475891e-1F;
  p = p * q - 6.857065111398697e-2F;
  p = p * q + 2.686396837234497e-1F;
  p = p * q + 1.774156540632248e-1F;
  p = p * q + 2.3135527968406677e-1F;
  p = p * q + 2.2508256137371063e-1F;
  p = p * q + 2.6405932658235542e-5F;
  const V tail = e * p * 0.5F;
  cumulative = x < 0.0F ? tail : 1.0F - tail;
  density = e * 0.39894228F;
}

#endif

}  // namespace sd::passes
