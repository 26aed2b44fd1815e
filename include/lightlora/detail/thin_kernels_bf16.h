// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/thin_kernels.h>

#include <cstdint>
#include <type_traits>

// The kernels of thin_kernels.h over bf16 where the processor has AVX-512 BF16: the same sums in fp32,
// but widened and rounded by one instruction each. What a compiler makes of its own vectors takes ten
// for them, and then conversions, not memory, are what these passes wait for. Numbers below fp32's
// normal ones count as zero here.
#if LIGHTLORA_THIN_KERNELS && defined(__has_include)
#if __has_include(<immintrin.h>)
#define LIGHTLORA_THIN_BF16 1
// GCC takes the undefined vectors that its own intrinsics begin with for mistakes.
#if defined(__clang__)
#define LIGHTLORA_BF16_QUIET_BEGIN
#define LIGHTLORA_BF16_QUIET_END
#else
#define LIGHTLORA_BF16_QUIET_BEGIN                                                     \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wuninitialized\"") \
      _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")
#define LIGHTLORA_BF16_QUIET_END _Pragma("GCC diagnostic pop")
#endif
LIGHTLORA_BF16_QUIET_BEGIN
#include <immintrin.h>
LIGHTLORA_BF16_QUIET_END
#endif
#endif
#ifndef LIGHTLORA_THIN_BF16
#define LIGHTLORA_THIN_BF16 0
#endif

namespace lightlora::detail::thin {

/// Whether this processor has the instructions.
inline bool has_bf16() {
#if LIGHTLORA_THIN_BF16
  static const bool has = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
  }();
  return has;
#else
  return false;
#endif
}

#if LIGHTLORA_THIN_KERNELS
#if LIGHTLORA_THIN_BF16

