// SPDX-License-Identifier: Apache-2.0
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>

#include <optional>
#include <unordered_map>

#include "support/fake_cuda/device.h"
#include "support/fake_cuda/dry_state.h"
#include "support/fake_cuda/fake_cuda.h"
#include "support/fake_cuda/operators.h"

namespace fake_cuda {
namespace {

using at::Tensor;

// Calls f(tensor) for each tensor in a value; f returns what takes its place.
template <typename F>
void replace_tensors(c10::IValue& value, const F& f) {
  if (value.isTensor()) {
    value = f(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorVector()) list.push_back(f(tensor));
    value = std::move(list);
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector()) {
      list.push_back(tensor ? std::optional<Tensor>(f(*tensor)) : std::nullopt);
    }
    value = std::move(list);
  }
}

// One call of an operator. Its kernel for shapes alone (LibTorch's Meta kernel) runs on tensors
// without data; where there is none, the CPU's runs on zeros, of which the system keeps no copies
// until they are written.
class DryCall {
 public:
  DryCall(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op),
        stack_(stack),
        arguments_(op.schema().arguments().size()),
        begin_(stack->size() - arguments_),
        meta_(op.hasKernelForDispatchKey(c10::DispatchKey::Meta)) {}

  void run() {
    find_device();
    for (size_t i = 0; i < arguments_; ++i) convert(i);
    count();
    {
      const at::DisableRecordFunctionGuard unseen;  // a GPU's kernel calls no operators
      const at::AutoDispatchBelowAutograd below;
      op_.redispatchBoxed(
          c10::DispatchKeySet(meta_ ? c10::DispatchKey::Meta : c10::DispatchKey::CPU), stack_);
    }
    const DeviceScope scope(device_);
    const size_t results = op_.schema().returns().size();
    for (size_t i = stack_->size() - results; i < stack_->size(); ++i) {
      replace_tensors((*stack_)[i], [&](const Tensor& t) { return back(t); });
    }
    for (auto& [impl, pair] : twins_) take_over(pair);
  }

 private:
  struct Pair {
    Tensor original, twin;
  };

  c10::IValue& argument(size_t i) { return (*stack_)[begin_ + i]; }

  void find_device() {
    device_ = current_device();
    for (size_t i = arguments_; i-- > 0;) {
      if (argument(i).isDevice() && argument(i).toDevice().has_index()) {
        device_ = argument(i).toDevice().index();
      }
      replace_tensors(argument(i), [&](const Tensor& t) {
        if (t.defined() && t.is_cuda()) device_ = t.device().index();
        return t;
      });
    }
  }

  void convert(size_t i) {
    auto& value = argument(i);
    if (value.isDevice()) {
      value = c10::Device(meta_ ? c10::kMeta : c10::kCPU);
    } else if (op_.schema().arguments()[i].type()->str().rfind("Generator", 0) == 0) {
      value = c10::IValue();
    } else {
      const bool indices = op_.schema().arguments()[i].name() == "indices";
      replace_tensors(value, [&](const Tensor& t) {
        if (indices && t.defined() && (t.is_cpu() || t.scalar_type() == at::kBool)) waits_ = true;
        return twin_of(t);
      });
    }
  }

  Tensor twin_of(const Tensor& tensor) {
    if (!tensor.defined() || (tensor.is_cpu() && !meta_)) return tensor;
    auto& pair = twins_[tensor.unsafeGetTensorImpl()];
    if (!pair.twin.defined()) {
      pair.original = tensor;
      const at::DisableRecordFunctionGuard unseen;
      const at::AutoDispatchBelowAutograd below;
      if (meta_) {
        pair.twin =
            at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type());
      } else {
        const auto size = at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), 1);
        pair.twin = at::zeros({static_cast<int64_t>(size)}, tensor.dtype())
                        .as_strided(tensor.sizes(), tensor.strides());
      }
    }
    return pair.twin;
  }

  Tensor back(const Tensor& result) {
    if (!result.defined() || result.is_cuda()) return result;
    for (const auto& [impl, pair] : twins_) {
      if (pair.twin.is_same(result)) return pair.original;
      if (!pair.original.is_cuda() || !pair.twin.storage().is_alias_of(result.storage())) continue;
      auto view = at::detail::make_tensor<c10::TensorImpl>(
          c10::Storage(pair.original.storage()), c10::DispatchKeySet(c10::DispatchKey::CUDA),
          result.dtype());
      view.unsafeGetTensorImpl()->set_sizes_and_strides(
          result.sizes(), result.strides(),
          pair.original.storage_offset() + result.storage_offset());
      return view;
    }
    return at::detail::empty_strided_generic(result.sizes(), result.strides(), &device_allocator(),
                                             c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                             result.scalar_type());
  }

  // Results that were given have the size now that the kernel gave them.
  static void take_over(Pair& pair) {
    if (!pair.original.is_cuda()) return;
    const Tensor& twin = pair.twin;
    if (pair.original.sizes() == twin.sizes() && pair.original.strides() == twin.strides()) return;
    auto* impl = pair.original.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(twin.sizes(), twin.strides());
    const auto bytes =
        at::detail::computeStorageNbytes(twin.sizes(), twin.strides(), twin.itemsize(),
                                         static_cast<size_t>(pair.original.storage_offset()));
    auto* storage = pair.original.storage().unsafeGetStorageImpl();
    if (bytes <= storage->nbytes()) return;
    storage->set_data_ptr_noswap(device_allocator().allocate(bytes));
    storage->set_nbytes(bytes);
  }

  void count() {
    const auto& full = op_.operator_name();
    const std::string name = full.name.substr(full.name.rfind(':') + 1);
    count_kernel(full);
    if (waits_ || waits_for_result(name)) count_wait(name);
    const auto size = [&](size_t i, int64_t dim) {
      return static_cast<double>(argument(i).toTensor().size(dim));
    };
    const auto product = [&](size_t a, size_t b) {
      return 2.0 * static_cast<double>(argument(a).toTensor().numel()) * size(b, -1);
    };
    if (name == "mm" || name == "bmm") count_operations(product(0, 1));
    if (name == "addmm" || name == "baddbmm") count_operations(product(1, 2));
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
  size_t arguments_, begin_;
  bool meta_;
  bool waits_ = false;
  c10::DeviceIndex device_ = 0;
  std::unordered_map<const c10::TensorImpl*, Pair> twins_;  // by the original
};

}  // namespace

void run_on_shapes(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  DryCall(op, stack).run();
}

}  // namespace fake_cuda
