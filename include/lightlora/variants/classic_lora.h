// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/randn.h>
#include <lightlora/adapter.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>

namespace lightlora {

/// Where the two factors of a ClassicLoRA adapter start, under PEFT's names for
/// `init_lora_weights`; weight = U S V^T is the layer's, s the scale of the delta.
///
/// `standard`: as `init` says, without a look at the weight (PEFT's True and "gaussian").
/// `pissa`: down = sqrt(S_r / s) V_r^T, up = U_r sqrt(S_r / s) (Meng et al. 2024, arXiv:2404.02948).
/// `olora`: up = Q_r, down = R_r of weight = Q R (Buyukakyuz 2024, arXiv:2406.01775).
/// `mica`: up = the last r columns of U, frozen; down starts at zero (arXiv:2604.01694).
/// `svd_down`: down = V_r^T / sqrt(3), up = 0: the usual start along the weight's own directions.
/// `eva`: down = the main directions of the layer's inputs (Paischer et al. 2024, arXiv:2410.07170).
/// `corda`: as pissa, of weight times the covariance of the inputs (arXiv:2406.05223).
/// `lora_ga`: singular vectors of the weight's first gradient (Wang et al. 2024, arXiv:2407.05000).
///
/// The last three need data: until `start_from_data` has run the model, they start as `standard`.
enum class LoRAStart { standard, pissa, olora, mica, svd_down, eva, corda, lora_ga };

namespace detail {

inline const std::array<std::pair<LoRAStart, const char*>, 8>& lora_starts() {
  static const std::array<std::pair<LoRAStart, const char*>, 8> names{
      {{LoRAStart::standard, "standard"},
       {LoRAStart::pissa, "pissa"},
       {LoRAStart::olora, "olora"},
       {LoRAStart::mica, "mica"},
       {LoRAStart::svd_down, "svd_down"},
       {LoRAStart::eva, "eva"},
       {LoRAStart::corda, "corda"},
       {LoRAStart::lora_ga, "lora_ga"}}};
  return names;
}

// The leading singular vectors by subspace iteration from random directions, drawn as PyTorch's
// torch.svd_lowrank draws them (Halko et al. 2009, arXiv:0909.4061, algorithms 4.4 and 5.1).
inline std::tuple<at::Tensor, at::Tensor, at::Tensor> svd_lowrank(const at::Tensor& matrix,
                                                                  int64_t rank, int64_t niter) {
  if (matrix.size(0) < matrix.size(1)) {
    const auto [v, s, uh] = svd_lowrank(matrix.t(), rank, niter);
    return {uh.t(), s, v.t()};
  }
  const auto orthonormal = [](const at::Tensor& t) { return std::get<0>(at::linalg_qr(t)); };
  at::Tensor q = at::randn({matrix.size(1), rank}, matrix.options().dtype(at::kFloat));
  q = orthonormal(matrix.mm(q.to(matrix.scalar_type())));
  for (int64_t i = 0; i < niter; ++i) q = orthonormal(matrix.mm(orthonormal(matrix.t().mm(q))));
  const auto [u, s, vh] = at::linalg_svd(q.t().mm(matrix), /*full_matrices=*/false);
  return {q.mm(u), s, vh};
}

}  // namespace detail

/// The name of a start, as flags and files spell it.
inline std::string to_string(LoRAStart start) {
  for (const auto& [value, name] : detail::lora_starts()) {
    if (value == start) return name;
  }
  TORCH_INTERNAL_ASSERT(false, "an enumerator without a name");
}

/// The start of that name; c10::ValueError lists the known ones.
inline void from_string(const std::string& name, LoRAStart& start) {
  std::string known;
  for (const auto& [value, text] : detail::lora_starts()) {
    known += (known.empty() ? "" : ", ") + std::string(text);
    if (name != text) continue;
    start = value;
    return;
  }
  TORCH_CHECK_VALUE(false, "expected one of ", known, ", got '", name, "'");
}

/// Options of ClassicLoRA.
///
/// Example: `ClassicOptions(8).network_alpha(8).init_lora_weights(LoRAStart::pissa)`.
struct ClassicOptions : VariantOptions<ClassicOptions> {
  using VariantOptions::VariantOptions;

  /// Where the factors start. Default: `standard`.
  TORCH_ARG(LoRAStart, init_lora_weights) = LoRAStart::standard;
  /// Iterations of pissa's fast decomposition, PEFT's pissa_niter_N; 0 computes it exactly.
  /// Default: 0.
  TORCH_ARG(int64_t, niter) = 0;
  /// Trains `down` in units of each input channel's own size, which `start_from_data` measures: the
  /// delta is the same at the start, and the steps of a few large channels no longer drown the
  /// others. Default: false.
  TORCH_ARG(bool, channel_scaling) = false;

