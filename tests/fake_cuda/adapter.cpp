// SPDX-License-Identifier: Apache-2.0
#include "adapter.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/record_function.h>

#include <mutex>
#include <optional>

#include "memory.h"
#include "recording.h"
#include "support/fake_cuda/generator.h"
#include "support/fake_cuda/operators.h"
#include "twins.h"

namespace fake_cuda {
namespace {

// Calls f(tensor) for each tensor in a value; f returns what takes its place.
template <typename F>
void for_each_tensor(c10::IValue& value, const F& f) {
  if (value.isTensor()) {
    value = f(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(f(tensor));
    value = std::move(list);
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
      list.push_back(tensor ? std::optional<at::Tensor>(f(*tensor)) : std::nullopt);
    }
    value = std::move(list);
  }
}

// One call of an operator.
class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op),
        stack_(stack),
        name_(op.operator_name().name.substr(op.operator_name().name.rfind(':') + 1)),
        arguments_(op.schema().arguments().size()),
        begin_(stack->size() - arguments_) {}

  void run() {
    find_device();
    for (size_t i = 0; i < arguments_; ++i) convert_argument(i);
    count();
    execute();
    const size_t results = op_.schema().returns().size();
    for (size_t i = stack_->size() - results; i < stack_->size(); ++i) {
      for_each_tensor((*stack_)[i], [&](const at::Tensor& t) { return twins_.back(t, *device_); });
    }
    twins_.take_over_resizes();
  }

 private:
  c10::IValue& argument(size_t i) { return (*stack_)[begin_ + i]; }
  const std::string& argument_name(size_t i) const { return op_.schema().arguments()[i].name(); }

  void find_device() {
    for (size_t i = 0; i < arguments_ && !device_; ++i) {
      if (argument(i).isDevice() && argument(i).toDevice().is_cuda()) {
        const auto device = argument(i).toDevice();
        device_ = c10::Device(c10::kCUDA, device.has_index() ? device.index() : current_device());
      }
      for_each_tensor(argument(i), [&](const at::Tensor& t) {
        if (!device_ && t.defined() && t.is_cuda()) device_ = t.device();
        return t;
      });
    }
    if (!device_) device_ = c10::Device(c10::kCUDA, current_device());
  }

  // The rule of LibTorch's own CUDA kernels, in their words.
  void check(const at::Tensor& tensor, size_t i) const {
    if (!tensor.defined() || tensor.device() == *device_) return;
    if (tensor.is_cpu() && tensor.dim() == 0 && takes_cpu_scalar(name_)) return;
    if (tensor.is_cpu() && argument_name(i) == "indices" && takes_cpu_indices(name_)) return;
    TORCH_CHECK(false, "Expected all tensors to be on the same device, but got ", argument_name(i),
                " is on ", tensor.device(), ", different from other tensors on ", *device_,
                " (when checking argument in method wrapper_CUDA_", name_, ")");
  }

  void convert_argument(size_t i) {
    auto& value = argument(i);
    if (value.isDevice()) {
      value = c10::Device(c10::kCPU);
    } else if (op_.schema().arguments()[i].type()->str().rfind("Generator", 0) == 0) {
      convert_generator(value);
    } else {
      for_each_tensor(value, [&](const at::Tensor& tensor) {
        check(tensor, i);
        if (argument_name(i) == "indices") note_indices(tensor);
        return twins_.of(tensor);
      });
    }
  }

  void convert_generator(c10::IValue& value) {
    at::Generator generator =
        value.isNone() ? default_generator(device_->index()) : value.toGenerator();
    TORCH_CHECK(generator.device().is_cuda(),
                "Expected a 'cuda' device type for generator but found '",
                generator.device().type(), "'");
    // A GPU would not notice, and draw from a sequence that is another device's.
    TORCH_CHECK(generator.device() == *device_, "fake CUDA: '", name_,
                "': expected a generator of ", *device_, ", got one of ", generator.device());
    const std::lock_guard<std::mutex> lock(generator.mutex());
    value = generator.get<DeviceGenerator>()->draw();
    has_generator_ = true;
  }

  // Indices on the CPU are uploaded, and a mask's size is read back.
  void note_indices(const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (tensor.is_cpu()) indices_wait_ = true;
    if (tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte)
      indices_wait_ = true;
  }

  void count() const {
    count_kernel(op_.operator_name());
    if (indices_wait_ || waits_for_result(name_)) count_wait(name_);
  }

  void execute() {
    const at::DisableRecordFunctionGuard unseen;  // a GPU's kernel calls no operators
    const at::AutoDispatchBelowAutograd below;
    const auto cpu = c10::DispatchKeySet(c10::DispatchKey::CPU);
    if (has_generator_ || !op_.hasTag(at::Tag::nondeterministic_seeded)) {
      op_.redispatchBoxed(cpu, stack_);
      return;
    }
    // It takes the CPU's default generator without asking: lend it the device's numbers.
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    auto generator = at::detail::getDefaultCPUGenerator();
    const auto before = generator.get_state();
    generator.set_state(
        default_generator(device_->index()).get<DeviceGenerator>()->draw().get_state());
    op_.redispatchBoxed(cpu, stack_);
    generator.set_state(before);
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
  std::string name_;
  size_t arguments_, begin_;
  std::optional<c10::Device> device_;
  bool has_generator_ = false;
  bool indices_wait_ = false;
  Twins twins_;
};

// Runs a call and notes how to run it again on the same tensors.
void record_call(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto n = static_cast<std::ptrdiff_t>(schema.arguments().size());
  const auto results = static_cast<std::ptrdiff_t>(schema.returns().size());
  torch::jit::Stack arguments(stack->end() - n, stack->end());
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (!alias || !alias->isWrite()) continue;
    for_each_tensor(arguments[i], [](const at::Tensor& tensor) {
      note_write(tensor);
      return tensor;
    });
  }
  Call(op, stack).run();
  const torch::jit::Stack recorded(stack->end() - results, stack->end());
  note_kernel([op, arguments, recorded] {
    torch::jit::Stack again = arguments;
    Call(op, &again).run();
    for (size_t i = 0; i < recorded.size(); ++i) write_back(recorded[i], again[i]);
  });
}

}  // namespace

void run_on_twins(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  if (is_recording()) {
    record_call(op, stack);
    return;
  }
  Call(op, stack).run();
}

}  // namespace fake_cuda
