// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/layers.h>
#include <lightlora/adapter.h>
#include <lightlora/detail/basis.h>
#include <torch/nn/init.h>

namespace lightlora {

/// Low-rank adapter that trains only a small core between two frozen bases.
/// Equation: delta = scale * (up_aux * up) * (down * down_aux),  scale = network_alpha / rank
/// Paper:    Ruiz et al. 2023, "HyperDreamBooth", arXiv:2307.06949, section 3.2
/// Shapes:   trained down (rank, a), up (b, rank); frozen down_aux (a, in) with orthonormal rows,
///           up_aux (out, b) with orthonormal columns; a = min(aux_in, in), b = min(aux_out, out)
/// Dtypes:   fp32, whatever the base is cast to; products run in the dtype of the input
/// Errors:   c10::ValueError if rank < 1 or rank > min(a, b)
/// The bases follow from (aux_seed, layer name, shape) alone: see `make_basis`. With
/// AuxInit::normal the trained factor starts as N(0, 1/rank) as in the described experiment,
/// otherwise with orthonormal rows (down) or columns (up).
class LightAdapterImpl : public AdapterModule<LightAdapterImpl> {
 public:
  /// Its name in files and flags.
  static constexpr const char* kVariant = "light";

  /// An adapter at its start. Errors: as the class says
  LightAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    reset();
  }

  void reset_parameters() override {
    options_.init() == Init::up_zero ? start(down) : torch::nn::init::zeros_(down);
    options_.init() == Init::down_zero ? start(up) : torch::nn::init::zeros_(up);
  }

  // Composed first: two thin products over the tokens instead of four, see docs on routes. The second
  // one transposed: a CPU makes a wide result of few rows three times as fast as one of few columns.
  Factors factors() const override {
    return {down.mm(down_aux), up.t().mm(up_aux.t()).t()};
  }

  torch::Tensor down;      ///< (rank, a), trained
  torch::Tensor up;        ///< (b, rank), trained
  torch::Tensor down_aux;  ///< (a, in), frozen
  torch::Tensor up_aux;    ///< (out, b), frozen

 protected:
  void register_tensors() override {
    const detail::AuxShape aux(options_, layer_);
    down = register_parameter("down", torch::empty({options_.rank(), aux.in}));
    up = register_parameter("up", torch::empty({aux.out, options_.rank()}));
    down_aux = register_buffer("down_aux",
                               make_basis(Side::down, aux.in, layer_.in, options_.aux_seed(),
                                          layer_.name, options_.aux_init()));
    up_aux = register_buffer("up_aux", make_basis(Side::up, aux.out, layer_.out,
                                                  options_.aux_seed(), layer_.name,
                                                  options_.aux_init()));
  }

  std::string remarks() const override {
    return detail::AuxShape(options_, layer_).remarks(options_);
  }

 private:
  torch::Tensor start(torch::Tensor factor) const {
    if (options_.aux_init() == AuxInit::normal) {
      return torch::nn::init::normal_(factor, 0, 1.0 / static_cast<double>(options_.rank()));
    }
    return torch::nn::init::orthogonal_(factor);
  }
};

/// A layer of type `Layer` with a LightLoRA adapter.
template <typename Layer>
using LightLoRA = AdaptedLayer<Layer, LightAdapterImpl>;

/// Its number among the variants of the library.
template <>
struct LibraryVariant<1> {
  using Impl = LightAdapterImpl;  ///< its module class
};

}  // namespace lightlora
