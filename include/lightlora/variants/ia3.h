// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/accumulate.h>
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
/// Shapes:   trained l (out, 1), or (1, in) with `scale_input`; starts at one. A convolution has
///           one number for each channel, whatever its kernel
/// Dtypes:   fp32, whatever the base is cast to
/// Errors:   c10::ValueError if `init` is not the default, or DoRA is asked for
/// Differs from PEFT: a bias is not rescaled (the paper's layers have none), and the vectors of
///           several adapters add up instead of multiplying. `rank` is not used.
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

  /// The numbers tell whether they are one for each channel: those that scale a convolution's inputs
  /// once were one for each place of the kernel.
  static LayerInfo layer_of(LayerInfo layer, const TrainedValues& trained) {
    const auto found = trained.find("l");
    if (found == trained.end() || found->second.dim() != 2) return layer;
    const int64_t rows = found->second.size(0), columns = found->second.size(1);
    const bool by_place = c10::multiply_integers(layer.kernel) > 1;
    if (rows == 1 && columns == layer.in && by_place) layer.kernel.clear();
    const bool by_channel = columns == 1 && rows > 0 && rows < layer.out;
    if (by_channel && layer.out % rows == 0) layer.out_kernel = {layer.out / rows};
    return layer;
  }

  void reset_parameters() override { torch::nn::init::ones_(l); }

  torch::Tensor added(const torch::Tensor& weight) const override {
    return over_kernel(l - 1) * weight.to(l.scalar_type()) * scale();
  }

  void rescale(double factor) override {
    torch::NoGradGuard no_grad;
    l.sub_(1).mul_(factor).add_(1);
  }

  torch::Tensor l;  ///< (out, 1) or (1, in), by channel, trained

 protected:
  void register_tensors() override {
    const auto& kernel = own().scale_input() ? layer_.kernel : layer_.out_kernel;
    taps_ = c10::multiply_integers(kernel);
    l = register_parameter("l", own().scale_input() ? torch::empty({1, layer_.in / taps_})
                                                    : torch::empty({layer_.out / taps_, 1}));
  }

 private:
  bool factorises() const override { return false; }
  bool reads_weight() const override { return true; }

  // One value for each channel and place of the kernel.
  torch::Tensor over_kernel(const torch::Tensor& values) const {
    return taps_ == 1 ? values : values.repeat_interleave(taps_, own().scale_input() ? 1 : 0);
  }

  int64_t taps_ = 1;  // places of the kernel on the scaled side
};

/// A layer of type `Layer` with an (IA)3 adapter.
template <typename Layer>
using IA3 = AdaptedLayer<Layer, IA3AdapterImpl>;

}  // namespace lightlora
