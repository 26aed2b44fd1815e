// SPDX-License-Identifier: Apache-2.0
#pragma once

/// \file
/// The frozen weights of a model, kept in another form: packed for a CPU's kernels, in eight or four
/// bits, or grouped for one product.

#include <lightlora/config.h>
#include <lightlora/detail/four_bit_weight.h>
#include <lightlora/detail/interception.h>
#include <lightlora/detail/quantised_weight.h>
#include <torch/arg.h>
#include <torch/nn/modules/linear.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lightlora {

/// While it lives, layers of this thread compute from packed weights. Movable, within that thread.
class Packing {
 public:
  /// Nothing is packed.
  Packing() = default;

 private:
  friend class PackedWeights;
  std::optional<detail::ActiveScope> scope_;
};

/// The frozen weights of a model once more, in the layout that the CPU's kernels (oneDNN) read.
/// LibTorch's own operators bring a weight into it in every call, which with few rows or pixels costs
/// more than the product. Packed once, at a weight's first use, it costs the weight's memory again,
/// and twice where gradients pass. The model stays as it is; every change of a weight is seen.
/// Weights of linear layers and of 2-d convolutions without groups are taken, in fp32, and in bf16
/// where the processor has it; what trains, other dtypes and devices, and autocast compute as ever.
///
///     const auto packed = lightlora::pack_weights(*model);
///     const auto packing = packed.activate();  // in each thread that calls the model
///     model->forward(x);                       // with adapters or without
class PackedWeights {
 public:
  /// None.
  PackedWeights() = default;

  /// Lets the layers use them, in this thread, as long as the result lives.
  [[nodiscard]] Packing activate() const;

  /// How many weights there are.
  std::size_t size() const;

 private:
  friend PackedWeights pack_weights(
      torch::nn::Module& model,
      const std::function<bool(const std::string&, const torch::Tensor&)>& chooses);
  struct Copies;
  std::shared_ptr<Copies> copies_;
};

/// Packs the weights of a model's layers; only those for which `chooses(path, weight)`, if given.
PackedWeights pack_weights(
    torch::nn::Module& model,
    const std::function<bool(const std::string&, const torch::Tensor&)>& chooses = {});

/// How, and of what, quantized weights are made.
struct QuantizeOptions {
  /// A layer's weight by its path; `weight` is the one that the model has.
  using Source = std::function<torch::Tensor(const std::string& path, const torch::Tensor& weight)>;

  /// Default: int8.
  TORCH_ARG(WeightFormat, format) = WeightFormat::int8;
  /// NF4: keep the factors of the blocks in eight bits too, 4.13 bits for a number in all instead of
  /// 4.5. Default: false, as in bitsandbytes.
  TORCH_ARG(bool, double_quant) = false;
  /// Gives a layer's weight for the one that the model has, which is not read then; full, or
  /// quantized already, as `TensorFile::load_quantized` gives it. So a model is filled and quantized
  /// one weight after the other, and never in memory in full. Default: the model's own.
  TORCH_ARG(Source, source);
};

/// Keeps the weights of a model's layers in eight or four bits from now on, and lets their memory go.
/// The model's code, adapters of every variant and files of adapters go on as before, in any thread;
/// gradients reach the input, not the weights, which are frozen.
/// `int8`: a quarter of fp32's memory is left, and on a CPU with AVX-512 VNNI products take about half
/// of the time that they take in bf16. The result differs from the full product by about a percent of
/// its size. Taken are `Linear`, and `Conv2d` with stride 1, without groups, dilation and padding
/// modes.
/// Equation: y = s_x s_o (q_x q_o^T) + b with q = round(v / s), s = max |v| / 127; one s_o for each
///           output, one s_x for each row of x, in a convolution for each row of the image. The
///           gradient of x is computed alike from that of y
/// `nf4`: a seventh of fp32's memory is left; every call makes the full weight, forward and backward,
/// and computes as ever with it. Taken are `Linear`, `Conv1d`, `Conv2d` and `Conv3d`.
/// Equation: w = m_b t[q] with q one of 16 values t, m_b = max |w| of each 64 numbers.
///           Paper: Dettmers et al. 2023, arXiv:2305.14314
/// Weights have to be in fp32, bf16 or fp16; only those for which `chooses(path, weight)`, if given. Any
/// other use of such a weight gets it in full, rounded. Quantize last: moving or casting the model, or
/// cloning it, brings full weights back.
/// Returns how many weights are quantized by this call.
/// Errors: c10::Error of what would change such a weight, merging among it, and of training it
/// Differs from torchao's `quantize_` with Int8DynamicActivationInt8WeightConfig: convolutions too,
///           and gradients pass. The bits of NF4 are bitsandbytes', which has it for `Linear` alone
std::size_t quantize(
    torch::nn::Module& model,
    const std::function<bool(const std::string&, const torch::Tensor&)>& chooses = {},
    const QuantizeOptions& options = {});

/// Gives the layers full weights again, which are those of `quantize`, rounded as they were; to
/// merge into them, for example. They stay frozen. Returns how many there were.
std::size_t dequantize(torch::nn::Module& model);

/// Lays the weights of several linear layers one behind the other in one piece of memory, so that
/// `linear_group` can take them in one product. They stay parameters of their own: loading, saving,
/// merging and adapting go on as before. Moving or casting a layer undoes it; call this afterwards.
/// Errors: c10::ValueError unless the layers have the same inputs, dtype and device
void group_weights(const std::vector<torch::nn::LinearImpl*>& layers);

/// Several linear layers of one input, such as to_q, to_k and to_v, in one product: three kernels
/// forward instead of nine with adapters on them, one instead of three without.
/// Equation: y_i = layers[i](x)
/// Shapes:   x (..., in), y_i (..., out_i)
/// Layers that `group_weights` has not laid out, with a bias or a weight that trains are called one
/// by one, and adapters with dropout, without factors or without gradients are applied one by one.
std::vector<at::Tensor> linear_group(const at::Tensor& x,
                                     const std::vector<torch::nn::LinearImpl*>& layers);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/packing-inl.h>
#endif
