// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <algorithm>
#include <cstdint>

namespace lightlora {

/// Adapter that trains the whole difference of the weight: what full fine-tuning can learn, beside
/// a base that stays as it is. LyCORIS' "full".
/// Equation: delta = scale * diff
/// Paper:    Yeh et al. 2023, "LyCORIS", arXiv:2309.14859, section 3 (its native fine-tuning)
/// Shapes:   trained diff (out, in), starts at zero
/// Dtypes:   fp32, whatever the base is cast to
/// Errors:   c10::ValueError if `init` is not the default
/// `rank` counts for the scale alone.
class FullAdapterImpl : public AdapterModule<FullAdapterImpl> {
 public:
  static constexpr const char* kVariant = "full";
  static constexpr bool kTrainsWhole = true;

  FullAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose difference always starts at zero");
    reset();
  }

  void reset_parameters() override { torch::nn::init::zeros_(diff); }

  // Nothing bounds it but the layer.
  int64_t rank() const override { return std::min(layer_.in, layer_.out); }

  torch::Tensor added(const torch::Tensor& /*weight*/) const override { return diff * scale(); }

  torch::Tensor diff;  ///< (out, in), trained

 protected:
  void register_tensors() override {
    diff = register_parameter("diff", torch::empty({layer_.out, layer_.in}));
  }

 private:
  bool factorises() const override { return false; }
};

/// A layer of type `Layer` with an adapter of its whole weight.
template <typename Layer>
using FullDelta = AdaptedLayer<Layer, FullAdapterImpl>;

}  // namespace lightlora
