// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/detail/cayley.h>
#include <lightlora/layers.h>
#include <lightlora/variants/lokr.h>
#include <torch/nn/init.h>

#include <string>
#include <tuple>

namespace lightlora {

/// Options of diag-OFT.
struct DiagOFTOptions : VariantOptions<DiagOFTOptions> {
  using VariantOptions::VariantOptions;

  /// Trains the length of each row of the rotated weight too. Default: false.
  TORCH_ARG(bool, rescaled) = false;
  /// COFT: the skew matrices together stay within this norm times the number of outputs; 0 sets no
  /// bound. Default: 0.
  TORCH_ARG(double, constraint) = 0;

 public:
  static auto fields() {
    return std::make_tuple(
        option("rescaled", &DiagOFTOptions::rescaled_, "Train the length of each output's row too"),
        option("constraint", &DiagOFTOptions::constraint_,
               "Bound of the rotations' norm over the number of outputs; 0: none"));
  }
};

/// Adapter that rotates the layer's outputs, block by block: orthogonal fine-tuning on the output
/// side, as LyCORIS and ComfyUI have it.
/// Equation: weight + delta = rescale (.) R^T weight at scale 1, R block-diagonal with blocks
///           (I + Q)(I - Q)^-1, Q = B - B^T; delta = scale * (rescale (.) R^T - I) weight
/// Paper:    Qiu et al. 2023, "OFT", arXiv:2306.07280; Yeh et al. 2023, "LyCORIS", arXiv:2309.14859
/// Shapes:   trained oft_blocks (out / b, b, b), the B, and with `rescaled` rescale (out, 1); start
///           at zero and one. b is `rank` if it divides the outputs, otherwise the largest divisor
///           below it that is no larger than the number of blocks
/// Dtypes:   fp32, whatever the base is cast to; the rotation runs in it
/// Errors:   c10::ValueError if constraint < 0, or `init` is not the default
/// At scale 1 and alone, a linear layer's outputs are rotated (its bias is not), and no delta is
/// formed. Several adapters of one layer add their deltas up.
class DiagOFTAdapterImpl : public AdapterModule<DiagOFTAdapterImpl, DiagOFTOptions> {
 public:
  static constexpr const char* kVariant = "diag_oft";

  DiagOFTAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose rotations always start at zero");
    TORCH_CHECK_VALUE(own().constraint() >= 0, "'", layer_.name,
                      "': expected constraint >= 0, got ", own().constraint());
    reset();
  }

  void reset_parameters() override {
    torch::nn::init::zeros_(oft_blocks);
    if (rescale_rows.defined()) torch::nn::init::ones_(rescale_rows);
  }

  torch::Tensor added(const torch::Tensor& weight) const override {
    const torch::Tensor wide = weight.to(oft_blocks.scalar_type());
    const torch::Tensor split = wide.reshape({oft_blocks.size(0), block_, layer_.in});
    torch::Tensor turned = rotations().transpose(1, 2).bmm(split).reshape(wide.sizes());
    if (rescale_rows.defined()) turned = rescale_rows * turned;
    return (turned - wide) * scale();
  }

  torch::Tensor rotated_output(const torch::Tensor& y) const override {
    const torch::Tensor split =
        y.to(oft_blocks.scalar_type()).reshape({-1, oft_blocks.size(0), block_}).transpose(0, 1);
    torch::Tensor turned = split.bmm(rotations()).transpose(0, 1).reshape(y.sizes());
    if (rescale_rows.defined()) turned = turned * rescale_rows.flatten();
    return turned.to(y.scalar_type());
  }

  // A rotation has no factor: the sum that is added to the weight has.
  void rescale(double factor) override { set_scale(scale() * factor); }
  bool is_up_side(const std::string& /*name*/) const override { return true; }

  torch::Tensor oft_blocks;    ///< (out / b, b, b), trained
  torch::Tensor rescale_rows;  ///< (out, 1), trained as "rescale"; undefined unless `rescaled`

 protected:
  void register_tensors() override {
    block_ = kronecker_split(layer_.out, options_.rank()).first;
    if (layer_.out % options_.rank() == 0) block_ = std::min(block_, layer_.out / block_);
    oft_blocks =
        register_parameter("oft_blocks", torch::empty({layer_.out / block_, block_, block_}));
    if (own().rescaled()) {
      rescale_rows = register_parameter("rescale", torch::empty({layer_.out, 1}));
    }
  }

  std::string remarks() const override {
    return block_ == options_.rank() ? "" : ", blocks of " + std::to_string(block_);
  }

 private:
  bool factorises() const override { return false; }
  bool reads_weight() const override { return true; }
  bool rotates_outputs() const override { return scale() == 1.0; }

  // The blocks of R: (out / b, b, b).
  torch::Tensor rotations() const {
    const torch::Tensor skew = oft_blocks - oft_blocks.transpose(1, 2);
    const auto features = static_cast<double>(layer_.out);
    return detail::cayley_transform(detail::within_norm(skew, own().constraint() * features));
  }

  int64_t block_ = 1;
};

/// A layer of type `Layer` with a diag-OFT adapter.
template <typename Layer>
using DiagOFT = AdaptedLayer<Layer, DiagOFTAdapterImpl>;

}  // namespace lightlora
