// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/patch.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <functional>
#include <utility>

namespace lightlora {

namespace detail {

// What the backward pass needs to run the segment again.
struct Segment : torch::CustomClassHolder {
  Segment(std::function<torch::Tensor(const torch::Tensor&)> run_it, Patched patched)
      : run(std::move(run_it)), lora(std::move(patched)), active(lora->is_active()) {}
  std::function<torch::Tensor(const torch::Tensor&)> run;
  Patched lora;
  bool active;
};

struct CheckpointFunction : torch::autograd::Function<CheckpointFunction> {
  // `trained` is never read: autograd builds a graph only if some input requires a gradient.
  static torch::Tensor forward(torch::autograd::AutogradContext* ctx, const torch::Tensor& x,
                               const torch::Tensor& /*trained*/,
                               const c10::intrusive_ptr<Segment>& segment) {
    const auto device = x.device().type();
    ctx->save_for_backward({x});
    ctx->saved_data["segment"] = c10::IValue::make_capsule(segment);
    ctx->saved_data["autocast"] = at::autocast::is_autocast_enabled(device);
    ctx->saved_data["dtype"] = static_cast<int64_t>(at::autocast::get_autocast_dtype(device));
    ctx->saved_data["random"] = generator(x).get_state();
    torch::NoGradGuard no_grad;
    return segment->run(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto segment =
        c10::static_intrusive_pointer_cast<Segment>(ctx->saved_data["segment"].toCapsule());
    const torch::Tensor saved = ctx->get_saved_variables()[0];
    const bool wanted = ctx->needs_input_grad(0);
    const torch::Tensor x = saved.detach().set_requires_grad(wanted);
    at::Generator random = generator(x);
    const torch::Tensor state_now = random.get_state();
    random.set_state(ctx->saved_data["random"].toTensor());
    {
      const Autocast as_before(x.device().type(), ctx->saved_data["autocast"].toBool(),
                               static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt()));
      const torch::AutoGradMode with_gradients(true);
      std::optional<Activation> on;
      if (segment->active) on.emplace(segment->lora->activate());
      const torch::Tensor y = segment->run(x);
      random.set_state(state_now);
      if (y.requires_grad()) torch::autograd::backward({y}, {grads[0]});
    }
    return {wanted ? x.grad() : torch::Tensor(), torch::Tensor(), torch::Tensor()};
  }

 private:
  // Sets autocast for a scope: the backward pass may run in a thread that has none.
  class Autocast {
   public:
    Autocast(c10::DeviceType device, bool enabled, at::ScalarType dtype)
        : device_(device),
          enabled_(at::autocast::is_autocast_enabled(device)),
          dtype_(at::autocast::get_autocast_dtype(device)) {
      set(enabled, dtype);
    }
    ~Autocast() { set(enabled_, dtype_); }
    Autocast(const Autocast&) = delete;
    Autocast& operator=(const Autocast&) = delete;

   private:
    void set(bool enabled, at::ScalarType dtype) const {
      at::autocast::set_autocast_enabled(device_, enabled);
      at::autocast::set_autocast_dtype(device_, dtype);
    }
    c10::DeviceType device_;
    bool enabled_;
    at::ScalarType dtype_;
  };

  static at::Generator generator(const torch::Tensor& x) {
    return at::globalContext().defaultGenerator(x.device());
  }
};

}  // namespace detail

/// Gradient checkpointing: runs a part of a model without keeping its activations, and runs it again
/// in the backward pass. The adapters are active then as they were in the forward pass, which they
/// would not be with a checkpoint that knows nothing of them: a plain layer would be back at its base
/// weight, and its adapter would silently get no gradient.
/// `segment` takes one tensor and gives one; it must compute the same when run again (the random
/// state and autocast are restored). Call it inside an activation. While that activation is alive
/// during backward too, nothing is bound again and the second run costs the segment alone.
/// Shapes: x and the result as `segment` has them
template <typename Function>
torch::Tensor checkpoint(const Patched& lora, Function segment, const torch::Tensor& x) {
  const auto parameters = lora->parameters();
  const torch::Tensor trained = parameters.empty() ? torch::Tensor(x) : parameters[0];
  return detail::CheckpointFunction::apply(
      x, trained, c10::make_intrusive<detail::Segment>(std::move(segment), lora));
}

}  // namespace lightlora
