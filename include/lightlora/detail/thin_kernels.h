// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

// The thin products of an adapter on a CPU: matrices of N rows times factors of a few columns. A
// GEMM library takes two to three times as long for them as one pass over memory, and it needs a
// pass for each product, while these loops do everything that there is to do with a row while it
// is in the first-level cache. They read the wide matrices in their own dtype and add up in fp32.
//
// x86-64 with GCC or Clang, chosen at run time (AVX-512, else AVX2), and only in optimised builds:
// unoptimised, the GEMM library wins. Everything else takes LibTorch's products.
#if defined(__x86_64__) && defined(__GNUC__) && defined(__OPTIMIZE__)
#define LIGHTLORA_THIN_KERNELS 1
#define LIGHTLORA_THIN_INLINE __attribute__((always_inline)) inline
#define LIGHTLORA_THIN_LAMBDA __attribute__((always_inline))
#if defined(__clang__)
#define LIGHTLORA_THIN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LIGHTLORA_THIN_UNROLL _Pragma("GCC unroll 8")
#endif
#else
#define LIGHTLORA_THIN_KERNELS 0
#endif

namespace lightlora::detail::thin {

/// Instruction sets that the kernels are compiled for.
enum class Isa { none, avx2, avx512 };

inline Isa best_isa() {
#if LIGHTLORA_THIN_KERNELS
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

/// Rows of a wide matrix: row i begins at data + i * stride.
template <typename T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  int64_t width = 0;
  Rows from(int64_t row) const { return {data ? data + row * stride : data, stride, width}; }
};

/// What one call does with the rows [begin, end). `down` is (rank, K), `up_t` (rank, M), fp32.
template <typename T>
struct Forward {
  Rows<const T> x;
  Rows<T> y;  // y += x down^T up_t
  const float* down;
  const float* up_t;  // with the scale in it
  int64_t rank;
};

template <typename T>
struct Backward {
  Rows<const T> x, dy;
  Rows<T> dx;  // dx += g down with g = dy up_t^T; left out without data
  const float* down;
  const float* up_t;  // with the scale in it
  int64_t rank;
  float scale;
  float* grad_down;  // (rank, K), += g^T x; left out if null
  float* grad_up_t;  // (rank, M), += scale (x down^T)^T dy; left out if null
};

/// The largest rank that the kernels hold. From about here on the GEMM library has enough to do.
constexpr int kMaxRank = 8;

/// A bfloat16 as it lies in memory.
struct Half16 {
  uint16_t bits;
};

#if LIGHTLORA_THIN_KERNELS

// W floats at once; B rows and up to R columns of the factors are held in registers.
template <int W_, int B_>
struct Shape {
  static constexpr int W = W_;
  static constexpr int B = B_;
  static constexpr int R = 4;
  typedef float Vector __attribute__((vector_size(W_ * 4), aligned(4), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(W_ * 4), aligned(4), may_alias));
  typedef uint16_t Short __attribute__((vector_size(W_ * 2), aligned(2), may_alias));
};

// By reference and not as results: how a wide vector is returned depends on the instruction set.
template <typename S>
LIGHTLORA_THIN_INLINE void load(typename S::Vector& to, const float* from) {
  to = *reinterpret_cast<const typename S::Vector*>(from);
}

template <typename S>
LIGHTLORA_THIN_INLINE void load(typename S::Vector& to, const Half16* from) {
  const auto bits = *reinterpret_cast<const typename S::Short*>(from);
  const typename S::Bits wide = __builtin_convertvector(bits, typename S::Bits) << 16;
  to = (typename S::Vector)wide;
}

template <typename S>
LIGHTLORA_THIN_INLINE void store(float* to, const typename S::Vector& value) {
  *reinterpret_cast<typename S::Vector*>(to) = value;
}

// To the nearest, ties to even; a NaN stays one.
template <typename S>
LIGHTLORA_THIN_INLINE void store(Half16* to, const typename S::Vector& value) {
  const typename S::Bits bits = (typename S::Bits)value;
  typename S::Bits rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const auto nan = (typename S::Bits)(value != value);
  rounded = (rounded & ~nan) | (nan & 0x7FC0u);
  *reinterpret_cast<typename S::Short*>(to) = __builtin_convertvector(rounded, typename S::Short);
}

// The sum of a vector's elements, by halves.
template <typename S>
LIGHTLORA_THIN_INLINE float sum_of(const typename S::Vector& value) {
  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
  Four four;
  if constexpr (S::W == 16) {
    const auto* half = reinterpret_cast<const Eight*>(&value);
    const Eight eight = half[0] + half[1];
    const auto* quarter = reinterpret_cast<const Four*>(&eight);
    four = quarter[0] + quarter[1];
  } else {
    const auto* half = reinterpret_cast<const Four*>(&value);
    four = half[0] + half[1];
  }
  return (four[0] + four[1]) + (four[2] + four[3]);
}

LIGHTLORA_THIN_INLINE float load_one(const float* from) { return *from; }
LIGHTLORA_THIN_INLINE float load_one(const Half16* from) {
  const uint32_t bits = static_cast<uint32_t>(from->bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
LIGHTLORA_THIN_INLINE void store_one(float* to, float value) { *to = value; }
LIGHTLORA_THIN_INLINE void store_one(Half16* to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>(value != value ? 0x7FC0u : rounded);
}

// h[b][r] = sum over k of x[b][k] factor[r][k], times `scale`; h has kMaxRank columns.
template <typename S, int B, int R, typename T>
LIGHTLORA_THIN_INLINE void dots(const Rows<const T>& x, const float* factor, float scale,
                                float* h) {
  typename S::Vector sum[B][R] = {};
  int64_t k = 0;
  for (; k + S::W <= x.width; k += S::W) {
    typename S::Vector in[B];
    LIGHTLORA_THIN_UNROLL
    for (int b = 0; b < B; ++b) load<S>(in[b], x.data + b * x.stride + k);
    LIGHTLORA_THIN_UNROLL
    for (int r = 0; r < R; ++r) {
      typename S::Vector f;
      load<S>(f, factor + r * x.width + k);
      LIGHTLORA_THIN_UNROLL
      for (int b = 0; b < B; ++b) sum[b][r] += in[b] * f;
    }
  }
  LIGHTLORA_THIN_UNROLL
  for (int b = 0; b < B; ++b) {
    LIGHTLORA_THIN_UNROLL
    for (int r = 0; r < R; ++r) {
      float total = sum_of<S>(sum[b][r]);
      for (int64_t rest = k; rest < x.width; ++rest) {
        total += load_one(x.data + b * x.stride + rest) * factor[r * x.width + rest];
      }
      h[b * kMaxRank + r] = total * scale;
    }
  }
}

// y[b][m] += sum over r of h[b][r] factor[r][m].
template <typename S, int B, int R, typename T>
LIGHTLORA_THIN_INLINE void add_product(const Rows<T>& y, const float* factor, const float* h) {
  int64_t m = 0;
  for (; m + S::W <= y.width; m += S::W) {
    typename S::Vector f[R];
    LIGHTLORA_THIN_UNROLL
    for (int r = 0; r < R; ++r) load<S>(f[r], factor + r * y.width + m);
    LIGHTLORA_THIN_UNROLL
    for (int b = 0; b < B; ++b) {
      typename S::Vector sum;
      load<S>(sum, y.data + b * y.stride + m);
      LIGHTLORA_THIN_UNROLL
      for (int r = 0; r < R; ++r) sum += f[r] * h[b * kMaxRank + r];
      store<S>(y.data + b * y.stride + m, sum);
    }
  }
  for (; m < y.width; ++m) {
    for (int b = 0; b < B; ++b) {
      float sum = load_one(y.data + b * y.stride + m);
      for (int r = 0; r < R; ++r) sum += factor[r * y.width + m] * h[b * kMaxRank + r];
      store_one(y.data + b * y.stride + m, sum);
    }
  }
}

// gradient[r][k] += sum over b of g[b][r] x[b][k].
template <typename S, int B, int R, typename T>
LIGHTLORA_THIN_INLINE void add_gradient(const Rows<const T>& x, const float* g, float* gradient) {
  int64_t k = 0;
  for (; k + S::W <= x.width; k += S::W) {
    typename S::Vector in[B];
    LIGHTLORA_THIN_UNROLL
    for (int b = 0; b < B; ++b) load<S>(in[b], x.data + b * x.stride + k);
    LIGHTLORA_THIN_UNROLL
    for (int r = 0; r < R; ++r) {
      typename S::Vector sum;
      load<S>(sum, gradient + r * x.width + k);
      LIGHTLORA_THIN_UNROLL
      for (int b = 0; b < B; ++b) sum += in[b] * g[b * kMaxRank + r];
      store<S>(gradient + r * x.width + k, sum);
    }
  }
  for (; k < x.width; ++k) {
    for (int r = 0; r < R; ++r) {
      for (int b = 0; b < B; ++b) {
        gradient[r * x.width + k] += load_one(x.data + b * x.stride + k) * g[b * kMaxRank + r];
      }
    }
  }
}

// Calls step(first column, columns as a constant) for the rank in blocks of four and a rest.
template <typename Step>
LIGHTLORA_THIN_INLINE void over_rank(int64_t rank, const Step& step) {
  int64_t r = 0;
  for (; r + 4 <= rank; r += 4) step(r, std::integral_constant<int, 4>());
  switch (rank - r) {
    case 3:
      return step(r, std::integral_constant<int, 3>());
    case 2:
      return step(r, std::integral_constant<int, 2>());
    case 1:
      return step(r, std::integral_constant<int, 1>());
    default:
      return;
  }
}

template <typename S, int B, typename T>
LIGHTLORA_THIN_INLINE void block(const Forward<T>& call, int64_t row) {
  float h[B * kMaxRank];
  const auto x = call.x.from(row);
  const auto y = call.y.from(row);
  over_rank(call.rank, [&](int64_t r, auto columns) LIGHTLORA_THIN_LAMBDA {
    dots<S, B, decltype(columns)::value>(x, call.down + r * x.width, 1.0F, h + r);
  });
  over_rank(call.rank, [&](int64_t r, auto columns) LIGHTLORA_THIN_LAMBDA {
    add_product<S, B, decltype(columns)::value>(y, call.up_t + r * y.width, h + r);
  });
}

template <typename S, int B, typename T>
LIGHTLORA_THIN_INLINE void block(const Backward<T>& call, int64_t row) {
  float g[B * kMaxRank], h[B * kMaxRank];
  const auto x = call.x.from(row);
  const auto dy = call.dy.from(row);
  const auto dx = call.dx.from(row);
  over_rank(call.rank, [&](int64_t r, auto columns) LIGHTLORA_THIN_LAMBDA {
    constexpr int R = decltype(columns)::value;
    dots<S, B, R>(dy, call.up_t + r * dy.width, 1.0F, g + r);
    if (call.grad_up_t) {
      dots<S, B, R>(x, call.down + r * x.width, call.scale, h + r);
      add_gradient<S, B, R>(dy, h + r, call.grad_up_t + r * dy.width);
    }
    if (call.grad_down) add_gradient<S, B, R>(x, g + r, call.grad_down + r * x.width);
    if (call.dx.data) add_product<S, B, R>(dx, call.down + r * dx.width, g + r);
  });
}

template <typename S, typename Call>
LIGHTLORA_THIN_INLINE void all_rows(const Call& call, int64_t begin, int64_t end) {
  int64_t row = begin;
  for (; row + S::B <= end; row += S::B) block<S, S::B>(call, row);
  for (; row < end; ++row) block<S, 1>(call, row);
}

template <typename Call>
__attribute__((target("avx512f,avx512bw,fma"), noinline)) void run_avx512(const Call& call,
                                                                          int64_t begin,
                                                                          int64_t end) {
  all_rows<Shape<16, 4>>(call, begin, end);
}

template <typename Call>
__attribute__((target("avx2,fma"), noinline)) void run_avx2(const Call& call, int64_t begin,
                                                            int64_t end) {
  all_rows<Shape<8, 2>>(call, begin, end);
}

/// Does the rows [begin, end) of a `Forward` or a `Backward`.
template <typename Call>
void run(const Call& call, int64_t begin, int64_t end, Isa isa) {
  isa == Isa::avx512 ? run_avx512(call, begin, end) : run_avx2(call, begin, end);
}

#endif

}  // namespace lightlora::detail::thin
