// SPDX-License-Identifier: Apache-2.0
// The kernels that are the device's own, and the registration of all.
#include <ATen/NativeFunctions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <functional>

#include "adapter.h"
#include "memory.h"
#include "recording.h"
#include "support/fake_cuda/operators.h"
#include "support/fake_cuda/tensor_kernels.h"
#include "twins.h"

namespace fake_cuda {
namespace {

using at::IntArrayRef;
using at::Tensor;
template <typename T>
using Maybe = std::optional<T>;

// --- copies
// ---------------------------------------------------------------------------------------------

// The host goes on at once only where both ends of the copy stay put: pinned memory, and nothing to
// convert on the way.
bool copy_waits(const Tensor& to, const Tensor& from, bool non_blocking) {
  const Tensor& host = to.is_cuda() ? from : to;
  return !non_blocking || !is_pinned(host.storage().data());
}

Tensor& copy(Tensor& self, const Tensor& source, bool non_blocking) {
  if (is_recording()) {
    // A pinned copy could be recorded, and would read the same host memory in every replay.
    if (!self.is_cuda() || !source.is_cuda()) refuse_while_recording("copy_ from or to the host");
    note_write(self);
    note_kernel([self, source]() mutable { copy(self, source, /*non_blocking=*/true); });
  }
  count_kernel({"aten::copy_", ""});
  if (self.numel() == 0) return self;
  if (!source.is_cuda()) count_upload();
  if (!self.is_cuda()) count_download();
  if (self.is_cuda() != source.is_cuda() && copy_waits(self, source, non_blocking)) {
    count_wait(self.is_cuda() ? "copy_ to the device" : "copy_ to the host");
  }
  const at::DisableRecordFunctionGuard unseen;
  const at::AutoDispatchBelowAutograd below;
  Twins twins;
  twins.of(self).copy_(twins.of(source));
  return self;
}

at::Scalar read_scalar(const Tensor& self) {
  count_kernel({"aten::_local_scalar_dense", ""});
  count_wait("_local_scalar_dense");
  return at::native::_local_scalar_dense_cpu(twin_of(self));
}

// --- attention
// ------------------------------------------------------------------------------------------

// A GPU has a fused kernel where the CPU has one, except for masks.
int64_t choose_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                         const Maybe<Tensor>& mask, double dropout, bool causal,
                         Maybe<double> scale, bool grouped) {
  Twins twins;
  const int64_t choice = at::_fused_sdp_choice(twins.of(query), twins.of(key), twins.of(value),
                                               mask ? Maybe<Tensor>(twins.of(*mask)) : std::nullopt,
                                               dropout, causal, scale, grouped);
  const auto math = static_cast<int64_t>(at::SDPBackend::math);
  return mask && mask->defined() ? math : choice;
}

// Calls `compute` and, in a recording, notes how to bring its results to the same tensors again.
template <typename Results>
Results noted(const std::function<Results()>& compute) {
  Results results = compute();
  note_kernel([compute, results] {
    const Results again = compute();
    const c10::IValue to(results), from(again);
    const auto& a = to.toTupleRef().elements();
    const auto& b = from.toTupleRef().elements();
    for (size_t i = 0; i < a.size(); ++i) write_back(a[i], b[i]);
  });
  return results;
}

using Attention =
    std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor>;

using Outputs = std::tuple<Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

Attention flash_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                          double dropout, bool causal, bool, Maybe<double> scale) {
  const auto [output, logsumexp] = noted<Outputs>([=] {
    count_kernel({"aten::_scaled_dot_product_flash_attention", ""});
    const at::DisableRecordFunctionGuard unseen;
    Twins twins;
    const auto [o, l] = at::_scaled_dot_product_flash_attention_for_cpu(
        twins.of(query), twins.of(key), twins.of(value), dropout, causal, std::nullopt, scale);
    return Outputs{twins.back(o, query.device()), twins.back(l, query.device())};
  });
  const auto state = at::empty({2}, query.options().dtype(at::kLong));
  return {output,          logsumexp, Tensor(), Tensor(), query.sym_size(2),
          key.sym_size(2), state,     state,    Tensor()};
}

Gradients flash_attention_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                                   const Tensor& value, const Tensor& out, const Tensor& logsumexp,
                                   const Tensor&, const Tensor&, c10::SymInt, c10::SymInt,
                                   double dropout, bool causal, const Tensor&, const Tensor&,
                                   Maybe<double> scale) {
  return noted<Gradients>([=] {
    count_kernel({"aten::_scaled_dot_product_flash_attention_backward", ""});
    const at::DisableRecordFunctionGuard unseen;
    Twins twins;
    const auto [q, k, v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        twins.of(grad), twins.of(query), twins.of(key), twins.of(value), twins.of(out),
        twins.of(logsumexp), dropout, causal, std::nullopt, scale);
    const auto device = query.device();
    return Gradients{twins.back(q, device), twins.back(k, device), twins.back(v, device)};
  });
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  register_for_all(library,
                   [] { return torch::CppFunction::makeFromBoxedFunction<&run_on_twins>(); });
  register_tensor_kernels(library);
  library.impl("copy_", &copy);
  library.impl("_local_scalar_dense", &read_scalar);
  library.impl("_scaled_dot_product_flash_attention", &flash_attention);
  library.impl("_scaled_dot_product_flash_attention_backward", &flash_attention_backward);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose_attention);
}

}  // namespace
}  // namespace fake_cuda
