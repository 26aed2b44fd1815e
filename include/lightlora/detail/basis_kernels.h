// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

// The loops that make bases: normal values and Gram-Schmidt, in double.
//
// Bases are a file format, so every operation and the order of every sum are fixed: sums have eight
// partial sums whatever the registers hold, and no product is contracted with a sum into one
// rounding. What is left to choose is how many values are computed at once, and which independent
// rows wait for each other; the bits are those of one value after the other.
#if defined(__clang__)
#define LIGHTLORA_EXACT_FUNCTION __attribute__((noinline))
#define LIGHTLORA_EXACT_BODY _Pragma("clang fp contract(off)")
#elif defined(__GNUC__)
#define LIGHTLORA_EXACT_FUNCTION \
  __attribute__((noinline, optimize("O3", "fp-contract=off", "no-fast-math", "no-math-errno")))
#define LIGHTLORA_EXACT_BODY
#else
#error "lightlora needs GCC or Clang, whose vectors and attributes make bases equal everywhere"
#endif
#define LIGHTLORA_EXACT_INLINE __attribute__((always_inline)) inline

namespace lightlora::detail::exact {

/// Instruction sets that the loops are compiled for, by the doubles of a register.
enum class Isa { base = 2, avx2 = 4, avx512 = 8 };

/// Those of this machine.
inline std::vector<Isa> available() {
  std::vector<Isa> all{Isa::base};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) all.push_back(Isa::avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
    all.push_back(Isa::avx512);
  }
#endif
  return all;
}

/// N doubles or words in one register. They go by reference: passing them would depend on the
/// instruction set.
template <int N>
struct Simd {
  typedef double Doubles __attribute__((vector_size(8 * N)));
  typedef uint64_t Words __attribute__((vector_size(8 * N)));
};

template <typename To, typename From>
LIGHTLORA_EXACT_INLINE void copy_bits(To& to, const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  std::memcpy(&to, &from, sizeof(To));
}

template <typename Doubles>
LIGHTLORA_EXACT_INLINE void load(Doubles& to, const double* from) {
  std::memcpy(&to, from, sizeof(Doubles));
}

template <typename Doubles>
LIGHTLORA_EXACT_INLINE void store(double* to, const Doubles& from) {
  std::memcpy(to, &from, sizeof(Doubles));
}

/// Partial sums of every sum.
constexpr int kParts = 8;

/// The eight partial sums of a product of rows, in registers; `tail` takes what is left of a row.
template <int N>
struct Sum {
  typename Simd<N>::Doubles registers[kParts / N] = {};

  template <typename Tail>
  LIGHTLORA_EXACT_INLINE double total(const Tail& tail) const {
    LIGHTLORA_EXACT_BODY
    double part[kParts];
    std::memcpy(part, registers, sizeof(part));
    tail(part[0]);
    return ((part[0] + part[4]) + (part[2] + part[6])) +
           ((part[1] + part[5]) + (part[3] + part[7]));
  }
};

template <int N>
LIGHTLORA_EXACT_INLINE double dot(const double* a, const double* b, int64_t n) {
  LIGHTLORA_EXACT_BODY
  using Doubles = typename Simd<N>::Doubles;
  Sum<N> sum;
  int64_t i = 0;
  for (; i + kParts <= n; i += kParts) {
    for (int k = 0; k < kParts / N; ++k) {
      Doubles x, y;
      load(x, a + i + k * N);
      load(y, b + i + k * N);
      sum.registers[k] += x * y;
    }
  }
  return sum.total([&](double& first) {
    LIGHTLORA_EXACT_BODY
    for (; i < n; ++i) first += a[i] * b[i];
  });
}

