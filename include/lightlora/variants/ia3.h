// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/layers.h>
#include <lightlora/adapter.h>
#include <torch/nn/init.h>

namespace lightlora {

/// Adapter that rescales a layer's outputs, or its inputs, by one trained number each.
/// Equation: delta = scale * (l - 1) (.) weight, so that y = (l (.) weight) x + bias at scale 1
/// Paper:    Liu et al. 2022, "(IA)^3", arXiv:2205.05638, section 3.3
/// Shapes:   trained l (out, 1), or (1, in) with `scale_input`; starts at one
/// Dtypes:   fp32, whatever the base is cast to
/// Errors:   c10::ValueError if `init` is not the default, or DoRA is asked for
/// Differs from PEFT: a bias is not rescaled (the paper's layers have none), and the vectors of
/// several adapters add up instead of multiplying. `rank` is not used.
class IA3AdapterImpl : public AdapterModule<IA3AdapterImpl> {
 public:
  /// Its name in files and flags.
  static constexpr const char* kVariant = "ia3";

  /// An adapter at its start. Errors: as the class says
  IA3AdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("which always starts at one");
    TORCH_CHECK_VALUE(!options_.dora(), "lightlora: '", layer_.name,
                      "': expected no DoRA with the ia3 variant, which already scales the rows of ",
                      "the weight, got it; hint: take another variant with DoRA");
    reset();
  }

  void reset_parameters() override { torch::nn::init::ones_(l); }

  bool has_factors() const override { return false; }
  bool needs_weight() const override { return true; }
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
    l = register_parameter("l", options_.scale_input() ? torch::empty({1, layer_.in})
                                                       : torch::empty({layer_.out, 1}));
  }
};

/// A layer of type `Layer` with an (IA)3 adapter.
template <typename Layer>
using IA3 = AdaptedLayer<Layer, IA3AdapterImpl>;

/// Its number among the variants of the library.
template <>
struct LibraryVariant<6> {
  using Impl = IA3AdapterImpl;  ///< its module class
};

}  // namespace lightlora
