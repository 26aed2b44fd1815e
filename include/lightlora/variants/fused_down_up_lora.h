// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/linalg_svdvals.h>
#include <lightlora/adapter.h>
#include <lightlora/detail/basis.h>
#include <lightlora/layers.h>
#include <lightlora/variants/light_lora.h>
#include <torch/nn/init.h>

#include <memory>

namespace lightlora {

/// Adapter that trains one full core between two frozen bases, to be cut to a low rank afterwards.
/// Equation: delta = scale * up_aux * down_up * down_aux
/// Paper:    the frozen bases of arXiv:2307.06949, section 3.2, with its two trained factors fused
/// Shapes:   trained down_up (b, a), starts at zero; frozen down_aux (a, in) with orthonormal rows,
///           up_aux (out, b) with orthonormal columns; a = min(aux_in, in), b = min(aux_out, out)
/// Dtypes:   fp32, whatever the base is cast to; products run in the dtype of the input
/// Errors:   c10::ValueError if rank < 1, rank > min(a, b), or `init` is not the default: the core
///           has no second factor that could start elsewhere than zero
/// `rank` is used only by `split` and for the scale, network_alpha / rank when network_alpha is
/// set.
class FusedAdapterImpl : public AdapterModule<FusedAdapterImpl, LightOptions> {
 public:
  static constexpr const char* kVariant = "fused";

  /// The core is unique.
  static Canonical canonical(const LoRAOptions& /*options*/, const TrainedValues& /*frozen*/) {
    return Canonical::as_they_are;
  }

  FusedAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose core always starts at zero");
    reset();
  }

  void reset_parameters() override { torch::nn::init::zeros_(down_up); }

  int64_t rank() const override { return std::min(down_up.size(0), down_up.size(1)); }

  // The inner width of the factors is the smaller side of the core.
  Factors factors() const override {
    if (down_up.size(0) <= down_up.size(1)) return {down_up.mm(down_aux), up_aux};
    return {down_aux, up_aux.mm(down_up)};
  }

  bool waits_for_bases() const override { return true; }

  Factors factors_of(const TrainedValues& values) const override {
    const torch::Tensor& core = values.at("down_up");
    auto batch = core.sizes().vec();
    batch.resize(batch.size() - 2);
    const auto for_all = [&](const torch::Tensor& basis) {
      auto sizes = batch;
      sizes.insert(sizes.end(), basis.sizes().begin(), basis.sizes().end());
      return basis.expand(sizes);
    };
    if (core.size(-2) <= core.size(-1)) return {core.matmul(down_aux), for_all(up_aux)};
    return {for_all(down_aux), up_aux.matmul(core)};
  }

  /// The best approximation of this delta of the given rank, as a LightLoRA adapter on the same
  /// bases: core = U S Vh, then up = U S and down = Vh, cut to `rank`. With orthonormal bases this
  /// is the best one of that rank for the delta itself; at rank min(a, b) it is exact.
  /// Errors: c10::ValueError unless 1 <= rank <= min(a, b)
  std::shared_ptr<LightAdapterImpl> split(int64_t rank) const {
    TORCH_CHECK_VALUE(rank >= 1 && rank <= this->rank(), "'", layer_.name,
                      "': expected 1 <= rank <= ", this->rank(), ", got ", rank);
    torch::NoGradGuard no_grad;
    LoRAOptions options = options_;
    options.rank(rank).network_alpha(std::nullopt);
    auto light = std::make_shared<LightAdapterImpl>(options, layer_);
    light->to(down_up.device(), down_up.scalar_type());
    light->set_scale(scale());
    const auto [u, s, vh] = at::linalg_svd(down_up.to(torch::kDouble), /*full_matrices=*/false);
    light->up.copy_(u.slice(1, 0, rank) * s.slice(0, 0, rank));
    light->down.copy_(vh.slice(0, 0, rank));
    light->down_aux.copy_(down_aux);
    light->up_aux.copy_(up_aux);
    if (dora_) light->trained()[DoRA::kMagnitude].copy_(dora_->magnitude);
    return light;
  }

  std::shared_ptr<Adapter> cut(const Keep& keep) const override {
    FusedAdapterImpl plain(LoRAOptions(options_).dora(false), layer_);
    plain.to(down_up.device(), down_up.scalar_type());
    plain.set_scale(scale());
    torch::NoGradGuard no_grad;
    plain.down_up.copy_(down_up);
    return plain.split(keep.count(at::linalg_svdvals(down_up.to(torch::kDouble))));
  }

  torch::Tensor down_up;   ///< (b, a), trained
  torch::Tensor down_aux;  ///< (a, in), frozen
  torch::Tensor up_aux;    ///< (out, b), frozen

 protected:
  void register_tensors() override {
    const detail::AuxShape aux(own(), options_.rank(), layer_);
    down_up = register_parameter("down_up", torch::empty({aux.out, aux.in}));
    const auto basis = [&](Side side, int64_t count, int64_t width) {
      return make_basis(side, count, width, own().aux_seed(), layer_.name, own().aux_init());
    };
    down_aux = register_seeded("down_aux", basis(Side::down, aux.in, layer_.in));
    up_aux = register_seeded("up_aux", basis(Side::up, aux.out, layer_.out));
  }

  std::string remarks() const override {
    return detail::AuxShape(own(), options_.rank(), layer_).remarks(own());
  }
};

/// A layer of type `Layer` with a FusedDownUpLoRA adapter.
template <typename Layer>
using FusedDownUpLoRA = AdaptedLayer<Layer, FusedAdapterImpl>;

}  // namespace lightlora
