// SPDX-License-Identifier: Apache-2.0
// The thin products of every instruction set against sums in double, row by row.
#include <lightlora/detail/thin_kernels_bf16.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "support.h"

#if LIGHTLORA_THIN_KERNELS

namespace {

namespace thin = lightlora::detail::thin;
using Bf16 = thin::Half16;

// Above it bf16 goes to LibTorch's products (`usable`), and these kernels round once more.
constexpr int64_t kLargestRank = 4;

// Rows with a gap behind each, which must stay as it is.
struct GappedRows {
  static constexpr int64_t kGap = 3;
  int64_t rows, width, stride;
  std::vector<Bf16> values;

  GappedRows(int64_t rows, int64_t width, std::mt19937& random)
      : rows(rows), width(width), stride(width + kGap), values(rows * stride) {
    std::normal_distribution<float> normal;
    for (auto& value : values) thin::store_one(&value, normal(random));
  }
  double at(int64_t row, int64_t column) const {
    return thin::load_one(&values[row * stride + column]);
  }
  thin::Rows<const Bf16> read() const { return {values.data(), stride, width}; }
  thin::Rows<Bf16> write() { return {values.data(), stride, width}; }
};

std::vector<float> factor(int64_t rank, int64_t width, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(rank * width);
  for (auto& value : values) value = normal(random);
  return values;
}

// x factor^T in double: (rows, rank)
std::vector<double> dots_of(const GappedRows& x, const std::vector<float>& factor, int64_t rank) {
  std::vector<double> h(x.rows * rank);
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t r = 0; r < rank; ++r) {
      for (int64_t k = 0; k < x.width; ++k) {
        h[n * rank + r] += x.at(n, k) * factor[r * x.width + k];
      }
    }
  }
  return h;
}

// The largest error of y = before + h factor in parts of the terms' size, which bf16 rounds to 2^-8.
double error_of_sum(const GappedRows& y, const GappedRows& before, const std::vector<double>& h,
                    const std::vector<float>& factor, int64_t rank) {
  double largest = 0;
  for (int64_t n = 0; n < y.rows; ++n) {
    for (int64_t m = 0; m < y.stride; ++m) {
      double exact = before.at(n, m), size = std::abs(exact);
      for (int64_t r = 0; r < rank && m < y.width; ++r) {
        const double term = h[n * rank + r] * factor[r * y.width + m];
        exact += term;
        size += std::abs(term);
      }
      const double error = std::abs(y.at(n, m) - exact);
      largest = std::max(largest, m < y.width ? error / size : error > 0 ? 1.0 : 0.0);
    }
  }
  return largest;
}

// The same of gradient = start + scale h^T x.
double error_of_gradient(const std::vector<float>& gradient, float start, const GappedRows& x,
                         const std::vector<double>& h, int64_t rank, double scale) {
  double largest = 0;
  for (int64_t r = 0; r < rank; ++r) {
    for (int64_t k = 0; k < x.width; ++k) {
      double exact = start, size = start;
      for (int64_t n = 0; n < x.rows; ++n) {
        const double term = scale * h[n * rank + r] * x.at(n, k);
        exact += term;
        size += std::abs(term);
      }
      largest = std::max(largest, std::abs(gradient[r * x.width + k] - exact) / size);
    }
  }
  return largest;
}

template <typename Run>
void check(int64_t rows, int64_t in, int64_t out, int64_t rank, const Run& run) {
  INFO(rows << "x" << in << "x" << out << ", rank " << rank);
  std::mt19937 random(7);
  const GappedRows x(rows, in, random), dy(rows, out, random);
  GappedRows y(rows, out, random), dx(rows, in, random);
  const GappedRows y_before = y, dx_before = dx;
  const auto down = factor(rank, in, random), up_t = factor(rank, out, random);
  constexpr float kStart = 0.5F, kScale = 0.75F;
  std::vector<float> grad_down(rank * in, kStart), grad_up_t(rank * out, kStart);
  run(thin::Forward<Bf16>{x.read(), y.write(), down.data(), up_t.data(), rank}, rows);
  run(thin::Backward<Bf16>{x.read(), dy.read(), dx.write(), down.data(), up_t.data(), rank, kScale,
                           grad_down.data(), grad_up_t.data()},
      rows);
  const auto h = dots_of(x, down, rank), g = dots_of(dy, up_t, rank);
  constexpr double kRounding = 0x1.01p-8, kSums = 2e-5;
  CHECK(error_of_sum(y, y_before, h, up_t, rank) <= kRounding);
  CHECK(error_of_sum(dx, dx_before, g, down, rank) <= kRounding);
  CHECK(error_of_gradient(grad_down, kStart, x, g, rank, 1.0) <= kSums);
  CHECK(error_of_gradient(grad_up_t, kStart, dy, h, rank, kScale) <= kSums);
  // Without dx and without gradients nothing is written through null.
  run(
      thin::Backward<Bf16>{
          x.read(), dy.read(), {}, down.data(), up_t.data(), rank, kScale, nullptr, nullptr},
      rows);
}

template <typename Run>
void check_shapes(int64_t largest_rank, const Run& run) {
  for (int64_t rank = 1; rank <= largest_rank; ++rank) {
    for (const int64_t rows : {1, 4, 13}) {
      check(rows, /*in=*/70, /*out=*/37, rank, run);
      check(rows, /*in=*/1, /*out=*/16, rank, run);
      check(rows, /*in=*/320, /*out=*/15, rank, run);
    }
  }
}

}  // namespace

TEST_CASE("the thin kernels of every instruction set give the sums of double in bf16",
          "[thin_kernels]") {
  for (const auto isa : {thin::Isa::avx2, thin::Isa::avx512}) {
    if (static_cast<int>(isa) > static_cast<int>(thin::best_isa())) continue;
    INFO("instruction set " << static_cast<int>(isa));
    check_shapes(kLargestRank,
                 [&](const auto& call, int64_t rows) { thin::run(call, 0, rows, isa); });
  }
}

#if LIGHTLORA_THIN_BF16
TEST_CASE("the thin kernels for AVX-512 BF16 give the sums of double", "[thin_kernels]") {
  if (!thin::has_bf16()) {
    WARN("this processor has no AVX-512 BF16: not tested");
    return;
  }
  check_shapes(thin::bf16::kColumns,
               [](const auto& call, int64_t rows) { CHECK(thin::bf16::run_ranks(call, 0, rows)); });

  // What is not finite stays so, and of a larger rank nothing is done.
  const Bf16 one{0x3F80};
  Bf16 y[3] = {{0x7F80}, {0x7FC1}, {0xFF80}};
  const float down = 1, up_t[3] = {1, 1, 1};
  const thin::Forward<Bf16> call{{&one, 1, 1}, {y, 3, 3}, &down, up_t, /*rank=*/1};
  CHECK(thin::bf16::run_ranks(call, 0, 1));
  CHECK(y[0].bits == 0x7F80);
  CHECK(std::isnan(thin::load_one(&y[1])));
  CHECK(y[2].bits == 0xFF80);
  thin::Forward<Bf16> larger = call;
  larger.rank = thin::bf16::kColumns + 1;
  CHECK_FALSE(thin::bf16::run_ranks(larger, 0, 1));
}
#endif

#else

// An unoptimised build and another processor take LibTorch's products; there is nothing to compare.
TEST_CASE("this build has no thin kernels", "[thin_kernels]") {
  WARN("the thin kernels are for optimised builds on x86-64 alone: not tested");
  CHECK(LIGHTLORA_THIN_KERNELS == 0);
}

#endif