/// row -= factor * unit; returns the product of what is left with `next`, which may be the row.
template <int N>
LIGHTLORA_EXACT_INLINE double subtract(double* row, double factor, const double* unit,
                                       const double* next, int64_t n) {
  LIGHTLORA_EXACT_BODY
  using Doubles = typename Simd<N>::Doubles;
  Sum<N> sum;
  int64_t i = 0;
  for (; i + kParts <= n; i += kParts) {
    for (int k = 0; k < kParts / N; ++k) {
      Doubles x, u, y;
      load(x, row + i + k * N);
      load(u, unit + i + k * N);
      x = x - factor * u;
      store(row + i + k * N, x);
      load(y, next + i + k * N);
      sum.registers[k] += x * y;
    }
  }
  return sum.total([&](double& first) {
    LIGHTLORA_EXACT_BODY
    for (; i < n; ++i) {
      row[i] -= factor * unit[i];
      first += row[i] * next[i];
    }
  });
}

/// The same for two rows, which do not wait for each other; `factors` become the products.
template <int N>
LIGHTLORA_EXACT_INLINE void subtract_both(double* const (&rows)[2], double (&factors)[2],
                                          const double* unit, const double* next, int64_t n) {
  LIGHTLORA_EXACT_BODY
  using Doubles = typename Simd<N>::Doubles;
  Sum<N> sums[2];
  int64_t i = 0;
  for (; i + kParts <= n; i += kParts) {
    for (int k = 0; k < kParts / N; ++k) {
      Doubles u, y, x0, x1;
      load(u, unit + i + k * N);
      load(y, next + i + k * N);
      load(x0, rows[0] + i + k * N);
      load(x1, rows[1] + i + k * N);
      x0 = x0 - factors[0] * u;
      x1 = x1 - factors[1] * u;
      store(rows[0] + i + k * N, x0);
      store(rows[1] + i + k * N, x1);
      sums[0].registers[k] += x0 * y;
      sums[1].registers[k] += x1 * y;
    }
  }
  for (int r = 0; r < 2; ++r) {
    factors[r] = sums[r].total([&](double& first) {
      LIGHTLORA_EXACT_BODY
      for (int64_t j = i; j < n; ++j) {
        rows[r][j] -= factors[r] * unit[j];
        first += rows[r][j] * next[j];
      }
    });
  }
}

/// Gram-Schmidt over `count` rows of `width` values, twice: the second pass takes the error from
/// about condition * epsilon to epsilon. Row i's second pass and row i + 1's first one read the same
/// rows and are taken together.
template <int N>
LIGHTLORA_EXACT_INLINE void orthonormalise(double* all, int64_t count, int64_t width) {
  LIGHTLORA_EXACT_BODY
  double again = dot<N>(all, all, width);  // of row i with row 0; at the end, with itself
  for (int64_t i = 0; i < count; ++i) {
    double* const row = all + i * width;
    double* const next = i + 1 < count ? row + width : nullptr;
    if (i > 0) {
      const double* last = all + (i - 1) * width;
      double* const rows[2] = {row, next};
      double factors[2] = {again, next ? dot<N>(next, all, width) : 0.0};
      for (const double* unit = all; unit != last; unit += width) {
        if (next) {
          subtract_both<N>(rows, factors, unit, unit + width, width);
        } else {
          factors[0] = subtract<N>(row, factors[0], unit, unit + width, width);
        }
      }
      again = subtract<N>(row, factors[0], last, row, width);
      if (next) subtract<N>(next, factors[1], last, next, width);
    }
    const double length = std::sqrt(again);
    for (int64_t k = 0; k < width; ++k) row[k] = row[k] / length;
    if (next) again = subtract<N>(next, dot<N>(next, row, width), row, all, width);
  }
}

/// Points of the square [-1, 1]^2 that are looked at together, one for each block of random bits.
constexpr int kPoints = 32;

/// Two normal values for each point inside the circle.
struct Points {
  double a[kPoints], b[kPoints], squared_distance[kPoints];

  LIGHTLORA_EXACT_INLINE int inside(int i) const {
    return static_cast<int>(squared_distance[i] < 1.0) & static_cast<int>(squared_distance[i] != 0);
  }
};

