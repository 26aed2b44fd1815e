// SPDX-License-Identifier: Apache-2.0
#include "twins.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>

#include <cstring>

#include "memory.h"

namespace fake_cuda {
namespace {

bool on_device(const at::Tensor& tensor) { return tensor.defined() && tensor.is_cuda(); }

at::Tensor tensor_on(const c10::Storage& storage, c10::DispatchKey key, const at::Tensor& like) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage),
                                                       c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(),
                                                    like.storage_offset());
  return made;
}

// Fails on released memory and on sizes that reach beyond the storage, as a kernel's access would.
void* open(const at::Tensor& tensor) {
  const auto& storage = tensor.storage();
  const size_t end = at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(),
                                                      tensor.itemsize(), tensor.storage_offset());
  if (end == 0 || tensor.numel() == 0) return nullptr;
  TORCH_CHECK(end <= storage.nbytes(),
              "fake CUDA: an illegal memory access was encountered: a tensor of sizes ",
              tensor.sizes(), " and strides ", tensor.strides(), " ends at byte ", end,
              " of a storage of ", storage.nbytes());
  return touchable(storage.data(), storage.nbytes());
}

c10::Storage storage_with_bytes(void* bytes, size_t size) {
  return {c10::Storage::use_byte_size_t(), size, c10::DataPtr(bytes, c10::kCPU),
          c10::GetCPUAllocator(), /*resizable=*/true};
}

c10::Storage copied(const c10::Storage& storage, c10::Device device) {
  const DeviceScope scope(device.index());
  const size_t size = storage.nbytes();
  c10::Storage copy(c10::Storage::use_byte_size_t(), size, device_allocator().allocate(size),
                    &device_allocator(), /*resizable=*/true);
  if (size) std::memcpy(touchable(copy.data(), size), storage.data(), size);
  return copy;
}

bool same_shape(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.strides() == b.strides() &&
         a.storage_offset() == b.storage_offset();
}

}  // namespace

c10::Storage Twins::storage_of(const c10::Storage& original) {
  auto& pair = storages_[original.unsafeGetStorageImpl()];
  if (!pair.twin) {
    const size_t size = original.nbytes();
    pair.original = original;
    pair.bytes = size && original.data() ? touchable(original.data(), size) : nullptr;
    pair.twin = storage_with_bytes(pair.bytes, size);
    originals_[pair.twin.unsafeGetStorageImpl()] = original;
  }
  return pair.twin;
}

at::Tensor Twins::of(const at::Tensor& tensor) {
  if (!on_device(tensor)) return tensor;
  auto& pair = tensors_[tensor.unsafeGetTensorImpl()];
  if (!pair.twin.defined()) {
    open(tensor);
    pair.original = tensor;
    pair.twin = tensor_on(storage_of(tensor.storage()), c10::DispatchKey::CPU, tensor);
  }
  return pair.twin;
}

at::Tensor Twins::back(const at::Tensor& result, c10::Device device) {
  if (!result.defined() || result.is_cuda()) return result;
  for (const auto& [impl, pair] : tensors_) {
    if (pair.twin.is_same(result)) return pair.original;
  }
  auto& storage = originals_[result.storage().unsafeGetStorageImpl()];
  if (!storage) storage = copied(result.storage(), device);
  return tensor_on(storage, c10::DispatchKey::CUDA, result);
}

void Twins::take_over(StorageTwin& pair) {
  if (pair.twin.data() == pair.bytes && pair.twin.nbytes() == pair.original.nbytes()) return;
  auto moved = copied(pair.twin, pair.original.device());
  auto* impl = pair.original.unsafeGetStorageImpl();
  impl->set_nbytes(moved.nbytes());
  impl->set_data_ptr_noswap(moved.set_data_ptr(c10::DataPtr()));
}

void Twins::take_over_resizes() {
  for (auto& [impl, pair] : storages_) take_over(pair);
  for (auto& [impl, pair] : tensors_) {
    if (same_shape(pair.original, pair.twin)) continue;
    pair.original.unsafeGetTensorImpl()->set_sizes_and_strides(
        pair.twin.sizes(), pair.twin.strides(), pair.twin.storage_offset());
  }
}

at::Tensor twin_of(const at::Tensor& tensor) { return Twins().of(tensor); }

}  // namespace fake_cuda
