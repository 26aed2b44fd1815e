// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/detail/basis.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <tuple>

namespace lightlora {

/// Options of LightLoRA and FusedDownUpLoRA: their two frozen bases, which the layer's name and
/// shape and these options name completely, so that files need not hold them.
///
/// Example: `LightOptions(4).network_alpha(4).aux_in(128)`.
struct LightOptions : VariantOptions<LightOptions> {
  using VariantOptions::VariantOptions;

  /// Directions on the input side, clamped to the layer's input width. Default: 100.
  TORCH_ARG(int64_t, aux_in) = 100;
  /// Directions on the output side, clamped to the layer's output width. Default: 50.
  TORCH_ARG(int64_t, aux_out) = 50;
  /// Seed of the frozen bases. Default: 0.
  TORCH_ARG(uint64_t, aux_seed) = 0;
  /// How the frozen bases are drawn. Default: `orthogonal`.
  TORCH_ARG(AuxInit, aux_init) = AuxInit::orthogonal;

 public:
  static auto fields() {
    return std::make_tuple(
        option("aux_in", &LightOptions::aux_in_, "Directions of the input basis"),
        option("aux_out", &LightOptions::aux_out_, "Directions of the output basis"),
        option("aux_seed", &LightOptions::aux_seed_, "Seed of the frozen bases"),
        option("aux_init", &LightOptions::aux_init_,
               "Frozen bases: orthogonal, normal or normal_scaled"));
  }
};

namespace detail {

// Sizes of the two frozen bases after clamping to the layer, checked against the rank.
struct AuxShape {
  int64_t in;
  int64_t out;

  AuxShape(const LightOptions& own, int64_t rank, const LayerInfo& layer)
      : in(std::min(own.aux_in(), layer.in)), out(std::min(own.aux_out(), layer.out)) {
    TORCH_CHECK_VALUE(in > 0 && out > 0, "'", layer.name,
                      "': expected aux_in > 0 and aux_out > 0, got ", own.aux_in(), " and ",
                      own.aux_out(), "; hint: 100 and 50 are the usual choice");
    TORCH_CHECK_VALUE(rank <= std::min(in, out), "'", layer.name,
                      "': expected rank <= ", std::min(in, out), " (directions of the bases: ", in,
                      " in, ", out, " out), got ", rank,
                      "; hint: lower the rank or leave this layer out");
  }

  std::string remarks(const LightOptions& own) const {
    std::string text;
    if (in < own.aux_in()) text += ", aux_in clamped to " + std::to_string(in);
    if (out < own.aux_out()) text += ", aux_out clamped to " + std::to_string(out);
    return text;
  }
};

}  // namespace detail

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
class LightAdapterImpl : public AdapterModule<LightAdapterImpl, LightOptions> {
 public:
  static constexpr const char* kVariant = "light";

  /// Between other bases lengths and angles are not those of the factors.
  static Canonical canonical(const LoRAOptions& options, const TrainedValues& /*frozen*/) {
    const auto own = detail::own_from_text<LightOptions>(options.own(), "", kVariant);
    return own.aux_init() == AuxInit::orthogonal ? Canonical::factors : Canonical::classic;
  }

  LightAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    reset();
  }

  void reset_parameters() override {
    options_.init() == Init::up_zero ? start(down) : torch::nn::init::zeros_(down);
    options_.init() == Init::down_zero ? start(up) : torch::nn::init::zeros_(up);
  }

  // Composed first: two thin products over the tokens instead of four, see docs on routes. The
  // second one transposed: a CPU makes a wide result of few rows three times as fast as one of few
  // columns.
  Factors factors() const override { return {down.mm(down_aux), up.t().mm(up_aux.t()).t()}; }

  bool waits_for_bases() const override { return true; }

  Factors factors_of(const TrainedValues& values) const override {
    return {values.at("down").matmul(down_aux), up_aux.matmul(values.at("up"))};
  }

  // With orthonormal bases the best approximation of the core is that of the delta.
  std::shared_ptr<Adapter> cut(const Keep& keep) const override {
    if (own().aux_init() != AuxInit::orthogonal) return nullptr;
    torch::NoGradGuard no_grad;
    const double root = std::sqrt(std::abs(scale()));
    Factors core{down, up};
    if (scale() != 1.0) core = {down * root, up * (scale() < 0 ? -root : root)};
    core = truncate(core, keep);
    LoRAOptions options = options_;
    options.rank(core.down.size(0)).network_alpha(std::nullopt).dora(false);
    auto light = std::make_shared<LightAdapterImpl>(options, layer_);
    light->to(down.device(), down.scalar_type());
    light->down.copy_(core.down);
    light->up.copy_(core.up);
    return light;
  }

  torch::Tensor down;      ///< (rank, a), trained
  torch::Tensor up;        ///< (b, rank), trained
  torch::Tensor down_aux;  ///< (a, in), frozen
  torch::Tensor up_aux;    ///< (out, b), frozen

 protected:
  void register_tensors() override {
    const detail::AuxShape aux(own(), options_.rank(), layer_);
    down = register_parameter("down", torch::empty({options_.rank(), aux.in}));
    up = register_parameter("up", torch::empty({aux.out, options_.rank()}));
    const auto basis = [&](Side side, int64_t count, int64_t width) {
      return make_basis(side, count, width, own().aux_seed(), layer_.name, own().aux_init());
    };
    down_aux = register_seeded("down_aux", basis(Side::down, aux.in, layer_.in));
    up_aux = register_seeded("up_aux", basis(Side::up, aux.out, layer_.out));
  }

  std::string remarks() const override {
    return detail::AuxShape(own(), options_.rank(), layer_).remarks(own());
  }

 private:
  torch::Tensor start(torch::Tensor factor) const {
    if (own().aux_init() == AuxInit::normal) {
      return torch::nn::init::normal_(factor, 0, 1.0 / static_cast<double>(options_.rank()));
    }
    return torch::nn::init::orthogonal_(factor);
  }
};

/// A layer of type `Layer` with a LightLoRA adapter.
template <typename Layer>
using LightLoRA = AdaptedLayer<Layer, LightAdapterImpl>;

}  // namespace lightlora
