// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <lightlora/detail/thin_kernels_bf16.h>

#include <algorithm>
#include <cstring>
#include <utility>

// The kernels of thin_kernels.h over tensors: dtypes, strides, threads.

namespace lightlora::detail::thin {

/// Whether the kernels take factors of this rank and dtype: fp32 or bf16 on a CPU, of a rank at which
/// they are the faster. (bf16 products run on matrix units where there are any, so that the library
/// catches up earlier.)
inline bool usable(const at::Tensor& rows, int64_t rank, at::ScalarType factors) {
  if (best_isa() == Isa::none || !rows.device().is_cpu()) return false;
  const auto dtype = rows.scalar_type();
  const bool fits = dtype == at::kFloat ? rank <= kMaxRank : dtype == at::kBFloat16 && rank <= 4;
  return fits && rank > 0 && factors == at::kFloat;
}

/// The same for factors that are there.
inline bool usable(const at::Tensor& rows, const at::Tensor& down, const at::Tensor& up) {
  return up.scalar_type() == down.scalar_type() && usable(rows, down.size(0), down.scalar_type());
}

/// scale * matrix^T, contiguous; for small fp32 matrices of any strides.
inline at::Tensor transposed(const at::Tensor& matrix, double scale) {
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  at::Tensor result = at::empty({columns, rows}, matrix.options());
  const float* from = matrix.const_data_ptr<float>();
  const int64_t row = matrix.stride(0), column = matrix.stride(1);
  float* to = result.mutable_data_ptr<float>();
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) {
      *to++ = static_cast<float>(scale) * from[r * row + c * column];
    }
  }
  return result;
}

/// The rows themselves, or a copy if a row is not dense.
inline at::Tensor dense_rows(const at::Tensor& rows) {
  return rows.stride(1) == 1 || rows.size(1) == 1 ? rows : rows.contiguous();
}

#if LIGHTLORA_THIN_KERNELS

template <typename T>
Rows<T> rows_of(const at::Tensor& matrix) {
  if (!matrix.defined()) return {};
  using Data = std::remove_const_t<T>;
  return {static_cast<T*>(static_cast<Data*>(matrix.data_ptr())), matrix.stride(0), matrix.size(1)};
}

// work(first row, last row, thread) over all rows, on LibTorch's threads. Through TensorIterator,
// because at::parallel_for compiles to a plain loop in programs that are built without OpenMP.
template <typename Work>
void over_rows(int64_t rows, int64_t elements, const Work& work) {
  constexpr int64_t kBlock = 16, kGrain = 32768;
  const int64_t blocks = (rows + kBlock - 1) / kBlock;
  const int64_t grain = std::max<int64_t>(1, kGrain * blocks / std::max<int64_t>(1, elements));
  if (blocks <= grain || at::get_num_threads() == 1 || at::in_parallel_region()) {
    return work(0, rows, 0);
  }
  const at::Tensor places = at::empty({blocks}, at::kByte);
  const char* const first = static_cast<const char*>(places.const_data_ptr());
  auto iterator = at::TensorIteratorConfig()
                      .check_all_same_dtype(false)
                      .resize_outputs(false)
                      .declare_static_shape({blocks})
                      .add_output(places)
                      .build();
  iterator.for_each(
      [&](char** data, const int64_t*, int64_t count, int64_t /*outer: there is one dimension*/) {
        const int64_t begin = (data[0] - first) * kBlock;
        work(begin, std::min(rows, begin + count * kBlock), at::get_thread_num());
      },
      grain);
}

template <typename T>
void forward_as(const at::Tensor& y, const at::Tensor& x, const at::Tensor& down,
                const at::Tensor& up_t) {
  const Forward<T> call{rows_of<const T>(x), rows_of<T>(y), down.const_data_ptr<float>(),
                        up_t.const_data_ptr<float>(), down.size(0)};
  over_rows(x.size(0), x.numel() + y.numel(),
            [&](int64_t begin, int64_t end, int64_t) { run(call, begin, end); });
}

template <typename T>
void backward_as(const at::Tensor& x, const at::Tensor& dy, const at::Tensor& dx,
                 const at::Tensor& down, const at::Tensor& up_t, double scale,
                 const at::Tensor& grad_down, const at::Tensor& grad_up_t) {
  const auto sums = [](const at::Tensor& t) {
    return t.defined() ? t.mutable_data_ptr<float>() : nullptr;
  };
  const Backward<T> call{rows_of<const T>(x),
                         rows_of<const T>(dy),
                         rows_of<T>(dx),
                         down.const_data_ptr<float>(),
                         up_t.const_data_ptr<float>(),
                         down.size(0),
                         static_cast<float>(scale),
                         sums(grad_down),
                         sums(grad_up_t)};
  over_rows(x.size(0), x.numel() + dy.numel(), [&](int64_t begin, int64_t end, int64_t thread) {
    Backward<T> part = call;
    if (part.grad_down) part.grad_down += thread * down.numel();
    if (part.grad_up_t) part.grad_up_t += thread * up_t.numel();
    run(part, begin, end);
  });
}

