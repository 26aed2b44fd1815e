// SPDX-License-Identifier: Apache-2.0
// A variant of the stranger's own, in a file of his own.
#pragma once

#include <lightlora/layers.h>
#include <lightlora/variants/registry.h>

#include <utility>

/// Adapter whose delta is the outer product of two vectors.
/// Equation: delta = scale * column * row
/// Shapes:   trained row (1, in), column (out, 1)
class OuterAdapterImpl : public lightlora::AdapterModule<OuterAdapterImpl> {
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
  lightlora::Factors factors() const override { return {row, column}; }

  torch::Tensor row, column;

 protected:
  void register_tensors() override {
    row = register_parameter("row", torch::empty({1, layer_.in}));
    column = register_parameter("column", torch::empty({layer_.out, 1}));
  }
};

/// A layer of type `Layer` with such an adapter.
template <typename Layer>
using Outer = lightlora::AdaptedLayer<Layer, OuterAdapterImpl>;