 public:
  static auto fields() {
    return std::make_tuple(
        option(
            "init_lora_weights", &ClassicOptions::init_lora_weights_,
            "Start of the factors: standard, pissa, olora, mica, svd_down; from data: eva, corda, "
            "lora_ga"),
        option("niter", &ClassicOptions::niter_,
               "Iterations of pissa's fast decomposition; 0: exact"),
        option("channel_scaling", &ClassicOptions::channel_scaling_,
               "Train the inner factor in units of each input channel's size, as measured"));
  }
};

/// Low-rank adapter whose two factors are both trained.
/// Equation: delta = scale * up * down,  scale = network_alpha / rank; for a start that is not zero
///           (pissa, olora, corda, lora_ga) delta = scale * (up * down - up_start * down_start);
///           with channel_scaling down diag(1 / channels) in place of down
/// Paper:    Hu et al. 2021, "LoRA", arXiv:2106.09685, eq. (3); see `LoRAStart` for the starts
/// Shapes:   down (rank, in), up (out, rank); down_start, up_start likewise, frozen; channels (1,
///           in), frozen, ones until they are measured
/// Dtypes:   fp32, whatever the base is cast to; products run in the dtype of the input. Starts are
///           computed in double
/// Errors:   c10::ValueError if rank < 1; for a start of the weight, if rank > min(in, out), niter
///           < 0, or `init` is not the default; for channel_scaling with a start that is taken off
///
/// PEFT takes the product of the start away from the base weight; here the base stays as it is, and
/// the delta is what has been learned since, so that a new adapter changes no bit. Its factors are
/// [up - up_start, up_start] and [down; down - down_start], of rank 2 r: for other programs the
/// file is plain LoRA of that rank, as PEFT writes it with `path_initial_model_for_weight_conversion`.
/// Native files hold both starts, bit for bit.
/// Differs from PEFT: unset network_alpha means scale 1 (PEFT's lora_alpha is 8), and the factor
/// that is not zero starts as N(0, 1/rank), as diffusers' DreamBooth script has it.
class ClassicAdapterImpl : public AdapterModule<ClassicAdapterImpl, ClassicOptions> {
 public:
  static constexpr const char* kVariant = "classic";
  static constexpr bool kMakesBases = false;

  /// What is frozen is a part of the delta: a start, or mica's up.
  static Canonical canonical(const LoRAOptions& /*options*/, const TrainedValues& frozen) {
    return frozen.empty() ? Canonical::factors : Canonical::classic;
  }

  ClassicAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    check_start();
    reset();
  }

  void reset_parameters() override {
    torch::NoGradGuard no_grad;
    if (subtracts() && down_start.any().item<bool>()) {
      down.copy_(down_start);
      up.copy_(up_start);
      return;
    }
    if (start() == LoRAStart::mica) return void(down.zero_());
    const double std = 1.0 / static_cast<double>(options_.rank());
    // Of an embedding the side of the vocabulary starts at zero, as PEFT's does: only rows that are
    // looked up ever move.
    const bool lookup = layer_.lookup && options_.init() == Init::up_zero;
    const Init init = lookup ? Init::down_zero : options_.init();
    init == Init::up_zero ? down.normal_(0, std) : down.zero_();
    if (channels.defined()) down.mul_(channels);
    init == Init::down_zero ? up.normal_(0, std) : up.zero_();
  }

  /// Starts at these factors instead. With pissa, olora, corda and lora_ga their product is taken
  /// off the delta; of the others one is zero.
  /// Shapes: down (rank, in), up (out, rank)
  void start_at(const Factors& factors) {
    torch::NoGradGuard no_grad;
    down.copy_(channels.defined() ? factors.down * channels : factors.down);
    up.copy_(factors.up);
    if (!subtracts()) return;
    down_start.copy_(down);
    up_start.copy_(up);
  }

  /// Says how large each input channel is, in whatever unit; the delta stays what it is.
  /// Equation: channels = sizes / mean of sizes, and down as it was times channels
  /// Shapes:   sizes (in), positive
  /// Errors:   c10::ValueError without channel_scaling, or for sizes that are not positive
  void scale_channels(const torch::Tensor& sizes) {
    TORCH_CHECK_VALUE(channels.defined(), "'", layer_.name,
                      "': expected an adapter with channel_scaling, got one without");
    TORCH_CHECK_VALUE(sizes.numel() == layer_.in && sizes.gt(0).all().item<bool>(), "'",
                      layer_.name, "': expected ", layer_.in, " positive sizes of channels, got ",
                      sizes.sizes());
    torch::NoGradGuard no_grad;
    const torch::Tensor wide = sizes.to(torch::kDouble).view({1, layer_.in});
    const torch::Tensor unit = (wide / wide.mean()).to(channels.options());
    down.mul_(unit / channels);
    channels.copy_(unit);
  }

  /// Where the factors start.
  LoRAStart start() const { return own().init_lora_weights(); }
  /// Whether `down` is in units of the channels' sizes.
  bool scales_channels() const { return own().channel_scaling(); }

  int64_t rank() const override { return (subtracts() ? 2 : 1) * options_.rank(); }

  Factors factors() const override { return since_start(down, up); }

