// SPDX-License-Identifier: Apache-2.0
#include "stable_diffusion/gradient_checkpointing.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <mutex>
#include <utility>

namespace sd {

namespace {

thread_local bool checkpointing_is_on = false;

using Compute = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

// The states of the random generators that a segment may draw from.
struct RandomStates {
  explicit RandomStates(const at::Device& device) {
    for (const auto& where : {at::Device(at::kCPU), device}) {
      if (!where.is_cpu() || states.empty()) {
        states.emplace_back(generator(where), state_of(generator(where)));
      }
    }
  }
  static at::Generator generator(const at::Device& device) {
    return at::globalContext().defaultGenerator(device);
  }
  static at::Tensor state_of(at::Generator generator) {
    const std::lock_guard<std::mutex> lock(generator.mutex());
    return generator.get_state();
  }
  void restore() {
    for (auto& [generator, state] : states) {
      const std::lock_guard<std::mutex> lock(generator.mutex());
      generator.set_state(state);
    }
  }
  std::vector<std::pair<at::Generator, at::Tensor>> states;
};

// What the backward pass needs beside the tensors.
struct SegmentCall : torch::CustomClassHolder {
  SegmentCall(Compute compute_, const at::Device& device)
      : compute(std::move(compute_)), random(device) {}
  Compute compute;
  RandomStates random;
};

struct Recompute : torch::autograd::Function<Recompute> {
  // `anchor` makes the result part of the graph where no input has a gradient but an adapter inside
  // does.
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& anchor,
                            const c10::intrusive_ptr<SegmentCall>& call, at::TensorList inputs) {
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    (void)anchor;
    ctx->save_for_backward(inputs.vec());
    return call->compute(inputs.vec());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    auto call = c10::static_intrusive_pointer_cast<SegmentCall>(
        ctx->saved_data["call"].toCapsule());
    std::vector<at::Tensor> inputs;
    for (const auto& saved : ctx->get_saved_variables()) {
      inputs.push_back(saved.detach().set_requires_grad(saved.requires_grad()));
    }
    RandomStates now(grads[0].device());
    call->random.restore();
    at::Tensor output;
    {
      const at::AutoGradMode record(true);
      output = call->compute(inputs);
    }
    now.restore();
    if (output.requires_grad()) torch::autograd::backward({output}, {grads[0]});
    // One for the anchor, one for the call, which is no tensor, then those of the inputs.
    torch::autograd::variable_list result{at::Tensor(), at::Tensor()};
    for (const auto& input : inputs) {
      result.push_back(input.requires_grad() ? input.grad() : at::Tensor());
    }
    return result;
  }
};

}  // namespace

GradientCheckpointing::GradientCheckpointing(bool on)
    : before_(std::exchange(checkpointing_is_on, on)) {}

GradientCheckpointing::~GradientCheckpointing() { checkpointing_is_on = before_; }

bool GradientCheckpointing::enabled() { return checkpointing_is_on && at::GradMode::is_enabled(); }

at::Tensor recomputed(Compute compute, const std::vector<at::Tensor>& inputs) {
  std::vector<at::Tensor> defined;  // autograd takes no others
  std::vector<bool> is_given;
  for (const auto& input : inputs) {
    is_given.push_back(input.defined());
    if (input.defined()) defined.push_back(input);
  }
  auto plain = [compute = std::move(compute), is_given](const std::vector<at::Tensor>& values) {
    const GradientCheckpointing off(false);  // what is computed within is no segment of its own
    std::vector<at::Tensor> all;
    size_t next = 0;
    for (const bool given : is_given) all.push_back(given ? values[next++] : at::Tensor());
    return compute(all);
  };
  const at::Device device = defined.front().device();
  auto anchor = at::empty({0}, at::TensorOptions().device(device)).requires_grad_();
  return Recompute::apply(anchor, c10::make_intrusive<SegmentCall>(std::move(plain), device),
                          at::TensorList(defined));
}

}  // namespace sd