/// y[b] += (x[b] down[set[b]]^T) up_t[set[b]] in one pass over x and y, which are contiguous.
/// Shapes: y (B, N, out), x (B, N, in), set (B) int64, down (sets, r, in), up_t (sets, r, out)
template <typename T>
void add_low_rank_by_set_as(const at::Tensor& y, const at::Tensor& x, const at::Tensor& set,
                            const at::Tensor& down, const at::Tensor& up_t) {
  const int64_t* const sets = set.const_data_ptr<int64_t>();
  const int64_t rows = x.size(1), rank = down.size(1), in = x.size(2), out = y.size(2);
  const auto* const xs = static_cast<const T*>(x.const_data_ptr());
  auto* const ys = static_cast<T*>(y.mutable_data_ptr());
  const float *const downs = down.const_data_ptr<float>(), *const ups =
                                                               up_t.const_data_ptr<float>();
  over_rows(x.size(0), x.numel() + y.numel(), [&](int64_t begin, int64_t end, int64_t /*thread*/) {
    for (int64_t b = begin; b < end; ++b) {
      const Forward<T> call{{xs + b * rows * in, in, in},
                            {ys + b * rows * out, out, out},
                            downs + sets[b] * rank * in,
                            ups + sets[b] * rank * out,
                            rank};
      run(call, 0, rows);
    }
  });
}

/// The same in fp32 or bf16, the factors in fp32.
inline void add_low_rank_by_set_(const at::Tensor& y, const at::Tensor& x, const at::Tensor& set,
                                 const at::Tensor& down, const at::Tensor& up_t) {
  RECORD_FUNCTION("lightlora::add_low_rank_by_set_", c10::ArrayRef<c10::IValue>{});
  x.scalar_type() == at::kFloat ? add_low_rank_by_set_as<float>(y, x, set, down, up_t)
                                : add_low_rank_by_set_as<Half16>(y, x, set, down, up_t);
}

/// y += scale (x down^T) up^T in one pass over x and y.
/// Shapes: y (N, out), x (N, in), down (r, in), up (out, r)
inline void add_low_rank_(const at::Tensor& y, const at::Tensor& x, const at::Tensor& down,
                          const at::Tensor& up, double scale) {
  RECORD_FUNCTION("lightlora::add_low_rank_", c10::ArrayRef<c10::IValue>{});
  const at::Tensor d = down.contiguous();
  const at::Tensor u = transposed(up, scale);
  x.scalar_type() == at::kFloat ? forward_as<float>(y, x, d, u) : forward_as<Half16>(y, x, d, u);
}

// `parts` matrices like this one, below each other. Operators that fill and select cost a layer of few
// rows more than the sums themselves.
inline at::Tensor zero_sums(const at::Tensor& like, int64_t parts) {
  at::Tensor sums = at::empty({parts * like.size(0), like.size(1)}, like.options());
  std::memset(sums.mutable_data_ptr(), 0, sums.nbytes());
  return sums;
}

/// Gradients of both factors, and dx += scale (dy up) down, in one pass over x, dy and dx.
/// Shapes: x (N, in), dy (N, out), dx (N, in) or undefined; result (r, in), (out, r), each
///         undefined if it is not wanted
inline std::pair<at::Tensor, at::Tensor> low_rank_gradients(
    const at::Tensor& x, const at::Tensor& dy, const at::Tensor& dx, const at::Tensor& down,
    const at::Tensor& up, double scale, bool want_down, bool want_up) {
  at::Tensor grad_down, grad_up_t;
  RECORD_FUNCTION("lightlora::low_rank_gradients", c10::ArrayRef<c10::IValue>{});
  const at::Tensor d = down.contiguous();
  const at::Tensor u = transposed(up, scale);
  // One sum for each thread, so that the order of adding up depends on their number alone.
  const int64_t parts = at::get_num_threads();
  if (want_down) grad_down = zero_sums(d, parts);
  if (want_up) grad_up_t = zero_sums(u, parts);
  x.scalar_type() == at::kFloat ? backward_as<float>(x, dy, dx, d, u, scale, grad_down, grad_up_t)
                                : backward_as<Half16>(x, dy, dx, d, u, scale, grad_down, grad_up_t);
  const auto total = [&](const at::Tensor& sums) {
    return parts == 1 ? sums : sums.view({parts, -1, sums.size(1)}).sum(0);
  };
  if (want_down) grad_down = total(grad_down);
  if (want_up) return {grad_down, transposed(total(grad_up_t), 1.0)};
  return {grad_down, at::Tensor()};
}

#else  // `usable` says no

inline void add_low_rank_by_set_(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                 const at::Tensor&, const at::Tensor&) {
  TORCH_INTERNAL_ASSERT(false);
}
inline void add_low_rank_(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                          const at::Tensor&, double) {
  TORCH_INTERNAL_ASSERT(false);
}
inline std::pair<at::Tensor, at::Tensor> low_rank_gradients(const at::Tensor&, const at::Tensor&,
                                                            const at::Tensor&, const at::Tensor&,
                                                            const at::Tensor&, double, bool, bool) {
  TORCH_INTERNAL_ASSERT(false);
}

#endif

}  // namespace lightlora::detail::thin