  Factors factors_of(const TrainedValues& values) const override {
    const torch::Tensor& other = values.at("down");
    if (const auto found = values.find("up"); found != values.end()) {
      return since_start(other, found->second);
    }
    auto sizes = other.sizes().vec();  // mica's up is the same for each entry of a batch
    sizes[sizes.size() - 2] = layer_.out;
    sizes.back() = options_.rank();
    return since_start(other, up.expand(sizes));
  }

  // With a start that is taken off, the delta is not linear in the factors.
  void rescale(double factor) override {
    subtracts() ? set_scale(scale() * factor) : Adapter::rescale(factor);
  }

  torch::Tensor down;        ///< (rank, in), trained
  torch::Tensor up;          ///< (out, rank), trained; with mica frozen
  torch::Tensor down_start;  ///< (rank, in), frozen; undefined for a start that is zero
  torch::Tensor up_start;    ///< (out, rank), frozen, likewise
  torch::Tensor channels;    ///< (1, in), frozen; undefined without channel_scaling

 protected:
  void register_tensors() override {
    const auto empty_up = torch::zeros({layer_.out, options_.rank()});
    down = register_parameter("down", torch::empty({options_.rank(), layer_.in}));
    if (start() == LoRAStart::mica) {
      up = register_buffer("up", empty_up);
    } else {
      up = register_parameter("up", empty_up);
    }
    if (own().channel_scaling()) {
      channels = register_buffer("channels", torch::ones({1, layer_.in}));
    }
    if (!subtracts()) return;
    down_start = register_buffer("down_start", torch::zeros_like(down));
    up_start = register_buffer("up_start", torch::zeros_like(up));
  }

 private:
  // Factors of what has been learned since the start; differences first, so that it cancels exactly.
  Factors since_start(const torch::Tensor& now_down, const torch::Tensor& now_up) const {
    if (channels.defined()) return {now_down / channels, now_up};
    if (!subtracts()) return {now_down, now_up};
    return {torch::cat({now_down, now_down - down_start}, -2),
            torch::cat({now_up - up_start, up_start.expand_as(now_up)}, -1)};
  }

  bool subtracts() const {
    return start() == LoRAStart::pissa || start() == LoRAStart::olora ||
           start() == LoRAStart::corda || start() == LoRAStart::lora_ga;
  }

  void check_start() const {
    TORCH_CHECK_VALUE(own().niter() >= 0, "'", layer_.name, "': expected niter >= 0, got ",
                      own().niter());
    TORCH_CHECK_VALUE(own().niter() == 0 || start() == LoRAStart::pissa, "'", layer_.name,
                      "': niter cannot be combined with init_lora_weights ", to_string(start()),
                      ": only pissa has a fast form");
    TORCH_CHECK_VALUE(!own().channel_scaling() || !subtracts(), "'", layer_.name,
                      "': channel_scaling cannot be combined with init_lora_weights ",
                      to_string(start()), ", whose start is taken off the delta");
    if (start() == LoRAStart::standard) return;
    TORCH_CHECK_VALUE(options_.init() == Init::up_zero, "'", layer_.name, "': the init ",
                      to_string(options_.init()), " cannot be combined with init_lora_weights ",
                      to_string(start()), ", which says where both factors start");
    TORCH_CHECK_VALUE(options_.rank() <= std::min(layer_.in, layer_.out), "'", layer_.name,
                      "': expected rank <= ", std::min(layer_.in, layer_.out),
                      " (the weight's singular values), got ", options_.rank());
  }

  void take_bases(const torch::Tensor& weight) override {
    const torch::Tensor wide = weight.to(torch::kDouble);
    const int64_t r = options_.rank();
    if (start() == LoRAStart::pissa && own().niter() > 0) {
      const auto [u, s, vh] = detail::svd_lowrank(wide, r, own().niter());
      return start_at(halves(u, s, vh));
    }
    if (start() == LoRAStart::olora) {
      const auto [q, triangle] = at::linalg_qr(wide);
      return start_at({triangle.slice(0, 0, r), q.slice(1, 0, r)});
    }
    if (start() != LoRAStart::pissa && start() != LoRAStart::mica &&
        start() != LoRAStart::svd_down) {
      return;
    }
    const auto [u, s, vh] = at::linalg_svd(wide, /*full_matrices=*/false);
    if (start() == LoRAStart::pissa) {
      start_at(halves(u.slice(1, 0, r), s.slice(0, 0, r), vh.slice(0, 0, r)));
    } else if (start() == LoRAStart::mica) {
      start_at({torch::zeros_like(down), u.slice(1, u.size(1) - r)});
    } else {
      start_at({vh.slice(0, 0, r) / std::sqrt(3.0), torch::zeros_like(up)});
    }
  }

  // Half of the singular values on either side, so that scale * up * down has them.
  Factors halves(const at::Tensor& u, const at::Tensor& s, const at::Tensor& vh) const {
    const at::Tensor root = (s / scale()).sqrt();
    return {root.unsqueeze(1) * vh, u * root};
  }
};

/// A layer of type `Layer` with a ClassicLoRA adapter.
template <typename Layer>
using ClassicLoRA = AdaptedLayer<Layer, ClassicAdapterImpl>;

}  // namespace lightlora
