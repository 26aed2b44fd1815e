// SPDX-License-Identifier: Apache-2.0
#include "support/fake_cuda/tensor_kernels.h"

#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>

#include "support/fake_cuda/device.h"
#include "support/fake_cuda/operators.h"

namespace fake_cuda {
namespace {

using at::IntArrayRef;
using at::Tensor;
template <typename T>
using Maybe = std::optional<T>;

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

Tensor as_strided(const Tensor& self, IntArrayRef sizes, IntArrayRef strides,
                  Maybe<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, sizes, strides, offset);
}

void record_stream(Tensor&, c10::Stream) {}

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

}  // namespace

void register_for_all(torch::Library& library, torch::CppFunction (*kernel)(),
                      const std::set<std::string>& except) {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) continue;
    const std::string base = name.name.substr(6);
    const std::string full = name.overload_name.empty() ? base : base + "." + name.overload_name;
    const auto op = dispatcher.findOp(name);
    if (!op || !op->hasSchema() || own_kernels().count(full) || !exists_on_cuda(base)) continue;
    if (except.count(full)) continue;
    if (!op->hasKernelForDispatchKey(c10::DispatchKey::CPU)) continue;
    library.impl(full.c_str(), kernel());
  }
  for (const auto& name : composite_operators()) {
    if (!except.count(name)) library.impl(name.c_str(), kernel());
  }
}

void register_tensor_kernels(torch::Library& library) {
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
}

}  // namespace fake_cuda
