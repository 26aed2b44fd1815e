// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/accumulate.h>
#include <lightlora/adapter.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <cmath>
#include <string>

namespace lightlora {

/// Adapter that changes the layer's inputs and its outputs, each by a low-rank pair.
/// Equation: delta = scale * (weight a1 a2 + b1 b2); of a convolution a1 a2 acts on the channels
/// Paper:    Chavan et al. 2023, "GLoRA", arXiv:2306.07967, in the form of LyCORIS
/// Shapes:   trained a1 (channels, rank), a2 (rank, channels), b1 (out, rank), b2 (rank, in), with
///           in = channels * kernel size
/// Dtypes:   fp32, whatever the base is cast to
/// Errors:   c10::ValueError if rank < 1, or `init` is not the default
/// Starts as LyCORIS' does: a1 and b1 uniform as a Linear's weight, a2 and b2 zero.
class GLoRAAdapterImpl : public AdapterModule<GLoRAAdapterImpl> {
 public:
  static constexpr const char* kVariant = "glora";

  GLoRAAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose a2 and b2 always start at zero");
    reset();
  }

  void reset_parameters() override {
    torch::NoGradGuard no_grad;
    torch::nn::init::kaiming_uniform_(a1, std::sqrt(5));
    torch::nn::init::kaiming_uniform_(b1, std::sqrt(5));
    a2.zero_();
    b2.zero_();
  }

  torch::Tensor added(const torch::Tensor& weight) const override {
    const int64_t channels = a1.size(0);
    // The channels last: (out, kernel size, channels).
    const torch::Tensor wide =
        weight.to(a1.scalar_type()).reshape({layer_.out, channels, -1}).transpose(1, 2);
    const torch::Tensor inputs = wide.matmul(a1).matmul(a2).transpose(1, 2);
    return (inputs.reshape(weight.sizes()) + b1.mm(b2)) * scale();
  }

  // Each of the two parts is a product of two trained matrices.
  void rescale(double factor) override {
    torch::NoGradGuard no_grad;
    for (auto* tensor : {&a1, &a2, &b1, &b2}) tensor->mul_(std::sqrt(factor));
  }
  bool is_up_side(const std::string& name) const override { return name == "a1" || name == "b1"; }

  torch::Tensor a1;  ///< (channels, rank), trained
  torch::Tensor a2;  ///< (rank, channels), trained
  torch::Tensor b1;  ///< (out, rank), trained
  torch::Tensor b2;  ///< (rank, in), trained

 protected:
  void register_tensors() override {
    const int64_t r = options_.rank();
    const int64_t channels = layer_.in / c10::multiply_integers(layer_.kernel);
    a1 = register_parameter("a1", torch::empty({channels, r}));
    a2 = register_parameter("a2", torch::empty({r, channels}));
    b1 = register_parameter("b1", torch::empty({layer_.out, r}));
    b2 = register_parameter("b2", torch::empty({r, layer_.in}));
  }

 private:
  bool factorises() const override { return false; }
  bool reads_weight() const override { return true; }
};

/// A layer of type `Layer` with a GLoRA adapter.
template <typename Layer>
using GLoRA = AdaptedLayer<Layer, GLoRAAdapterImpl>;

}  // namespace lightlora
