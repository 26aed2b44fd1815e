// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/detail/cayley.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <algorithm>
#include <string>
#include <tuple>

namespace lightlora {

/// Options of OFT.
struct OFTOptions : VariantOptions<OFTOptions> {
  using VariantOptions::VariantOptions;

  /// Width b of the blocks that rotate; of a layer whose inputs it does not divide the nearest width
  /// that does. Default: 32.
  TORCH_ARG(int64_t, block_size) = 32;
  /// Terms of the Neumann series that stands for the inverse; 0 computes it exactly. Default: 5.
  TORCH_ARG(int64_t, neumann_terms) = 5;

 public:
  static auto fields() {
    return std::make_tuple(
        option("block_size", &OFTOptions::block_size_, "Width of the blocks that rotate"),
        option("neumann_terms", &OFTOptions::neumann_terms_,
               "Terms of the series for the inverse; 0: exact"));
  }
};

/// Adapter that rotates the layer's inputs, block by block, and so keeps the angles between the rows
/// of the weight: orthogonal fine-tuning on the input side, OFTv2.
/// Equation: y = (x R) weight^T + bias, R block-diagonal with blocks (I + Q)(I - Q)^-1 and Q skew; of
///           the series I + 2 Q + 2 Q^2 + ... the first terms. As a sum: delta = weight (R^T - I)
/// Paper:    Qiu et al. 2023, "OFT", arXiv:2306.07280; Qiu et al. 2025, "OFTv2", arXiv:2506.19847
/// Shapes:   trained q (in / b, b (b - 1) / 2), the upper triangles of Q, row by row; starts at zero
/// Dtypes:   fp32, whatever the base is cast to; the rotation runs in it
/// Errors:   c10::ValueError if block_size < 2 or neumann_terms < 0, or `init` is not the default
/// At scale 1 and alone, a linear layer gets rotated inputs, and no delta is formed. Several adapters
/// of one layer add their deltas up (PEFT rotates one after the other). `rank` is not used.
/// Differs from PEFT: its exact form is (I - Q)(I + Q)^-1, the other direction than its series; here
/// both turn the same way.
class OFTAdapterImpl : public AdapterModule<OFTAdapterImpl, OFTOptions> {
 public:
  static constexpr const char* kVariant = "oft";

  OFTAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose rotations always start at zero");
    TORCH_CHECK_VALUE(own().block_size() >= 2, "'", layer_.name,
                      "': expected block_size >= 2, got ", own().block_size());
    TORCH_CHECK_VALUE(own().neumann_terms() >= 0, "'", layer_.name,
                      "': expected neumann_terms >= 0, got ", own().neumann_terms());
    reset();
  }

  void reset_parameters() override { torch::nn::init::zeros_(q); }

  torch::Tensor added(const torch::Tensor& weight) const override {
    const torch::Tensor wide = weight.to(q.scalar_type());
    return (in_blocks(wide, rotations().transpose(1, 2)) - wide) * scale();
  }

  torch::Tensor rotated(const torch::Tensor& x) const override {
    return in_blocks(x.to(q.scalar_type()), rotations()).to(x.scalar_type());
  }

  // A rotation has no factor: the sum that is added to the weight has.
  void rescale(double factor) override { set_scale(scale() * factor); }

  torch::Tensor q;  ///< (in / b, b (b - 1) / 2), trained

 protected:
  void register_tensors() override {
    block_ = nearest_divisor(layer_.in, own().block_size());
    q = register_parameter("q", torch::empty({layer_.in / block_, block_ * (block_ - 1) / 2}));
  }

  std::string remarks() const override {
    return block_ == own().block_size() ? "" : ", blocks of " + std::to_string(block_);
  }

 private:
  bool factorises() const override { return false; }
  bool reads_weight() const override { return true; }
  bool rotates() const override { return scale() == 1.0; }

  // As PEFT chooses it: the nearer one, of two at one distance the smaller.
  static int64_t nearest_divisor(int64_t size, int64_t wanted) {
    if (wanted >= size) return size;
    int64_t above = wanted, below = wanted;
    while (size % above != 0) ++above;
    while (size % below != 0) --below;
    return wanted - below <= above - wanted ? below : above;
  }

  // The blocks of R: (in / b, b, b).
  torch::Tensor rotations() const {
    const auto places = torch::triu_indices(block_, block_, 1, q.options().dtype(torch::kLong));
    const torch::Tensor upper = torch::zeros({q.size(0), block_ * block_}, q.options())
                                    .index_copy(1, places[0] * block_ + places[1], q)
                                    .view({-1, block_, block_});
    const torch::Tensor skew = upper - upper.transpose(1, 2);
    const int64_t terms = own().neumann_terms();
    if (terms == 0) return detail::cayley_transform(skew);
    const torch::Tensor one = torch::eye(block_, q.options());
    if (terms == 1) return one.expand_as(skew);
    // As PEFT counts: from three on up to Q^3 at least, and the last power once instead of twice.
    const int64_t last = terms == 2 ? 1 : std::max<int64_t>(3, terms - 1);
    torch::Tensor sum = one + 2 * skew, power = skew;
    for (int64_t exponent = 2; exponent <= last; ++exponent) {
      power = power.bmm(skew);
      sum = sum + (exponent == last ? power : 2 * power);
    }
    return sum;
  }

  // Each row of b inputs times its block: (..., in) by (in / b, b, b).
  torch::Tensor in_blocks(const torch::Tensor& rows, const torch::Tensor& blocks) const {
    const torch::Tensor split = rows.reshape({-1, blocks.size(0), block_}).transpose(0, 1);
    return split.bmm(blocks).transpose(0, 1).reshape(rows.sizes());
  }

  int64_t block_ = 2;
};

/// A layer of type `Layer` with an OFT adapter.
template <typename Layer>
using OFT = AdaptedLayer<Layer, OFTAdapterImpl>;

}  // namespace lightlora
