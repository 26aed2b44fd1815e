// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ops/linalg_svd.h>
#include <lightlora/adapter.h>
#include <lightlora/detail/cayley.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <algorithm>

namespace lightlora {

/// Adapter that rotates and stretches the weight's principal subspace: LoRA-XS with an orthogonal
/// core between two diagonals.
/// Equation: delta = scale * up_aux (R - I) down_aux, R = diag(beta) (I + Q)(I - Q)^-1 diag(alpha),
///           Q skew; with weight = U S V^T, up_aux = U_r S_r / scale and down_aux = V_r^T
/// Paper:    "Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation" (PSOFT),
///           openreview.net/forum?id=FSHrinMArK
/// Shapes:   trained q (rank (rank - 1) / 2), the upper triangle of Q row by row, alpha (rank), beta
///           (rank); frozen up_aux (out, rank), down_aux (rank, in)
/// Dtypes:   fp32, whatever the base is cast to; the decomposition is made in double
/// Errors:   c10::ValueError if rank < 2, rank > min(in, out), or `init` is not the default
/// Files always hold the two bases, as those of LoRA-XS. Differs from PEFT: R is always computed
/// exactly, and both diagonals train.
class PSOFTAdapterImpl : public AdapterModule<PSOFTAdapterImpl> {
 public:
  static constexpr const char* kVariant = "psoft";

  PSOFTAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose core always starts at the identity");
    TORCH_CHECK_VALUE(options_.rank() >= 2 && options_.rank() <= std::min(layer_.in, layer_.out),
                      "'", layer_.name,
                      "': expected 2 <= rank <= ", std::min(layer_.in, layer_.out),
                      " (the weight's singular values), got ", options_.rank());
    reset();
  }

  void reset_parameters() override {
    torch::NoGradGuard no_grad;
    q.zero_();
    alpha.fill_(1);
    beta.fill_(1);
  }

  Factors factors() const override {
    const int64_t r = options_.rank();
    const auto places = torch::triu_indices(r, r, 1, q.options().dtype(torch::kLong));
    const torch::Tensor upper =
        torch::zeros({r * r}, q.options()).index_copy(0, places[0] * r + places[1], q).view({r, r});
    const torch::Tensor skew = upper - upper.t(), one = torch::eye(r, q.options());
    const torch::Tensor turn = detail::cayley_transform(skew);
    return {(beta.unsqueeze(1) * turn * alpha - one).mm(down_aux), up_aux};
  }

  // Nothing that is trained is a factor of the delta.
  void rescale(double factor) override { set_scale(scale() * factor); }

  torch::Tensor q;         ///< (rank (rank - 1) / 2), trained
  torch::Tensor alpha;     ///< (rank), trained: lengths on the input side
  torch::Tensor beta;      ///< (rank), trained: lengths on the output side
  torch::Tensor down_aux;  ///< (rank, in), frozen
  torch::Tensor up_aux;    ///< (out, rank), frozen

 protected:
  void register_tensors() override {
    const int64_t r = options_.rank();
    q = register_parameter("q", torch::empty({r * (r - 1) / 2}));
    alpha = register_parameter("alpha", torch::empty({r}));
    beta = register_parameter("beta", torch::empty({r}));
    down_aux = register_buffer("down_aux", torch::zeros({r, layer_.in}));
    up_aux = register_buffer("up_aux", torch::zeros({layer_.out, r}));
  }

 private:
  void take_bases(const torch::Tensor& weight) override {
    const auto [u, s, vh] = at::linalg_svd(weight.to(torch::kDouble), /*full_matrices=*/false);
    const int64_t r = options_.rank();
    up_aux.copy_(u.slice(1, 0, r) * (s.slice(0, 0, r) / scale()));
    down_aux.copy_(vh.slice(0, 0, r));
  }
};

/// A layer of type `Layer` with a PSOFT adapter.
template <typename Layer>
using PSOFT = AdaptedLayer<Layer, PSOFTAdapterImpl>;

}  // namespace lightlora
