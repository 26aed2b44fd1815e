// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ops/linalg_svd.h>
#include <lightlora/adapter.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

namespace lightlora {

/// Adapter that trains an (r, r) core between the leading singular vectors of the layer's weight.
/// Equation: delta = scale * up_aux * core * down_aux, with weight = U S V^T, up_aux = U_r S_r and
///           down_aux = V_r^T
/// Paper:    Balazy et al. 2024, "LoRA-XS", arXiv:2405.17604, section 3
/// Shapes:   trained core (rank, rank); frozen up_aux (out, rank), down_aux (rank, in)
/// Dtypes:   fp32, whatever the base is cast to; the decomposition is made in double
/// Errors:   c10::ValueError if rank < 1, rank > min(in, out), or `init` is not the default
///
/// Files always hold the two bases: singular vectors of close values differ between machines, so
/// they cannot be made again exactly.
/// Differs from the paper: the core starts at zero instead of N(0, 1e-5), so that a new adapter
///           changes nothing.
class LoRAXSAdapterImpl : public AdapterModule<LoRAXSAdapterImpl> {
 public:
  static constexpr const char* kVariant = "lora_xs";

  LoRAXSAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose core always starts at zero");
    TORCH_CHECK_VALUE(options_.rank() <= std::min(layer_.in, layer_.out), "'", layer_.name,
                      "': expected rank <= ", std::min(layer_.in, layer_.out),
                      " (the weight's singular values), got ", options_.rank());
    reset();
  }

  void reset_parameters() override { torch::nn::init::zeros_(core); }

  Factors factors() const override { return {core.mm(down_aux), up_aux}; }

  torch::Tensor core;      ///< (rank, rank), trained
  torch::Tensor down_aux;  ///< (rank, in), frozen
  torch::Tensor up_aux;    ///< (out, rank), frozen

 protected:
  void register_tensors() override {
    core = register_parameter("core", torch::empty({options_.rank(), options_.rank()}));
    down_aux = register_buffer("down_aux", torch::zeros({options_.rank(), layer_.in}));
    up_aux = register_buffer("up_aux", torch::zeros({layer_.out, options_.rank()}));
  }

 private:
  void take_bases(const torch::Tensor& weight) override {
    const auto [u, s, vh] = at::linalg_svd(weight.to(torch::kDouble), /*full_matrices=*/false);
    up_aux.copy_(u.slice(1, 0, options_.rank()) * s.slice(0, 0, options_.rank()));
    down_aux.copy_(vh.slice(0, 0, options_.rank()));
  }
};

/// A layer of type `Layer` with a LoRA-XS adapter.
template <typename Layer>
using LoRAXS = AdaptedLayer<Layer, LoRAXSAdapterImpl>;

}  // namespace lightlora
