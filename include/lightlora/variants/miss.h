// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

namespace lightlora {

/// Adapter that trains one matrix: the inputs are added up in chunks of `rank`, which takes no
/// product, and the sums go through it.
/// Equation: delta[o, i] = scale * block[i mod rank, o], so that y += block^T (sum of the chunks of x)
/// Paper:    Kang and Yin 2024, "MiSS" (first "DiSHA", "Bone"), arXiv:2409.15371
/// Shapes:   trained block (rank, out), starts at zero; frozen down (rank, in), which adds up
/// Dtypes:   fp32, whatever the base is cast to; products run in the dtype of the input
/// Errors:   c10::ValueError if rank < 1, or `init` is not the default
class MiSSAdapterImpl : public AdapterModule<MiSSAdapterImpl> {
 public:
  static constexpr const char* kVariant = "miss";

  MiSSAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose one matrix always starts at zero");
    reset();
  }

  void reset_parameters() override { torch::nn::init::zeros_(block); }

  Factors factors() const override { return {down, block.t()}; }
  bool is_up_side(const std::string& /*name*/) const override { return true; }

  torch::Tensor block;  ///< (rank, out), trained
  torch::Tensor down;   ///< (rank, in), frozen: one where i mod rank is the row

 protected:
  void register_tensors() override {
    block = register_parameter("block", torch::empty({options_.rank(), layer_.out}));
    const auto chunk = torch::arange(layer_.in).remainder(options_.rank());
    down = register_seeded("down",
                           torch::arange(options_.rank()).unsqueeze(1).eq(chunk).to(torch::kFloat));
  }
};

/// A layer of type `Layer` with a MiSS adapter.
template <typename Layer>
using MiSS = AdaptedLayer<Layer, MiSSAdapterImpl>;

}  // namespace lightlora
