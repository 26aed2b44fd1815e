// SPDX-License-Identifier: Apache-2.0
// CPU tensors on the bytes of device tensors, for the time of one kernel.
#pragma once
#include <ATen/core/Tensor.h>

#include <unordered_map>

namespace fake_cuda {

/// Twins of one operator call. Two device tensors of one storage get twins of one storage, and a
/// tensor that comes twice gets the same twin, so that kernels see the aliasing that there is.
class Twins {
 public:
  /// The CPU tensor with the bytes, sizes and strides of a device tensor; others come back as they
  /// are.
  at::Tensor of(const at::Tensor& tensor);

  /// What a kernel returned, as a tensor of `device`: the original of a twin, a view of an
  /// original's storage, or else a copy.
  at::Tensor back(const at::Tensor& result, c10::Device device);

  /// Gives originals the sizes and the storage that a kernel gave their twins.
  void take_over_resizes();

 private:
  struct StorageTwin {
    c10::Storage original, twin;
    void* bytes = nullptr;  // where the twin began
  };
  struct TensorTwin {
    at::Tensor original, twin;
  };

  c10::Storage storage_of(const c10::Storage& original);
  void take_over(StorageTwin& pair);

  std::unordered_map<const c10::StorageImpl*, StorageTwin> storages_;  // by the original
  std::unordered_map<const c10::TensorImpl*, TensorTwin> tensors_;     // by the original
  std::unordered_map<const c10::StorageImpl*, c10::Storage>
      originals_;  // by the twin or the result
};

/// The twin alone, for a kernel that reads.
at::Tensor twin_of(const at::Tensor& tensor);

}  // namespace fake_cuda
