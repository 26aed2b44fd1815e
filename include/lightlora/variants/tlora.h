// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ops/linalg_svd.h>
#include <lightlora/adapter.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <utility>

namespace lightlora {

/// Which singular vectors of the weight a T-LoRA adapter starts at: those of the largest values, of
/// the smallest, or in between; LyCORIS' `sig_type`.
enum class SigType { principal, last, middle };

/// The name of a choice, as flags and files spell it.
inline std::string to_string(SigType type) {
  return type == SigType::principal ? "principal" : type == SigType::last ? "last" : "middle";
}

/// The choice of that name; c10::ValueError lists the known ones.
inline void from_string(const std::string& name, SigType& type) {
  for (const auto value : {SigType::principal, SigType::last, SigType::middle}) {
    if (name != to_string(value)) continue;
    type = value;
    return;
  }
  TORCH_CHECK_VALUE(false, "expected one of principal, last, middle, got '", name, "'");
}

/// Options of T-LoRA.
struct TLoRAOptions : VariantOptions<TLoRAOptions> {
  using VariantOptions::VariantOptions;

  /// The singular vectors to start at. Default: `principal`.
  TORCH_ARG(SigType, sig_type) = SigType::principal;
  /// Ranks that count for pure noise, see `set_timestep`. Default: 1.
  TORCH_ARG(int64_t, min_rank) = 1;
  /// How fast the ranks fall with the noise: 1 evenly, above 1 sooner. Default: 1.
  TORCH_ARG(double, alpha_rank_scale) = 1;

 public:
  static auto fields() {
    return std::make_tuple(
        option("sig_type", &TLoRAOptions::sig_type_,
               "Singular vectors to start at: principal, last or middle"),
        option("min_rank", &TLoRAOptions::min_rank_, "Ranks that count for pure noise"),
        option("alpha_rank_scale", &TLoRAOptions::alpha_rank_scale_,
               "How fast ranks fall with the noise: 1 evenly, above 1 sooner"));
  }
};

/// Adapter for diffusion models that trains fewer ranks the noisier its inputs are: the trainer sets
/// how many of them count (`set_active_ranks`), and all do in inference.
/// Equation: delta = scale * (p diag(lambda m) q - p_start diag(lambda_start m) q_start), m one for
///           the first ranks and zero for the others; weight = U S V^T, p = U_r, q = V_r^T and
///           lambda = S_r at the start
/// Paper:    Soboleva et al. 2025, "T-LoRA", arXiv:2507.05964
/// Shapes:   trained q (rank, in), p (out, rank), lambda (rank, 1); q_start, p_start, lambda_start
///           frozen likewise; mask (rank, 1), ones unless a trainer has set it
/// Dtypes:   fp32, whatever the base is cast to; products run in the dtype of the input
/// Errors:   c10::ValueError if rank < 1, rank > min(in, out), for an option out of range, or `init`
///           is not the default
/// Files hold the start, without the mask. The factors have rank 2 r, as those of a ClassicLoRA with
/// a start that is not zero; for other programs the file is plain LoRA of that rank.
class TLoRAAdapterImpl : public AdapterModule<TLoRAAdapterImpl, TLoRAOptions> {
 public:
  static constexpr const char* kVariant = "tlora";

  TLoRAAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("which always starts at singular vectors");
    TORCH_CHECK_VALUE(options_.rank() <= std::min(layer_.in, layer_.out), "'", layer_.name,
                      "': expected rank <= ", std::min(layer_.in, layer_.out),
                      " (the weight's singular values), got ", options_.rank());
    TORCH_CHECK_VALUE(own().min_rank() >= 1 && own().alpha_rank_scale() > 0, "'", layer_.name,
                      "': expected min_rank >= 1 and alpha_rank_scale > 0, got ", own().min_rank(),
                      " and ", own().alpha_rank_scale());
    reset();
  }

  void reset_parameters() override {
    torch::NoGradGuard no_grad;
    q.copy_(q_start);
    p.copy_(p_start);
    lambda.copy_(lambda_start);
  }

  /// Lets the first `count` ranks count in this and the following calls; `rank` for all.
  /// Errors: c10::ValueError unless 0 <= count <= rank
  void set_active_ranks(int64_t count) {
    TORCH_CHECK_VALUE(count >= 0 && count <= options_.rank(), "'", layer_.name, "': expected 0 to ",
                      options_.rank(), " active ranks, got ", count);
    torch::NoGradGuard no_grad;
    mask.zero_();
    mask.narrow(0, 0, count).fill_(1);
  }

  /// What the ranks do with the noise.
  const TLoRAOptions& schedule() const { return own(); }

  int64_t rank() const override { return 2 * options_.rank(); }

  // Differences first, so that the start cancels exactly.
  Factors factors() const override {
    const torch::Tensor down = lambda * mask * q, start = lambda_start * mask * q_start;
    return {torch::cat({down, down - start}), torch::cat({p - p_start, p_start}, 1)};
  }

  // The start that is taken off has no factor.
  void rescale(double factor) override { set_scale(scale() * factor); }
  bool is_up_side(const std::string& name) const override { return name == "p"; }
  bool is_of_weight(const std::string& frozen) const override { return frozen != "mask"; }

  torch::Tensor q;             ///< (rank, in), trained
  torch::Tensor p;             ///< (out, rank), trained
  torch::Tensor lambda;        ///< (rank, 1), trained
  torch::Tensor q_start;       ///< (rank, in), frozen
  torch::Tensor p_start;       ///< (out, rank), frozen
  torch::Tensor lambda_start;  ///< (rank, 1), frozen
  torch::Tensor mask;          ///< (rank, 1), frozen

 protected:
  void register_tensors() override {
    const int64_t r = options_.rank();
    q = register_parameter("q", torch::empty({r, layer_.in}));
    p = register_parameter("p", torch::empty({layer_.out, r}));
    lambda = register_parameter("lambda", torch::empty({r, 1}));
    q_start = register_buffer("q_start", torch::zeros({r, layer_.in}));
    p_start = register_buffer("p_start", torch::zeros({layer_.out, r}));
    lambda_start = register_buffer("lambda_start", torch::zeros({r, 1}));
    mask = register_seeded("mask", torch::ones({r, 1}));
  }

 private:
  void take_bases(const torch::Tensor& weight) override {
    const auto [u, s, vh] = at::linalg_svd(weight.to(torch::kDouble), /*full_matrices=*/false);
    const int64_t r = options_.rank(), rest = s.size(0) - r;
    const int64_t first = own().sig_type() == SigType::principal ? 0
                          : own().sig_type() == SigType::last    ? rest
                                                                 : rest / 2;
    q_start.copy_(vh.narrow(0, first, r));
    p_start.copy_(u.narrow(1, first, r));
    lambda_start.copy_(s.narrow(0, first, r).unsqueeze(1));
    reset_parameters();
  }
};

/// A layer of type `Layer` with a T-LoRA adapter.
template <typename Layer>
using TLoRA = AdaptedLayer<Layer, TLoRAAdapterImpl>;

}  // namespace lightlora
