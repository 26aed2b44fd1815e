// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

namespace lightlora {

/// Low-rank adapter whose two factors are both trained.
/// Equation: delta = scale * up * down,  scale = network_alpha / rank
/// Paper:    Hu et al. 2021, "LoRA", arXiv:2106.09685, eq. (3)
/// Shapes:   down (rank, in), up (out, rank)
/// Dtypes:   fp32, whatever the base is cast to; products run in the dtype of the input
/// Errors:   c10::ValueError if rank < 1
/// Differs from PEFT: unset network_alpha means scale 1 (PEFT's lora_alpha is 8), and the factor
/// that is not zero starts as N(0, 1/rank), as diffusers' DreamBooth script has it.
class ClassicAdapterImpl : public AdapterModule<ClassicAdapterImpl> {
 public:
  static constexpr const char* kVariant = "classic";

  ClassicAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    reset();
  }

  void reset_parameters() override {
    torch::NoGradGuard no_grad;
    const double std = 1.0 / static_cast<double>(options_.rank());
    // Of an embedding the side of the vocabulary starts at zero, as PEFT's does: only rows that are
    // looked up ever move.
    const bool lookup = layer_.lookup && options_.init() == Init::up_zero;
    const Init init = lookup ? Init::down_zero : options_.init();
    init == Init::up_zero ? down.normal_(0, std) : down.zero_();
    init == Init::down_zero ? up.normal_(0, std) : up.zero_();
  }

  Factors factors() const override { return {down, up}; }

  Factors factors_of(const TrainedValues& values) const override {
    return {values.at("down"), values.at("up")};
  }

  torch::Tensor down;  ///< (rank, in), trained
  torch::Tensor up;    ///< (out, rank), trained

 protected:
  void register_tensors() override {
    down = register_parameter("down", torch::empty({options_.rank(), layer_.in}));
    up = register_parameter("up", torch::empty({layer_.out, options_.rank()}));
  }
};

/// A layer of type `Layer` with a ClassicLoRA adapter.
template <typename Layer>
using ClassicLoRA = AdaptedLayer<Layer, ClassicAdapterImpl>;

}  // namespace lightlora
