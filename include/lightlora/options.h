// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>
#include <lightlora/config.h>
#include <lightlora/detail/option_text.h>
#include <torch/arg.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lightlora {

/// What the trained values start as. The adapter begins as the identity for each of them.
/// `up_zero` is the usual start (on an embedding ClassicLoRA then takes `down_zero`, as PEFT does);
/// `down_zero` is its mirror image; `both_zero` is a saddle: every gradient is exactly zero there,
/// so such an adapter can never move (kept to show just that).
enum class Init { up_zero, down_zero, both_zero };

/// How the frozen bases of LightLoRA and FusedDownUpLoRA are drawn.
/// `orthogonal`: orthonormal rows (down_aux) and columns (up_aux), the method's own choice.
/// `normal`: standard deviation 1, the described experiment that does not learn.
/// `normal_scaled`: standard deviation 1/sqrt(in) and 1/sqrt(out), so that the directions have
/// length about one, as the orthonormal ones have.
enum class AuxInit { orthogonal, normal, normal_scaled };

/// How a linear layer computes with a low-rank delta while it trains.
/// `automatic`: the cheaper of the two for the shape, see `choose_path`.
/// `bypass`: y = x W^T + s (x down^T) up^T. The weight is never written; works in every dtype.
/// `merged`: y = x (W + s up down)^T with the sum made for this call. One wide product each way,
/// but W' is as large as the weight, and in half precision it rounds small deltas away.
/// Both give the same gradients and neither forms the gradient of the frozen weight.
enum class Route { automatic, bypass, merged };

/// Options of one variant as text, by name.
using OwnOptions = std::map<std::string, std::string>;

/// The name of an initialisation, as flags and files spell it.
std::string to_string(Init init);
/// The name of a kind of basis, as flags and files spell it.
std::string to_string(AuxInit aux_init);
/// The initialisation of that name; c10::ValueError lists the known ones.
Init parse_init(const std::string& name);
/// The kind of basis of that name; c10::ValueError lists the known ones.
AuxInit parse_aux_init(const std::string& name);
/// The same, as the table of a variant's options reads it.
inline void from_string(const std::string& name, AuxInit& aux_init) {
  aux_init = parse_aux_init(name);
}

/// The name of a route, as flags spell it: auto, bypass, merged.
std::string to_string(Route route);
/// The route of that name; c10::ValueError lists the known ones.
Route parse_route(const std::string& name);

/// Options that every variant has. Those of a single variant have a type of their own beside it,
/// such as `LoKrOptions`, which converts to this one.
///
/// Example: `LoRAOptions().rank(8).network_alpha(4)`.
struct LoRAOptions {
  LoRAOptions() = default;
  /// The one option that nearly everyone sets.
  /* implicit */ LoRAOptions(int64_t rank) : rank_(rank) {}

  /// Inner width of the two trained factors. Default: 4.
  TORCH_ARG(int64_t, rank) = 4;
  /// Scale of the delta times the rank: `scale = network_alpha / rank`. Unset: scale 1.
  TORCH_ARG(std::optional<double>, network_alpha) = std::nullopt;
  /// What the trained values start as. Default: `up_zero`.
  TORCH_ARG(Init, init) = Init::up_zero;
  /// Rank-stabilised scale, `network_alpha / sqrt(rank)` (Kalajdzievski 2023, arXiv:2312.03732):
  /// the size of the delta then does not fall with the rank. Default: false.
  TORCH_ARG(bool, rslora) = false;
  /// DoRA (Liu et al. 2024, arXiv:2402.09353): the rows of weight + delta are brought to a trained
  /// length, `magnitude`. With any variant that adds to the weight; (IA)3 refuses it. Default:
  /// false.
  TORCH_ARG(bool, dora) = false;
  /// DoRA: one length for each input channel in place of each output, as LyCORIS had it before 3.2.
  /// Default: false.
  TORCH_ARG(bool, dora_inputs) = false;
  /// Probability of leaving out an input of the adapter (not of its layer) in training. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;
  /// Probability of leaving out each rank of the factors in a call in training; the others count
  /// 1 / (1 - rank_dropout) times, as in sd-scripts. For variants with factors. Default: 0.
  TORCH_ARG(double, rank_dropout) = 0.0;
  /// Probability that a layer computes without the adapter in a call in training, as in LyCORIS and
  /// sd-scripts. Default: 0.
  TORCH_ARG(double, module_dropout) = 0.0;
  /// The variant's own options as text, by name: how they travel through files, flags and a variant
  /// chosen at run time, as in `LoRAOptions(8).own({{"decompose_factor", "4"}})`. A name that the
  /// variant does not take is an error when the adapter is made. Default: none.
  TORCH_ARG(OwnOptions, own) = {};
};

