// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <torch/arg.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lightlora {

/// What the trained values start as. The adapter begins as the identity for each of them.
/// `up_zero` is the usual start (on an embedding ClassicLoRA then takes `down_zero`, as PEFT does); `down_zero` is its mirror image; `both_zero` is a saddle: every
/// gradient is exactly zero there, so such an adapter can never move (kept to show just that).
enum class Init { up_zero, down_zero, both_zero };

/// How the frozen bases of LightLoRA and FusedDownUpLoRA are drawn.
/// `orthogonal`: orthonormal rows (down_aux) and columns (up_aux), the method's own choice.
/// `normal`: standard deviation 1, the described experiment that does not learn.
/// `normal_scaled`: standard deviation 1/sqrt(in) and 1/sqrt(out), so that the directions have
/// length about one, as the orthonormal ones have.
enum class AuxInit { orthogonal, normal, normal_scaled };

/// How a linear layer computes with a low-rank delta while it trains.
/// `automatic`: the cheaper of the two for the shape, see `choose_route`.
/// `bypass`: y = x W^T + s (x down^T) up^T. The weight is never written; works in every dtype.
/// `merged`: y = x (W + s up down)^T with the sum made for this call. One wide product each way,
/// but W' is as large as the weight, and in half precision it rounds small deltas away.
/// Both give the same gradients and neither forms the gradient of the frozen weight.
enum class Route { automatic, bypass, merged };

/// The name of an initialisation, as flags and files spell it.
std::string to_string(Init init);
/// The name of a kind of basis, as flags and files spell it.
std::string to_string(AuxInit aux_init);
/// The initialisation of that name; c10::ValueError lists the known ones.
Init parse_init(const std::string& name);
/// The kind of basis of that name; c10::ValueError lists the known ones.
AuxInit parse_aux_init(const std::string& name);

/// The name of a route, as flags spell it: auto, bypass, merged.
std::string to_string(Route route);
/// The route of that name; c10::ValueError lists the known ones.
Route parse_route(const std::string& name);

/// Options shared by all variants; a variant ignores what it has no use for.
///
/// Example: `LoRAOptions().rank(8).network_alpha(4)`.
struct LoRAOptions {
  LoRAOptions() = default;
  /// The one option that nearly everyone sets.
  /* implicit */ LoRAOptions(int64_t rank) : rank_(rank) {}

  /// Inner width of the two trained factors. Fused trains its whole core and uses it for `split`
  /// and for the scale only. Default: 4.
  TORCH_ARG(int64_t, rank) = 4;
  /// Scale of the delta times the rank: `scale = network_alpha / rank`. Unset: scale 1.
  TORCH_ARG(std::optional<double>, network_alpha) = std::nullopt;
  /// What the trained values start as. Default: `up_zero`.
  TORCH_ARG(Init, init) = Init::up_zero;
  /// How the frozen bases are drawn (Light, Fused). Default: `orthogonal`.
  TORCH_ARG(AuxInit, aux_init) = AuxInit::orthogonal;
  /// Directions on the input side, clamped to the layer's input width (Light, Fused). Default: 100.
  TORCH_ARG(int64_t, aux_in) = 100;
  /// Directions on the output side, clamped to the layer's output width (Light, Fused). Default: 50.
  TORCH_ARG(int64_t, aux_out) = 50;
  /// Seed of the frozen bases (Light, Fused, VeRA); with the layer's name and shape it names them
  /// completely, so that files need not hold them. Default: 0.
  TORCH_ARG(uint64_t, aux_seed) = 0;
  /// Rank-stabilised scale, `network_alpha / sqrt(rank)` (Kalajdzievski 2023, arXiv:2312.03732): the
  /// size of the delta then does not fall with the rank. Default: false.
  TORCH_ARG(bool, rslora) = false;
  /// DoRA (Liu et al. 2024, arXiv:2402.09353): the rows of weight + delta are brought to a trained
  /// length, `magnitude`. With any variant that adds to the weight; (IA)3 refuses it. Default: false.
  TORCH_ARG(bool, dora) = false;
  /// DoRA: one length for each input channel in place of each output, as LyCORIS had it before 3.2.
  /// Default: false.
  TORCH_ARG(bool, dora_inputs) = false;
  /// Probability of leaving out an input of the adapter (not of its layer) in training. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;
  /// LoKr: the smaller side of the split of inputs and outputs; -1 takes the most even one.
  /// Default: -1.
  TORCH_ARG(int64_t, decompose_factor) = -1;
  /// LoKr: whether the left matrix may be of low rank too. Default: false.
  TORCH_ARG(bool, decompose_both) = false;
  /// LoKr: both matrices in full, whatever the rank. Default: false.
  TORCH_ARG(bool, full_matrix) = false;
  /// LoKr: rows and columns of the left matrix, in place of `decompose_factor`. Default: empty.
  TORCH_ARG(std::vector<int64_t>, lokr_shape) = {};
  /// (IA)3: scales the layer's inputs, as the paper does for the second feed-forward layer, instead
  /// of its outputs. Default: false.
  TORCH_ARG(bool, scale_input) = false;
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
};

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/options-inl.h>
#endif
