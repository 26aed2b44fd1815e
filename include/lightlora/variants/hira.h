// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <cmath>

namespace lightlora {

/// Adapter that multiplies the weight element by element with a low-rank matrix, so that its delta
/// has as high a rank as the weight.
/// Equation: delta = scale * weight (.) (up * down)
/// Paper:    Huang et al. 2025, "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation", ICLR 2025
/// Shapes:   trained down (rank, in), up (out, rank)
/// Dtypes:   fp32, whatever the base is cast to
/// Errors:   c10::ValueError if rank < 1
/// Starts as PEFT's: down uniform as a Linear's weight, up zero; `down_zero` exchanges them.
class HiRAAdapterImpl : public AdapterModule<HiRAAdapterImpl> {
 public:
  static constexpr const char* kVariant = "hira";

  HiRAAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    reset();
  }

  void reset_parameters() override {
    torch::NoGradGuard no_grad;
    const auto uniform = [](torch::Tensor& t) {
      torch::nn::init::kaiming_uniform_(t, std::sqrt(5));
    };
    options_.init() == Init::up_zero ? uniform(down) : void(down.zero_());
    options_.init() == Init::down_zero ? uniform(up) : void(up.zero_());
  }

  torch::Tensor added(const torch::Tensor& weight) const override {
    return weight.to(up.scalar_type()) * up.mm(down) * scale();
  }

  torch::Tensor down;  ///< (rank, in), trained
  torch::Tensor up;    ///< (out, rank), trained

 protected:
  void register_tensors() override {
    down = register_parameter("down", torch::empty({options_.rank(), layer_.in}));
    up = register_parameter("up", torch::empty({layer_.out, options_.rank()}));
  }

 private:
  bool factorises() const override { return false; }
  bool reads_weight() const override { return true; }
};

/// A layer of type `Layer` with a HiRA adapter.
template <typename Layer>
using HiRA = AdaptedLayer<Layer, HiRAAdapterImpl>;

}  // namespace lightlora