/// What an option of a variant's own is, as `VariantOptions` declares it.
template <typename Options, typename Value>
struct OptionField {
  const char* name;        ///< in files, flags and on the run-time route
  Value Options::* value;  ///< the member
  const char* help;        ///< one line, shown by `--help`
};

/// One line of a variant's table of options.
template <typename Options, typename Value>
constexpr OptionField<Options, Value> option(const char* name, Value Options::* value,
                                             const char* help) {
  return {name, value, help};
}

/// Base of the options of one variant: the shared ones, and what the variant adds. It converts to
/// LoRAOptions, which carry the added ones as text, so nothing is lost where those are passed by
/// value.
///
///     struct MyOptions : VariantOptions<MyOptions> {
///       using VariantOptions::VariantOptions;
///       TORCH_ARG(int64_t, width) = 8;
///       static auto fields() { return std::make_tuple(option("width", &MyOptions::width_, "..."));
///       }
///     };
///
/// Values: bool, integers, floating-point numbers, vectors of integers, and enumerations with a
/// `to_string(value)` and a `from_string(text, value)` in their namespace.
template <typename Derived>
class VariantOptions {
 public:
  VariantOptions() = default;
  /* implicit */ VariantOptions(int64_t rank) : shared_(rank) {}
  /// Adds to options that are shared.
  /// Errors: c10::ValueError if they hold some variant's own
  explicit VariantOptions(LoRAOptions shared) : shared_(std::move(shared)) {
    TORCH_CHECK_VALUE(shared_.own().empty(), "'", shared_.own().begin()->first,
                      "': expected shared options only, got an option of a variant");
  }

  Derived& rank(int64_t value) { return set(shared_.rank(value)); }
  Derived& network_alpha(std::optional<double> value) { return set(shared_.network_alpha(value)); }
  Derived& init(Init value) { return set(shared_.init(value)); }
  Derived& rslora(bool value) { return set(shared_.rslora(value)); }
  Derived& dora(bool value) { return set(shared_.dora(value)); }
  Derived& dora_inputs(bool value) { return set(shared_.dora_inputs(value)); }
  Derived& dropout(double value) { return set(shared_.dropout(value)); }
  Derived& rank_dropout(double value) { return set(shared_.rank_dropout(value)); }
  Derived& module_dropout(double value) { return set(shared_.module_dropout(value)); }

  /// What every variant has.
  const LoRAOptions& shared() const { return shared_; }
  /// Everything, the variant's own as text.
  /* implicit */ operator LoRAOptions() const {
    LoRAOptions all = shared_;
    return all.own(detail::own_to_text(static_cast<const Derived&>(*this)));
  }

 private:
  Derived& set(const LoRAOptions& /*changed*/) { return static_cast<Derived&>(*this); }

  LoRAOptions shared_;
};

/// The layer that an adapter belongs to, seen as one matrix.
struct LayerInfo {
  /// Path of the layer in its model, as `named_modules()` spells it ("" for a single layer).
  std::string name;
  /// Columns of the weight seen as a matrix: inputs (for a convolution, inputs times kernel size).
  int64_t in = 0;
  /// Rows of the weight seen as a matrix: outputs.
  int64_t out = 0;
  /// Kernel size of a convolution, which its inputs are multiplied by; empty for other layers.
  std::vector<int64_t> kernel = {};
  /// Kernel size of a transposed convolution, which its outputs are multiplied by.
  std::vector<int64_t> out_kernel = {};
  /// Whether the inputs are numbers of rows to look up, as an embedding's are.
  bool lookup = false;
  /// Type of the layer, such as "Linear" or "Embedding", and "MultiheadAttention" for all projections
  /// of one; empty where nobody says it, as in files of other programs.
  std::string type = {};
  /// Which of a layer's weights it is where there are several: "in_proj", "weight_ih_l0".
  std::string part = {};
  /// Groups of a convolution.
  int64_t groups = 1;
  /// Options of the layer that bear on its outputs and that another program may not take over where
  /// it computes an adapter's part beside the layer: "padding_mode", "dilation", and "stride" or
  /// "padding" that is not one number, of a convolution; "max_norm" of an embedding.
  std::vector<std::string> uncommon = {};
  /// The row of an embedding that no adapter changes, its `padding_idx`; -1: none.
  int64_t padding_row = -1;

  /// Whether it is no layer's matrix but a vector beside one, seen as (out, 1): weight or bias of a
  /// norm (type "Norm") or the bias of a layer (type "Bias").
  bool is_vector() const { return type == "Norm" || type == "Bias"; }
};

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/options-inl.h>
#endif
