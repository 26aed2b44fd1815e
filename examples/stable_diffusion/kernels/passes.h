// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>

#include "kernels/vectors.h"

// What passes over a CPU's tensors have in common: when they apply, threads, and the choice of the
// instruction set. They read fp32 or bf16, compute in fp32 and go over memory once, where LibTorch's
// operators write and read a tensor between each other.

namespace sd::passes {

/// Whether a pass can read this tensor: on a CPU, fp32 or bf16, with something in it, and nothing
/// that watches or replaces the operators over it, as derivatives forward do.
inline bool readable(const at::Tensor& x) {
  if (best_isa() == Isa::none || !x.defined() || !x.device().is_cpu()) return false;
  const auto dtype = x.scalar_type();
  return (dtype == at::kFloat || dtype == at::kBFloat16) && x.layout() == at::kStrided &&
         x.numel() > 0 && !at::isTensorSubclassLike(x) && !x._fw_grad(/*level=*/0).defined();
}

/// call(pointer type's example) with float or Half16, as the tensor's dtype says.
template <typename Call>
void with_type_of(const at::Tensor& x, const Call& call) {
  x.scalar_type() == at::kFloat ? call(float()) : call(Half16());
}

template <typename T>
const T* data_of(const at::Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <typename T>
T* mutable_data_of(const at::Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

/// work(first, last) over [0, count) on LibTorch's threads; `elements` are all numbers that it
/// reads. Through TensorIterator, because at::parallel_for compiles to a plain loop in programs
/// that are built without OpenMP.
template <typename Work>
void over(int64_t count, int64_t elements, const Work& work) {
  constexpr int64_t kGrain = 32768;
  const int64_t grain = std::max<int64_t>(1, kGrain * count / std::max<int64_t>(1, elements));
  if (count <= grain || at::get_num_threads() == 1 || at::in_parallel_region()) {
    return work(int64_t{0}, count);
  }
  const at::Tensor places = at::empty({count}, at::kByte);
  const char* const first = static_cast<const char*>(places.const_data_ptr());
  auto iterator = at::TensorIteratorConfig()
                      .check_all_same_dtype(false)
                      .resize_outputs(false)
                      .declare_static_shape({count})
                      .add_output(places)
                      .build();
  iterator.for_each(
      [&](char** data, const int64_t*, int64_t size, int64_t /*outer: there is one dimension*/) {
        const int64_t begin = data[0] - first;
        work(begin, begin + size);
      },
      grain);
}

#if SD_VECTORS

template <typename Work>
__attribute__((target("avx512f,avx512bw,fma"),
               noinline)) void run_with_avx512(const Work& work, int64_t begin, int64_t end) {
  work.template run<Shape<16>>(begin, end);
}

template <typename Work>
__attribute__((target("avx2,fma"), noinline)) void run_with_avx2(const Work& work, int64_t begin,
                                                                 int64_t end) {
  work.template run<Shape<8>>(begin, end);
}

/// work.run<Shape>(first, last) over [0, count) for this machine's instruction set, in threads.
template <typename Work>
void run(int64_t count, int64_t elements, const Work& work) {
  over(count, elements, [&](int64_t begin, int64_t end) {
    best_isa() == Isa::avx512 ? run_with_avx512(work, begin, end) : run_with_avx2(work, begin, end);
  });
}

#endif

}  // namespace sd::passes
