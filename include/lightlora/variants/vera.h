// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/detail/basis.h>
#include <lightlora/layers.h>

#include <cmath>
#include <tuple>

namespace lightlora {

/// Options of VeRA.
struct VeRAOptions : VariantOptions<VeRAOptions> {
  using VariantOptions::VariantOptions;

  /// Seed of the frozen matrices, which files need not hold. Default: 0.
  TORCH_ARG(uint64_t, aux_seed) = 0;

 public:
  static auto fields() {
    return std::make_tuple(option("aux_seed", &VeRAOptions::aux_seed_, "Seed of the frozen bases"));
  }
};

/// Adapter that trains one number per direction and one per output of two frozen random matrices.
/// Equation: delta = scale * (lambda_b (.) up_aux) * (lambda_d (.) down_aux)
/// Paper:    Kopiczko et al. 2023, "VeRA", arXiv:2310.11454, equation (2)
/// Shapes:   trained lambda_d (rank, 1), lambda_b (out, 1); frozen down_aux (rank, in),
///           up_aux (out, rank)
/// Dtypes:   fp32, whatever the base is cast to; products run in the dtype of the input
/// Errors:   c10::ValueError if rank < 1, rank > min(in, out), or `init` is not the default
/// Layers of one shape share their random matrices, which follow from aux_seed alone. Differs from
/// PEFT: normal values of the same standard deviation in place of uniform ones, and no single pair
/// that all shapes are cut from. lambda_d starts at 0.1 and lambda_b at zero, as there.
class VeRAAdapterImpl : public AdapterModule<VeRAAdapterImpl, VeRAOptions> {
 public:
  static constexpr const char* kVariant = "vera";

  VeRAAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose lambda_b always starts at zero");
    TORCH_CHECK_VALUE(options_.rank() <= std::min(layer_.in, layer_.out), "'", layer_.name,
                      "': expected rank <= ", std::min(layer_.in, layer_.out),
                      " (the layer's smaller side), got ", options_.rank());
    reset();
  }

  void reset_parameters() override {
    torch::NoGradGuard no_grad;
    lambda_d.fill_(0.1);
    lambda_b.zero_();
  }

  Factors factors() const override { return {lambda_d * down_aux, lambda_b * up_aux}; }
  bool is_up_side(const std::string& name) const override { return name == "lambda_b"; }

  torch::Tensor lambda_d;  ///< (rank, 1), trained
  torch::Tensor lambda_b;  ///< (out, 1), trained
  torch::Tensor down_aux;  ///< (rank, in), frozen
  torch::Tensor up_aux;    ///< (out, rank), frozen

 protected:
  void register_tensors() override {
    lambda_d = register_parameter("lambda_d", torch::empty({options_.rank(), 1}));
    lambda_b = register_parameter("lambda_b", torch::empty({layer_.out, 1}));
    down_aux = register_seeded("down_aux", shared(Side::down, layer_.in, layer_.in));
    up_aux = register_seeded("up_aux", shared(Side::up, layer_.out, options_.rank()));
  }

 private:
  // Normal values of He's standard deviation, sqrt(2 / fan_in). They come scaled by 1 /
  // sqrt(width).
  torch::Tensor shared(Side side, int64_t width, int64_t fan_in) const {
    const double factor = std::sqrt(2.0 * static_cast<double>(width) / static_cast<double>(fan_in));
    return make_basis(side, options_.rank(), width, own().aux_seed(), "shared by all layers",
                      AuxInit::normal_scaled) *
           factor;
  }
};

/// A layer of type `Layer` with a VeRA adapter.
template <typename Layer>
using VeRA = AdaptedLayer<Layer, VeRAAdapterImpl>;

}  // namespace lightlora