/// Ten rounds of Philox 4x32 on the blocks from `block` on: the first word of each (low, high), and
/// the second.
template <int N>
struct Bits {
  static constexpr int kRegisters = kPoints / N;
  typename Simd<N>::Words low[kRegisters] = {}, high[kRegisters] = {};
  typename Simd<N>::Words second_low[kRegisters] = {}, second_high[kRegisters] = {};

  LIGHTLORA_EXACT_INLINE void draw(uint64_t seed, uint64_t stream, uint64_t block) {
    using Words = typename Simd<N>::Words;
    constexpr uint64_t kLow = 0xFFFFFFFFULL;
    Words lane = {};
    for (int i = 0; i < N; ++i) lane[i] = static_cast<uint64_t>(i);
    for (int r = 0; r < kRegisters; ++r) {
      const Words number = lane + (block + static_cast<uint64_t>(r * N));
      low[r] = number & kLow;
      high[r] = number >> 32;
      second_low[r] = Words{} + (stream & kLow);
      second_high[r] = Words{} + (stream >> 32);
    }
    uint64_t key[2] = {seed & kLow, seed >> 32};
    for (int round = 0; round < 10; ++round) {
      for (int r = 0; r < kRegisters; ++r) {
        const Words p0 = low[r] * 0xD2511F53ULL, p1 = second_low[r] * 0xCD9E8D57ULL;
        low[r] = (p1 >> 32) ^ high[r] ^ key[0];
        second_low[r] = (p0 >> 32) ^ second_high[r] ^ key[1];
        high[r] = p1 & kLow;
        second_high[r] = p0 & kLow;
      }
      key[0] = (key[0] + 0x9E3779B9ULL) & kLow;
      key[1] = (key[1] + 0xBB67AE85ULL) & kLow;
    }
  }
};

/// 2 u - 1 for the u strictly between 0 and 1 that has the upper 52 bits of a word.
template <int N>
LIGHTLORA_EXACT_INLINE void to_interval(typename Simd<N>::Doubles& x,
                                        const typename Simd<N>::Words& low,
                                        const typename Simd<N>::Words& high) {
  LIGHTLORA_EXACT_BODY
  const typename Simd<N>::Words bits = ((high << 32 | low) >> 12) | 0x3FF0000000000000ULL;
  copy_bits(x, bits);  // in [1, 2)
  x = 2.0 * ((x - 1.0) + 0x1p-53) - 1.0;
}

/// Natural logarithm of positive normal numbers from + - * / alone, because libm's differs between
/// systems. With x = m * 2^e and m in [sqrt(1/2), sqrt(2)): ln x = e ln 2 + 2 artanh(t),
/// t = (m - 1) / (m + 1).
template <int N>
LIGHTLORA_EXACT_INLINE void natural_log(typename Simd<N>::Doubles& x) {
  LIGHTLORA_EXACT_BODY
  using Doubles = typename Simd<N>::Doubles;
  using Words = typename Simd<N>::Words;
  Words bits;
  copy_bits(bits, x);
  // The mantissa with the exponent of [1/2, 1), and the exponent as a double: 2^52 + its bits.
  const Words mantissa = (bits & 0xFFFFFFFFFFFFFULL) | 0x3FE0000000000000ULL;
  const Words exponent = (bits >> 52) | 0x4330000000000000ULL;
  Doubles m, e;
  copy_bits(m, mantissa);
  copy_bits(e, exponent);
  e = e - (0x1p52 + 1022.0);
  const auto below = m < 0.70710678118654752;
  e = below ? e - 1.0 : e;
  m = below ? m * 2.0 : m;
  const Doubles t = (m - 1.0) / (m + 1.0), t2 = t * t;
  Doubles sum = {};
  for (int k = 27; k >= 1; k -= 2) sum = sum * t2 + 1.0 / k;  // t2 < 0.03: far below one ulp
  x = e * 0.69314718055994531 + 2.0 * (t * sum);
}

