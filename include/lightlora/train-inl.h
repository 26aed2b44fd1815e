// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/train.h>

#include <lightlora/detail/interception.h>
#include <lightlora/train_budget-inl.h>
#include <lightlora/train_starts-inl.h>
#include <lightlora/train_steps-inl.h>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <mutex>
#include <utility>

namespace lightlora {

namespace detail {

// The states of the random generators that a segment may draw from.
class RandomStates {
 public:
  RandomStates(const at::Device& device, bool preserve) {
    if (!preserve) return;
    for (const auto& where : {at::Device(at::kCPU), device}) {
      if (where.is_cpu() && !states_.empty()) continue;
      at::Generator generator = at::globalContext().defaultGenerator(where);
      const std::lock_guard<std::mutex> lock(generator.mutex());
      states_.emplace_back(generator, generator.get_state());
    }
  }
  void restore() {
    for (auto& [generator, state] : states_) {
      const std::lock_guard<std::mutex> lock(generator.mutex());
      generator.set_state(state);
    }
  }

 private:
  std::vector<std::pair<at::Generator, at::Tensor>> states_;
};

// Autocast as it is on a device. The backward pass may run in a thread that has none.
class AutocastState {
 public:
  explicit AutocastState(c10::DeviceType device)
      : device_(device),
        enabled_(at::autocast::is_autocast_enabled(device)),
        dtype_(at::autocast::get_autocast_dtype(device)) {}
  void restore() const {
    at::autocast::set_autocast_enabled(device_, enabled_);
    at::autocast::set_autocast_dtype(device_, dtype_);
  }

 private:
  c10::DeviceType device_;
  bool enabled_;
  at::ScalarType dtype_;
};

// What a segment computes with beside its inputs; `restore` goes back to it.
class Surroundings {
 public:
  Surroundings(const at::Device& device, bool preserve_rng_state)
      : random_(device, preserve_rng_state), autocast_(device.type()) {}
  void restore() {
    random_.restore();
    autocast_.restore();
  }

 private:
  RandomStates random_;
  AutocastState autocast_;
};

// Goes back to the surroundings of its construction, whatever happens in between.
class KeepSurroundings {
 public:
  KeepSurroundings(const at::Device& device, bool preserve_rng_state)
      : before_(device, preserve_rng_state) {}
  ~KeepSurroundings() { before_.restore(); }
  KeepSurroundings(const KeepSurroundings&) = delete;
  KeepSurroundings& operator=(const KeepSurroundings&) = delete;

 private:
  Surroundings before_;
};

struct SegmentCall : torch::CustomClassHolder {
  SegmentCall(Segment segment, const at::Device& device, bool preserve)
      : run(std::move(segment)),
        preserve_rng_state(preserve),
        surroundings(device, preserve_rng_state),
        active(current_frame()) {}
  Segment run;
  bool preserve_rng_state;
  Surroundings surroundings;
  std::shared_ptr<const ActiveFrame> active;  // adapters
};

struct Recompute : torch::autograd::Function<Recompute> {
  // `anchor` makes the result part of the graph where no input has a gradient but an adapter inside
  // does.
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& /*anchor*/,
                            const c10::intrusive_ptr<SegmentCall>& call, at::TensorList inputs) {
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    ctx->save_for_backward(inputs.vec());
    return call->run(inputs.vec());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto call =
        c10::static_intrusive_pointer_cast<SegmentCall>(ctx->saved_data["call"].toCapsule());
    std::vector<at::Tensor> inputs;
    for (const auto& saved : ctx->get_saved_variables()) {
      inputs.push_back(saved.detach().set_requires_grad(saved.requires_grad()));
    }
    at::Tensor output;
    {
      const KeepSurroundings after(grads[0].device(), call->preserve_rng_state);
      const FrameScope adapters(call->active);
      call->surroundings.restore();
      const at::AutoGradMode record(true);
      output = call->run(inputs);
    }
    if (output.requires_grad()) torch::autograd::backward({output}, {grads[0]});
    // One for the anchor, one for the call, which is no tensor, then those of the inputs.
    torch::autograd::variable_list result{at::Tensor(), at::Tensor()};
    for (const auto& input : inputs) {
      result.push_back(input.requires_grad() ? input.grad() : at::Tensor());
    }
    return result;
  }
};

}  // namespace detail

LIGHTLORA_INLINE at::Tensor recompute(Segment segment, const std::vector<at::Tensor>& inputs,
                                      bool preserve_rng_state) {
  std::vector<at::Tensor> defined;  // autograd takes no others
  std::vector<bool> is_given;
  for (const auto& input : inputs) {
    is_given.push_back(input.defined());
    if (input.defined()) defined.push_back(input);
  }
  TORCH_CHECK_VALUE(!defined.empty(), "expected an input, got none");
  auto with_all = [segment = std::move(segment), is_given](const std::vector<at::Tensor>& values) {
    std::vector<at::Tensor> all;
    std::size_t next = 0;
    for (const bool given : is_given) all.push_back(given ? values[next++] : at::Tensor());
    return segment(all);
  };
  const at::Device device = defined.front().device();
  const auto anchor = at::empty({0}, at::TensorOptions().device(device)).requires_grad_();
  return detail::Recompute::apply(
      anchor,
      c10::make_intrusive<detail::SegmentCall>(std::move(with_all), device, preserve_rng_state),
      at::TensorList(defined));
}

LIGHTLORA_INLINE ParameterBank::ParameterBank(const std::vector<at::Tensor>& parameters) {
  TORCH_CHECK_VALUE(!parameters.empty(), "expected something to train, ", "got nothing");
  int64_t count = 0;
  for (const auto& parameter : parameters) {
    TORCH_CHECK(
        parameter.dtype() == parameters[0].dtype() && parameter.device() == parameters[0].device(),
        "expected parameters of one dtype and device, got ", parameters[0].toString(), " and ",
        parameter.toString());
    count += parameter.numel();
  }
  const at::NoGradGuard no_grad;
  values_ = at::empty({count}, parameters[0].options().requires_grad(false));
  gradients_ = at::zeros_like(values_);
  int64_t start = 0;
  for (at::Tensor parameter : parameters) {
    const auto view = [&](const at::Tensor& flat) {
      return flat.narrow(0, start, parameter.numel()).view(parameter.sizes());
    };
    view(values_).copy_(parameter);
    parameter.set_data(view(values_));
    parameter.unsafeGetTensorImpl()->set_version_counter(
        values_.unsafeGetTensorImpl()->version_counter());
    parameter.mutable_grad() = view(gradients_);
    start += parameter.numel();
  }
}

LIGHTLORA_INLINE at::Tensor ParameterBank::clip(double max_norm) {
  const at::Tensor norm = gradients_.norm();
  if (max_norm > 0) gradients_.mul_((max_norm / (norm + 1e-6)).clamp_max(1.0));
  return norm;
}

}  // namespace lightlora