namespace bf16 {

/// Rows that are done together, and the largest rank: a block's sums fill one vector.
constexpr int kRows = 4, kColumns = 4, kLanes = 16;

LIGHTLORA_BF16_QUIET_BEGIN

#define LIGHTLORA_BF16_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#define LIGHTLORA_BF16_INLINE LIGHTLORA_BF16_TARGET LIGHTLORA_THIN_INLINE

// The lanes of a mask, or all of them without looking at it: stores with a mask are slow.
template <bool Full>
LIGHTLORA_BF16_INLINE __m512 load(const float* from, __mmask16 mask) {
  if constexpr (Full) return _mm512_loadu_ps(from);
  return _mm512_maskz_loadu_ps(mask, from);
}
template <bool Full>
LIGHTLORA_BF16_INLINE __m512 load(const Half16* from, __mmask16 mask) {
  const __m256i bits = Full ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                            : _mm256_maskz_loadu_epi16(mask, from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
template <bool Full>
LIGHTLORA_BF16_INLINE void store(float* to, __mmask16 mask, __m512 value) {
  if constexpr (Full) return _mm512_storeu_ps(to, value);
  _mm512_mask_storeu_ps(to, mask, value);
}
template <bool Full>
LIGHTLORA_BF16_INLINE void store(Half16* to, __mmask16 mask, __m512 value) {
  const __m256i bits = (__m256i)_mm512_cvtneps_pbh(value);
  if constexpr (Full) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
  _mm256_mask_storeu_epi16(to, mask, bits);
}

/// The lanes that are left of a row from this column on.
LIGHTLORA_THIN_INLINE __mmask16 rest_of(int64_t columns) {
  return static_cast<__mmask16>((1U << columns) - 1U);
}

LIGHTLORA_BF16_INLINE __m512 fold(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}

/// The sum of vector i in lane i.
LIGHTLORA_BF16_INLINE __m512 sums_of(const __m512 (&of)[kLanes]) {
  __m512 pairs[8], quads[4], halves[2];
  LIGHTLORA_THIN_UNROLL
  for (int i = 0; i < 8; ++i) {
    const __m512 a = of[2 * i], b = of[2 * i + 1];
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  LIGHTLORA_THIN_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    quads[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  halves[0] = fold(quads[0], quads[1]);
  halves[1] = fold(quads[2], quads[3]);
  return fold(halves[0], halves[1]);
}

template <bool Full, int B, int R>
LIGHTLORA_BF16_INLINE void add_dots(const Rows<const Half16>& x, const float* factor, int64_t k,
                                    __mmask16 mask, __m512 (&sum)[kLanes]) {
  __m512 in[B];
  LIGHTLORA_THIN_UNROLL
  for (int b = 0; b < B; ++b) in[b] = load<Full>(x.data + b * x.stride + k, mask);
  LIGHTLORA_THIN_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m512 f = load<Full>(factor + r * x.width + k, mask);
    LIGHTLORA_THIN_UNROLL
    for (int b = 0; b < B; ++b) {
      sum[b * kColumns + r] = _mm512_fmadd_ps(in[b], f, sum[b * kColumns + r]);
    }
  }
}

/// h[b][r] = scale * sum over k of x[b][k] factor[r][k]. Asks for the next block's rows meanwhile,
/// which lie in too many places for the processor to see them come.
template <int B, int R>
LIGHTLORA_BF16_INLINE void dots(const Rows<const Half16>& x, const float* factor, float scale,
                                float* h) {
  __m512 sum[kLanes];
  LIGHTLORA_THIN_UNROLL
  for (int i = 0; i < kLanes; ++i) sum[i] = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + kLanes <= x.width; k += kLanes) {
    if (B > 1 && k % (2 * kLanes) == 0) {
      LIGHTLORA_THIN_UNROLL
      for (int b = 0; b < B; ++b) __builtin_prefetch(x.data + (b + B) * x.stride + k);
    }
    add_dots<true, B, R>(x, factor, k, 0, sum);
  }
  if (k < x.width) add_dots<false, B, R>(x, factor, k, rest_of(x.width - k), sum);
  _mm512_store_ps(h, _mm512_mul_ps(sums_of(sum), _mm512_set1_ps(scale)));
}

/// The small numbers of a block, each in all lanes of a vector.
template <int B, int R>
struct Spread {
  __m512 h[B * R];

  LIGHTLORA_BF16_INLINE explicit Spread(const float* from) {
    LIGHTLORA_THIN_UNROLL
    for (int i = 0; i < B * R; ++i) h[i] = _mm512_set1_ps(from[i / R * kColumns + i % R]);
  }
};

template <bool Full, int B, int R>
LIGHTLORA_BF16_INLINE void add_columns(const Rows<Half16>& y, const float* factor,
                                       const Spread<B, R>& spread, int64_t m, __mmask16 mask) {
  __m512 f[R];
  LIGHTLORA_THIN_UNROLL
  for (int r = 0; r < R; ++r) f[r] = load<Full>(factor + r * y.width + m, mask);
  LIGHTLORA_THIN_UNROLL
  for (int b = 0; b < B; ++b) {
    Half16* const place = y.data + b * y.stride + m;
    __m512 sum = load<Full>(place, mask);
    LIGHTLORA_THIN_UNROLL
    for (int r = 0; r < R; ++r) sum = _mm512_fmadd_ps(f[r], spread.h[b * R + r], sum);
    store<Full>(place, mask, sum);
  }
}

/// y[b][m] += sum over r of h[b][r] factor[r][m].
template <int B, int R>
LIGHTLORA_BF16_INLINE void add_product(const Rows<Half16>& y, const float* factor, const float* h) {
  const Spread<B, R> spread(h);
  int64_t m = 0;
  for (; m + kLanes <= y.width; m += kLanes) add_columns<true>(y, factor, spread, m, 0);
  if (m < y.width) add_columns<false>(y, factor, spread, m, rest_of(y.width - m));
}

template <bool Full, int B, int R>
LIGHTLORA_BF16_INLINE void add_sums(const Rows<const Half16>& x, const Spread<B, R>& spread,
                                    float* gradient, int64_t k, __mmask16 mask) {
  __m512 in[B];
  LIGHTLORA_THIN_UNROLL
  for (int b = 0; b < B; ++b) in[b] = load<Full>(x.data + b * x.stride + k, mask);
  LIGHTLORA_THIN_UNROLL
  for (int r = 0; r < R; ++r) {
    float* const place = gradient + r * x.width + k;
    __m512 sum = load<Full>(place, mask);
    LIGHTLORA_THIN_UNROLL
    for (int b = 0; b < B; ++b) sum = _mm512_fmadd_ps(in[b], spread.h[b * R + r], sum);
    store<Full>(place, mask, sum);
  }
}

/// gradient[r][k] += sum over b of g[b][r] x[b][k].
template <int B, int R>
LIGHTLORA_BF16_INLINE void add_gradient(const Rows<const Half16>& x, const float* g,
                                        float* gradient) {
  const Spread<B, R> spread(g);
  int64_t k = 0;
  for (; k + kLanes <= x.width; k += kLanes) add_sums<true>(x, spread, gradient, k, 0);
  if (k < x.width) add_sums<false>(x, spread, gradient, k, rest_of(x.width - k));
}

template <int B, int R>
LIGHTLORA_BF16_INLINE void block(const Forward<Half16>& call, int64_t row) {
  alignas(64) float h[kLanes];
  dots<B, R>(call.x.from(row), call.down, 1.0F, h);
  add_product<B, R>(call.y.from(row), call.up_t, h);
}

template <int B, int R>
LIGHTLORA_BF16_INLINE void block(const Backward<Half16>& call, int64_t row) {
  alignas(64) float g[kLanes], h[kLanes];
  const auto x = call.x.from(row), dy = call.dy.from(row);
  dots<B, R>(dy, call.up_t, 1.0F, g);
  if (call.grad_up_t) {
    dots<B, R>(x, call.down, call.scale, h);
    add_gradient<B, R>(dy, h, call.grad_up_t);
  }
  if (call.grad_down) add_gradient<B, R>(x, g, call.grad_down);
  if (call.dx.data) add_product<B, R>(call.dx.from(row), call.down, g);
}

template <int R, typename Call>
__attribute__((noinline)) LIGHTLORA_BF16_TARGET void run(const Call& call, int64_t begin,
                                                         int64_t end) {
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) block<kRows, R>(call, row);
  for (; row < end; ++row) block<1, R>(call, row);
}

/// Does the rows [begin, end), if the rank is one of theirs.
template <typename Call>
bool run_ranks(const Call& call, int64_t begin, int64_t end) {
  switch (call.rank) {
    case 1:
      return run<1>(call, begin, end), true;
    case 2:
      return run<2>(call, begin, end), true;
    case 3:
      return run<3>(call, begin, end), true;
    case 4:
      return run<4>(call, begin, end), true;
    default:
      return false;
  }
}

LIGHTLORA_BF16_QUIET_END

#undef LIGHTLORA_BF16_INLINE
#undef LIGHTLORA_BF16_TARGET

}  // namespace bf16

#endif

/// Does the rows [begin, end) of a `Forward` or a `Backward` with the best that this processor has.
template <template <typename> class Call, typename T>
void run(const Call<T>& call, int64_t begin, int64_t end) {
#if LIGHTLORA_THIN_BF16
  if constexpr (std::is_same_v<T, Half16>) {
    if (has_bf16() && bf16::run_ranks(call, begin, end)) return;
  }
#endif
  run(call, begin, end, best_isa());
}

#endif

}  // namespace lightlora::detail::thin