/// Standard normal values by Marsaglia's polar method.
template <int N>
LIGHTLORA_EXACT_INLINE void look_at(uint64_t seed, uint64_t stream, uint64_t block, Points& out) {
  LIGHTLORA_EXACT_BODY
  using Doubles = typename Simd<N>::Doubles;
  Bits<N> bits;
  bits.draw(seed, stream, block);
  double square[kPoints];
  for (int r = 0; r < kPoints / N; ++r) {
    Doubles a, b;
    to_interval<N>(a, bits.low[r], bits.high[r]);
    to_interval<N>(b, bits.second_low[r], bits.second_high[r]);
    Doubles s = a * a + b * b;
    store(out.squared_distance + r * N, s);
    const Doubles other = Doubles{} + 0.5;  // any that has a logarithm
    s = s < 1.0 ? s : other;
    s = s != 0.0 ? s : other;
    Doubles log = s;
    natural_log<N>(log);
    store(square + r * N, -2.0 * log / s);
    store(out.a + r * N, a);
    store(out.b + r * N, b);
  }
  for (int i = 0; i < kPoints; ++i) {
    const double length = std::sqrt(square[i]);
    out.a[i] = out.a[i] * length;
    out.b[i] = out.b[i] * length;
  }
}

template <int N>
LIGHTLORA_EXACT_INLINE void fill_normal(uint64_t seed, uint64_t stream, double* values, int64_t n) {
  Points points;
  int64_t done = 0;
  for (uint64_t block = 0; done < n; block += kPoints) {
    look_at<N>(seed, stream, block, points);
    const bool roomy = done + 2 * kPoints + 2 < n;
    for (int i = 0; roomy && i < kPoints; ++i) {  // without a branch that nobody can predict
      values[done] = points.a[i];
      values[done + 1] = points.b[i];
      done += 2 * points.inside(i);
    }
    for (int i = 0; !roomy && i < kPoints && done < n; ++i) {
      if (points.inside(i) == 0) continue;
      values[done++] = points.a[i];
      if (done < n) values[done++] = points.b[i];
    }
  }
}

/// What a basis begins with: (seed, stream) and the rows, (count, width).
struct Rows {
  uint64_t seed, stream;
  double* values;
  int64_t count, width;
  bool orthonormal;
};

template <int N>
LIGHTLORA_EXACT_INLINE void make(const Rows& rows) {
  fill_normal<N>(rows.seed, rows.stream, rows.values, rows.count * rows.width);
  if (rows.orthonormal) orthonormalise<N>(rows.values, rows.count, rows.width);
}

LIGHTLORA_EXACT_FUNCTION inline void make_base(const Rows& rows) { make<2>(rows); }
#if defined(__x86_64__)
LIGHTLORA_EXACT_FUNCTION __attribute__((target("avx2"))) inline void make_avx2(const Rows& rows) {
  make<4>(rows);
}
LIGHTLORA_EXACT_FUNCTION __attribute__((target("avx512f,avx512dq"))) inline void make_avx512(
    const Rows& rows) {
  make<8>(rows);
}
#endif

/// The logarithm of one positive normal number.
LIGHTLORA_EXACT_FUNCTION inline double log_of(double x) {
  Simd<2>::Doubles both = {x, x};
  natural_log<2>(both);
  return both[0];
}

/// The fastest of `available()`.
inline Isa best() {
  static const Isa isa = available().back();
  return isa;
}

/// Fills the rows, with what the machine has or with less.
inline void make(const Rows& rows, Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return make_avx512(rows);
  if (isa == Isa::avx2) return make_avx2(rows);
#endif
  static_cast<void>(isa);
  make_base(rows);
}

}  // namespace lightlora::detail::exact

#undef LIGHTLORA_EXACT_FUNCTION
#undef LIGHTLORA_EXACT_BODY
#undef LIGHTLORA_EXACT_INLINE
