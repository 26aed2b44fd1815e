// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <cmath>
#include <numeric>
#include <string>
#include <tuple>

namespace lightlora {

/// Options of GraLoRA.
struct GraLoRAOptions : VariantOptions<GraLoRAOptions> {
  using VariantOptions::VariantOptions;

  /// How many blocks each side of the weight is cut into; the largest number up to this that divides
  /// both sides and the rank is taken. Default: 2.
  TORCH_ARG(int64_t, blocks) = 2;

 public:
  static auto fields() {
    return std::make_tuple(
        option("blocks", &GraLoRAOptions::blocks_, "Blocks on each side of the weight"));
  }
};

/// Adapter with a low-rank pair of its own for each of k x k blocks of the weight: as many values as
/// LoRA of the same rank, and k times the rank in all.
/// Equation: delta of block (m, n) = scale * up[m, n-th part]^T * down[n, m-th part]^T
/// Paper:    Jung et al. 2025, "GraLoRA", arXiv:2505.20355
/// Shapes:   trained down (k, in / k, rank), up (k, rank, out / k), as PEFT's gralora_A, gralora_B
/// Dtypes:   fp32, whatever the base is cast to; products run in the dtype of the input
/// Errors:   c10::ValueError if rank < 1 or blocks < 1
class GraLoRAAdapterImpl : public AdapterModule<GraLoRAAdapterImpl, GraLoRAOptions> {
 public:
  static constexpr const char* kVariant = "gralora";

  GraLoRAAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    TORCH_CHECK_VALUE(own().blocks() >= 1, "'", layer_.name, "': expected blocks >= 1, got ",
                      own().blocks());
    reset();
  }

  void reset_parameters() override {
    torch::NoGradGuard no_grad;
    const auto uniform = [&](torch::Tensor& t, int64_t fan_in) {
      const double bound = 1 / std::sqrt(static_cast<double>(fan_in));
      t.uniform_(-bound, bound);
    };
    options_.init() == Init::up_zero ? uniform(down, down.size(1)) : void(down.zero_());
    options_.init() == Init::down_zero ? uniform(up, options_.rank()) : void(up.zero_());
  }

  int64_t rank() const override { return has_factors() ? inner() : options_.rank(); }

  // Inside, one row for each of (block of inputs, block of outputs, rank of the pair).
  Factors factors() const override {
    const int64_t k = blocks(), part = options_.rank() / k;
    const torch::Tensor of_blocks =
        up.view({k, k, part, layer_.out / k}).permute({0, 3, 1, 2}).unsqueeze(3);
    const torch::Tensor own_block = torch::eye(k, up.options()).view({k, 1, 1, k, 1});
    return {torch::block_diag(down.transpose(1, 2).unbind(0)),
            (of_blocks * own_block).reshape({layer_.out, inner()})};
  }

  torch::Tensor down;  ///< (k, in / k, rank), trained
  torch::Tensor up;    ///< (k, rank, out / k), trained

 protected:
  void register_tensors() override {
    const int64_t common = std::gcd(std::gcd(layer_.in, layer_.out), options_.rank());
    blocks_ = std::min(own().blocks(), common);
    while (common % blocks_ != 0) --blocks_;
    down =
        register_parameter("down", torch::empty({blocks_, layer_.in / blocks_, options_.rank()}));
    up = register_parameter("up", torch::empty({blocks_, options_.rank(), layer_.out / blocks_}));
  }

  std::string remarks() const override {
    return blocks_ == own().blocks() ? "" : ", clamped to " + std::to_string(blocks_) + " blocks";
  }

 private:
  // Wider factors than this cost more than the delta.
  bool factorises() const override { return 2 * inner() <= std::min(layer_.in, layer_.out); }
  int64_t blocks() const { return blocks_; }
  int64_t inner() const { return blocks_ * options_.rank(); }

  int64_t blocks_ = 1;
};

/// A layer of type `Layer` with a GraLoRA adapter.
template <typename Layer>
using GraLoRA = AdaptedLayer<Layer, GraLoRAAdapterImpl>;

}  // namespace lightlora
