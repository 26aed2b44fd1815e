// SPDX-License-Identifier: Apache-2.0
// The kernels that are the device's own, and the registration of all.
#include <ATen/EmptyTensor.h>
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
#include <set>

#include "adapter.h"
#include "memory.h"
#include "operators.h"
#include "recording.h"
#include "twins.h"

namespace fake_cuda {
namespace {

using at::IntArrayRef;
using at::Tensor;
template <typename T>
using Maybe = std::optional<T>;

// --- memory
// ---------------------------------------------------------------------------------------------

c10::DeviceIndex index_of(const Maybe<c10::Device>& device) {
  return device && device->has_index() ? device->index() : current_device();
}

Tensor empty(IntArrayRef sizes, Maybe<at::ScalarType> dtype, Maybe<at::Layout>,
             Maybe<c10::Device> device, Maybe<bool> pin, Maybe<at::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  const DeviceScope scope(index_of(device));
  return at::detail::empty_generic(sizes, &device_allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   at::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef sizes, IntArrayRef strides, Maybe<at::ScalarType> dtype,
                     Maybe<at::Layout>, Maybe<c10::Device> device, Maybe<bool>) {
  const DeviceScope scope(index_of(device));
  return at::detail::empty_strided_generic(sizes, strides, &device_allocator(),
                                           c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           at::dtype_or_default(dtype));
}

Tensor& set_storage(Tensor& self, c10::Storage source, int64_t offset, IntArrayRef sizes,
                    IntArrayRef strides) {
  TORCH_CHECK(source.device() == self.device(), "set_: expected a storage on ", self.device(),
              ", got ", source.device());
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  if (!strides.empty() || sizes.empty()) {
    impl->set_sizes_and_strides(sizes, strides, offset);
  } else {
    impl->set_storage_offset(offset);
    impl->set_sizes_contiguous(sizes);
  }
  return self;
}

Tensor& set_whole_storage(Tensor& self, c10::Storage source) {
  const int64_t n = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage(self, std::move(source), 0, {n}, {});
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(),
                     source.strides());
}

Tensor& set_nothing(Tensor& self) {
  const DeviceScope scope(self.device().index());
  return set_storage(
      self,
      c10::Storage(c10::Storage::use_byte_size_t(), 0, device_allocator().allocate(0),
                   &device_allocator(), /*resizable=*/true),
      0, {0}, {});
}

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

// --- registration
// ---------------------------------------------------------------------------------------

const std::set<std::string>& own_kernels() {
  static const std::set<std::string> names{"empty.memory_format",
                                           "empty_strided",
                                           "as_strided",
                                           "view",
                                           "_reshape_alias",
                                           "copy_",
                                           "_local_scalar_dense",
                                           "set_",
                                           "set_.source_Storage",
                                           "set_.source_Tensor",
                                           "set_.source_Storage_storage_offset",
                                           "record_stream"};
  return names;
}

void register_twins_for_all(torch::Library& library) {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) continue;
    const std::string base = name.name.substr(6);
    const std::string full = name.overload_name.empty() ? base : base + "." + name.overload_name;
    const auto op = dispatcher.findOp(name);
    if (!op || !op->hasSchema() || own_kernels().count(full) || !exists_on_cuda(base)) continue;
    if (!op->hasKernelForDispatchKey(c10::DispatchKey::CPU)) continue;
    library.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_twins>());
  }
  for (const auto& name : composite_operators()) {
    library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_twins>());
  }
}

Tensor as_strided(const Tensor& self, IntArrayRef sizes, IntArrayRef strides,
                  Maybe<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, sizes, strides, offset);
}

void record_stream(Tensor&, c10::Stream) {}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  register_twins_for_all(library);
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("as_strided", &as_strided);
  library.impl("view", &at::native::view);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("set_", &set_nothing);
  library.impl("set_.source_Storage", &set_whole_storage);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("set_.source_Tensor", &set_tensor);
  library.impl("record_stream", &record_stream);
  library.impl("copy_", &copy);
  library.impl("_local_scalar_dense", &read_scalar);
  library.impl("_scaled_dot_product_flash_attention", &flash_attention);
  library.impl("_scaled_dot_product_flash_attention_backward", &flash_attention_backward);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose_attention);
}

}  // namespace
}  // namespace fake_cuda
