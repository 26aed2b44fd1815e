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

/// Options of BOFT.
struct BOFTOptions : VariantOptions<BOFTOptions> {
  using VariantOptions::VariantOptions;

  /// Butterfly factors; 0: as many as let each feature reach every other, as in LyCORIS. A layer that
  /// has no room for that many gets fewer. Default: 0.
  TORCH_ARG(int64_t, factors) = 0;
  /// Rotates the inputs, as PEFT does, and not the outputs, as LyCORIS does. Default: false.
  TORCH_ARG(bool, input_side) = false;
  /// Trains the length of each row of the rotated weight too, as PEFT always does. Default: false.
  TORCH_ARG(bool, rescaled) = false;
  /// COFT: the skew matrices together stay within this norm times the number of features that they
  /// rotate; 0 sets no bound. Default: 0.
  TORCH_ARG(double, constraint) = 0;

 public:
  static auto fields() {
    return std::make_tuple(
        option("factors", &BOFTOptions::factors_, "Butterfly factors; 0: as many as fit"),
        option("input_side", &BOFTOptions::input_side_, "Rotate inputs instead of outputs"),
        option("rescaled", &BOFTOptions::rescaled_, "Train the length of each output's row too"),
        option("constraint", &BOFTOptions::constraint_,
               "Bound of the rotations' norm over the number of features; 0: none"));
  }
};

/// Adapter that rotates a layer's outputs or inputs by a product of sparse rotations: orthogonal
/// fine-tuning in which small blocks reach all features, as in a fast Fourier transform.
/// Equation: weight + delta = rescale (.) M weight at scale 1, with `input_side` rescale (.) weight
///           M^T; M = B_m ... B_1. B_i takes features 2^(i-1) b / 2 apart in pairs, and rotates each b
///           neighbours of that order by (I + Q)(I - Q)^-1, Q = A - A^T; delta = scale * (that - weight)
/// Paper:    Liu et al. 2023, "BOFT", arXiv:2311.06243
/// Shapes:   trained oft_blocks (m, features / b, b, b), the A, and with `rescaled` rescale (out, 1);
///           start at zero and one. b is `rank` if `factors` is given and the layer has room for them;
///           otherwise the largest even width not above `rank` of which the features are 2^n, or the
///           smallest one. Of an odd number of features one factor rotates blocks of a divisor
/// Dtypes:   fp32, whatever the base is cast to; the rotation runs in it
/// Errors:   c10::ValueError if factors < 0 or constraint < 0, or `init` is not the default
/// At scale 1 and alone, a linear layer's inputs or outputs (but not its bias) are rotated, and no
/// delta is formed. Several adapters of one layer add their deltas up. Another scale multiplies the
/// delta (in LyCORIS it draws each factor nearer to the identity, and in PEFT there is none).
class BOFTAdapterImpl : public AdapterModule<BOFTAdapterImpl, BOFTOptions> {
 public:
  static constexpr const char* kVariant = "boft";

  BOFTAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose rotations always start at zero");
    TORCH_CHECK_VALUE(own().factors() >= 0, "'", layer_.name, "': expected factors >= 0, got ",
                      own().factors());
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
    torch::Tensor turned =
        own().input_side() ? product(wide, /*back=*/false) : product(wide.t(), false).t();
    if (rescale_rows.defined()) turned = rescale_rows * turned;
    return (turned - wide) * scale();
  }

  torch::Tensor rotated(const torch::Tensor& x) const override {
    return product(x.to(oft_blocks.scalar_type()), /*back=*/true).to(x.scalar_type());
  }

  torch::Tensor rotated_output(const torch::Tensor& y) const override {
    torch::Tensor turned = y.to(oft_blocks.scalar_type());
    if (!own().input_side()) turned = product(turned, /*back=*/false);
    if (rescale_rows.defined()) turned = turned * rescale_rows.flatten();
    return turned.to(y.scalar_type());
  }

  // A rotation has no factor: the sum that is added to the weight has.
  void rescale(double factor) override { set_scale(scale() * factor); }
  bool is_up_side(const std::string& name) const override {
    return name == "rescale" || !own().input_side();
  }

  torch::Tensor oft_blocks;    ///< (m, features / b, b, b), trained
  torch::Tensor rescale_rows;  ///< (out, 1), trained as "rescale"; undefined unless `rescaled`

 protected:
  void register_tensors() override {
    const int64_t width = own().input_side() ? layer_.in : layer_.out;
    block_ = block_of(width);
    const int64_t count = width / block_, most = most_factors(count);
    const int64_t wanted = own().factors();
    const int64_t factors = wanted == 0 ? most : std::min(wanted, most);
    oft_blocks = register_parameter("oft_blocks", torch::empty({factors, count, block_, block_}));
    if (own().rescaled()) {
      rescale_rows = register_parameter("rescale", torch::empty({layer_.out, 1}));
    }
  }

  std::string remarks() const override {
    return (block_ == options_.rank() ? "" : ", blocks of " + std::to_string(block_)) + ", " +
           std::to_string(oft_blocks.size(0)) + (oft_blocks.size(0) == 1 ? " factor" : " factors");
  }

 private:
  bool factorises() const override { return false; }
  bool reads_weight() const override { return true; }
  bool rotates() const override { return own().input_side() && scale() == 1.0; }
  bool rotates_outputs() const override {
    return scale() == 1.0 && (!own().input_side() || own().rescaled());
  }

  // How many factors there can be: each doubles how far a feature reaches, and odd blocks have no
  // halves to pair.
  int64_t most_factors(int64_t count) const {
    int64_t most = 1;
    for (int64_t rest = count; block_ % 2 == 0 && rest % 2 == 0; rest /= 2) ++most;
    return most;
  }

  int64_t block_of(int64_t width) const {
    const int64_t wanted = options_.rank(), factors = own().factors();
    const auto power_of_two = [](int64_t n) { return (n & (n - 1)) == 0; };
    if (factors > 0 && factors < 32) {
      const int64_t groups = int64_t{1} << (factors - 1);
      const bool fits = width % wanted == 0 && width / wanted % groups == 0;
      if (fits && (factors == 1 || wanted % 2 == 0)) return wanted;
    }
    // Upwards from the smallest one, of which there is one in any width: itself.
    int64_t block = 0;
    for (int64_t next = width % 2 == 0 ? 2 : 3; next <= width; next += 2) {
      const bool usable = width % next == 0 && (width % 2 != 0 || power_of_two(width / next));
      if (usable && (block == 0 || next <= wanted)) block = next;
      if (block != 0 && next >= wanted) break;
    }
    return std::max<int64_t>(block, 1);
  }

  // The blocks of all factors: (m, features / b, b, b).
  torch::Tensor rotations() const {
    const torch::Tensor skew = oft_blocks - oft_blocks.transpose(-1, -2);
    const auto features = static_cast<double>(skew.size(1) * block_);
    return detail::cayley_transform(detail::within_norm(skew, own().constraint() * features));
  }

  // M v for each row v, or with `back` M^T v: (..., features).
  torch::Tensor product(const torch::Tensor& rows, bool back) const {
    const torch::Tensor blocks = rotations();
    const int64_t factors = blocks.size(0), count = blocks.size(1), width = count * block_;
    torch::Tensor v = rows.reshape({-1, width});
    const bool paired = block_ % 2 == 0;
    for (int64_t i = 0; i < factors; ++i) {
      const int64_t factor = back ? factors - 1 - i : i;
      const int64_t apart = (int64_t{1} << factor) * (block_ / 2);
      if (paired) v = v.reshape({v.size(0), -1, 2, apart}).transpose(2, 3);
      const torch::Tensor split = v.reshape({-1, count, block_}).transpose(0, 1);
      v = split.bmm(back ? blocks[factor] : blocks[factor].transpose(1, 2)).transpose(0, 1);
      if (paired) v = v.reshape({v.size(0), -1, apart, 2}).transpose(2, 3);
      v = v.reshape({-1, width});
    }
    return v.reshape(rows.sizes());
  }

  int64_t block_ = 1;
};

/// A layer of type `Layer` with a BOFT adapter.
template <typename Layer>
using BOFT = AdaptedLayer<Layer, BOFTAdapterImpl>;

}  // namespace lightlora
