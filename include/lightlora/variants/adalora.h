// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <cstdint>
#include <string>
#include <tuple>

namespace lightlora {

/// Options of AdaLoRA: what its budget of ranks does in the course of a training (`RankBudget`),
/// under PEFT's names.
struct AdaLoRAOptions : VariantOptions<AdaLoRAOptions> {
  using VariantOptions::VariantOptions;

  /// Mean rank that is left in the end; 0: half of `rank`. Default: 0.
  TORCH_ARG(int64_t, target_r) = 0;
  /// Steps before ranks are taken away. Default: 0.
  TORCH_ARG(int64_t, tinit) = 0;
  /// Steps at the end in which none are taken away any more. Default: 0.
  TORCH_ARG(int64_t, tfinal) = 0;
  /// Steps from one decision to the next. Default: 1.
  TORCH_ARG(int64_t, delta_t) = 1;

 public:
  static auto fields() {
    return std::make_tuple(
        option("target_r", &AdaLoRAOptions::target_r_,
               "Mean rank that is left in the end; 0: half of --rank"),
        option("tinit", &AdaLoRAOptions::tinit_, "Steps before ranks are taken away"),
        option("tfinal", &AdaLoRAOptions::tfinal_, "Steps at the end that leave the ranks alone"),
        option("delta_t", &AdaLoRAOptions::delta_t_, "Steps from one choice of ranks to the next"));
  }
};

/// Low-rank adapter in the form of a singular value decomposition, of whose ranks a budget for all
/// layers keeps those that matter: see `RankBudget`.
/// Equation: delta = scale * up diag(lambda) down, scale = network_alpha / rank
/// Paper:    Zhang et al. 2023, "AdaLoRA", arXiv:2303.10512
/// Shapes:   trained down (rank, in), lambda (rank, 1), up (out, rank), as PEFT's lora_A, lora_E and
///           lora_B; down and up start as N(0, 0.02^2), lambda at zero
/// Dtypes:   fp32, whatever the base is cast to; products run in the dtype of the input
/// Errors:   c10::ValueError if rank < 1, for an option out of range, or `init` is not the default
/// What keeps down and up near orthogonal is a part of the loss: `orthogonality`.
/// Differs from PEFT: unset network_alpha means scale 1, and nothing is added to the rank that
/// divides (PEFT adds 1e-5).
class AdaLoRAAdapterImpl : public AdapterModule<AdaLoRAAdapterImpl, AdaLoRAOptions> {
 public:
  static constexpr const char* kVariant = "adalora";
  static constexpr bool kMakesBases = false;

  AdaLoRAAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose lambda always starts at zero");
    TORCH_CHECK_VALUE(own().target_r() >= 0 && own().target_r() <= options_.rank(), "'",
                      layer_.name, "': expected 0 <= target_r <= ", options_.rank(),
                      " (the rank), got ", own().target_r());
    TORCH_CHECK_VALUE(own().tinit() >= 0 && own().tfinal() >= 0, "'", layer_.name,
                      "': expected tinit >= 0 and tfinal >= 0, got ", own().tinit(), " and ",
                      own().tfinal());
    TORCH_CHECK_VALUE(own().delta_t() >= 1, "'", layer_.name, "': expected delta_t >= 1, got ",
                      own().delta_t());
    reset();
  }

  void reset_parameters() override {
    constexpr double kDeviation = 0.02;
    torch::NoGradGuard no_grad;
    down.normal_(0, kDeviation);
    up.normal_(0, kDeviation);
    lambda.zero_();
  }

  Factors factors() const override { return {lambda * down, up}; }
  Factors factors_of(const TrainedValues& values) const override {
    return {values.at("lambda") * values.at("down"), values.at("up")};
  }

  at::Tensor counted_ranks() const override { return lambda.detach().flatten().ne(0); }

  /// What its budget does.
  const AdaLoRAOptions& budget() const { return own(); }
  /// Mean rank that is left in the end.
  int64_t target_rank() const {
    return own().target_r() > 0 ? own().target_r() : (options_.rank() + 1) / 2;
  }

  torch::Tensor down;    ///< (rank, in), trained
  torch::Tensor lambda;  ///< (rank, 1), trained; zero for a rank that the budget has taken away
  torch::Tensor up;      ///< (out, rank), trained

 protected:
  void register_tensors() override {
    const int64_t r = options_.rank();
    down = register_parameter("down", torch::empty({r, layer_.in}));
    lambda = register_parameter("lambda", torch::empty({r, 1}));
    up = register_parameter("up", torch::empty({layer_.out, r}));
  }
};

/// A layer of type `Layer` with an AdaLoRA adapter.
template <typename Layer>
using AdaLoRA = AdaptedLayer<Layer, AdaLoRAAdapterImpl>;

}  // namespace lightlora
