// SPDX-License-Identifier: Apache-2.0
// A variant of the stranger's own, in a file of his own.
#pragma once

#include <lightlora/layers.h>
#include <lightlora/variants/variants.h>

#include <tuple>
#include <utility>

/// An option that no other variant has.
struct OuterOptions : lightlora::VariantOptions<OuterOptions> {
  using VariantOptions::VariantOptions;

  /// Standard deviation of the mask. Default: 1.
  TORCH_ARG(double, spread) = 1;

 public:
  static auto fields() {
    return std::make_tuple(
        lightlora::option("spread", &OuterOptions::spread_, "Spread of the mask"));
  }
};

/// Adapter whose delta is the outer product of two vectors.
/// Equation: delta = scale * column * (row (.) mask)
/// Shapes:   trained row (1, in), column (out, 1); frozen mask (in), drawn anew for each adapter
class OuterAdapterImpl : public lightlora::AdapterModule<OuterAdapterImpl, OuterOptions> {
 public:
  static constexpr const char* kVariant = "outer";

  OuterAdapterImpl(lightlora::LoRAOptions options, lightlora::LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    reset();
  }

  void reset_parameters() override {
    const torch::NoGradGuard no_grad;
    row.normal_();
    column.zero_();
  }
  int64_t rank() const override { return 1; }
  lightlora::Factors factors() const override { return {row * mask, column}; }

  torch::Tensor row, column, mask;

 protected:
  void register_tensors() override {
    row = register_parameter("row", torch::empty({1, layer_.in}));
    column = register_parameter("column", torch::empty({layer_.out, 1}));
    mask = register_buffer("mask", torch::randn({layer_.in}) * own().spread());
  }
};

/// A layer of type `Layer` with such an adapter.
template <typename Layer>
using Outer = lightlora::AdaptedLayer<Layer, OuterAdapterImpl>;
