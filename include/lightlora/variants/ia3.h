// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <tuple>

namespace lightlora {

/// Options of (IA)3.
struct IA3Options : VariantOptions<IA3Options> {
  using VariantOptions::VariantOptions;

  /// Scales the layer's inputs, as the paper does for the second feed-forward layer, instead of its
  /// outputs. Default: false.
  TORCH_ARG(bool, scale_input) = false;

 public:
  static auto fields() {
    return std::make_tuple(option("scale_input", &IA3Options::scale_input_,
                                  "Scale the inputs instead of the outputs"));
  }
};

/// Adapter that rescales a layer's outputs, or its inputs, by one trained number each.
/// Equation: delta = scale * (l - 1) (.) weight, so that y = (l (.) weight) x + bias at scale 1
/// Paper:    Liu et al. 2022, "(IA)^3", arXiv:2205.05638, section 3.3
/// Shapes:   trained l (out, 1), or (1, in) with `scale_input`; starts at one
/// Dtypes:   fp32, whatever the base is cast to
/// Errors:   c10::ValueError if `init` is not the default, or DoRA is asked for
/// Differs from PEFT: a bias is not rescaled (the paper's layers have none), and the vectors of
/// several adapters add up instead of multiplying. `rank` is not used.
class IA3AdapterImpl : public AdapterModule<IA3AdapterImpl, IA3Options> {
 public:
  static constexpr const char* kVariant = "ia3";

  IA3AdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("which always starts at one");
    TORCH_CHECK_VALUE(
        !options_.dora(), "'", layer_.name,
        "': DoRA cannot be combined with the ia3 variant: both scale the rows of the ",
        "weight; hint: take another variant with DoRA");
    reset();
  }

  void reset_parameters() override { torch::nn::init::ones_(l); }

  torch::Tensor added(const torch::Tensor& weight) const override {
    return (l - 1) * weight.to(l.scalar_type()) * scale();
  }

  void rescale(double factor) override {
    torch::NoGradGuard no_grad;
    l.sub_(1).mul_(factor).add_(1);
  }

  torch::Tensor l;  ///< (out, 1) or (1, in), trained

 protected:
  void register_tensors() override {
    l = register_parameter(
        "l", own().scale_input() ? torch::empty({1, layer_.in}) : torch::empty({layer_.out, 1}));
  }

 private:
  bool factorises() const override { return false; }
  bool reads_weight() const override { return true; }
};

/// A layer of type `Layer` with an (IA)3 adapter.
template <typename Layer>
using IA3 = AdaptedLayer<Layer, IA3AdapterImpl>;

}  // namespace lightlora
