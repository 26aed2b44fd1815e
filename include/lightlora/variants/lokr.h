// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <cmath>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace lightlora {

/// The two factors of a size that LoKr splits it into, the smaller one first: `factor` if it
/// divides the size, otherwise the most even pair whose smaller one is at most `factor` (-1: no
/// limit).
/// Errors: c10::ValueError if size < 1, or factor is neither -1 nor positive
inline std::pair<int64_t, int64_t> kronecker_split(int64_t size, int64_t factor) {
  TORCH_CHECK_VALUE(size >= 1 && (factor >= 1 || factor == -1),
                    "expected a size >= 1 and a factor >= 1 or -1, got ", size, " and ", factor);
  if (factor > 0 && size % factor == 0) return {factor, size / factor};
  int64_t best = 1;
  for (int64_t m = 1; m * m <= size && (factor == -1 || m <= factor); ++m) {
    if (size % m == 0) best = m;
  }
  return {best, size / best};
}

/// Options of LoKr.
///
/// Example: `LoKrOptions(8).decompose_factor(4)`.
struct LoKrOptions : VariantOptions<LoKrOptions> {
  using VariantOptions::VariantOptions;

  /// The smaller side of the split of inputs and outputs; -1 takes the most even one. Default: -1.
  TORCH_ARG(int64_t, decompose_factor) = -1;
  /// Whether the left matrix may be of low rank too. Default: false.
  TORCH_ARG(bool, decompose_both) = false;
  /// Both matrices in full, whatever the rank. Default: false.
  TORCH_ARG(bool, full_matrix) = false;
  /// Rows and columns of the left matrix, in place of `decompose_factor`. Default: empty.
  TORCH_ARG(std::vector<int64_t>, lokr_shape) = {};

 public:
  static auto fields() {
    return std::make_tuple(
        option("decompose_factor", &LoKrOptions::decompose_factor_,
               "Smaller side of the split of inputs and outputs; -1: the most even one"),
        option("decompose_both", &LoKrOptions::decompose_both_,
               "Let the left matrix be of low rank too"),
        option("full_matrix", &LoKrOptions::full_matrix_, "Both matrices in full"),
        option("lokr_shape", &LoKrOptions::lokr_shape_,
               "Rows and columns of the left matrix, in place of decompose_factor"));
  }
};

/// Adapter whose delta is a Kronecker product, of which the right matrix may be of low rank.
/// Equation: delta = scale * kron(w1, w2), w1 = lokr_w1 or lokr_w1_a * lokr_w1_b, w2 likewise
/// Paper:    Yeh et al. 2023, "LyCORIS", arXiv:2309.14859, section 3.3
/// Shapes:   w1 (l, m), w2 (k, n * kernel size) with out = l * k and inputs = m * n; w1_a (l,
///           rank), w1_b (rank, m), w2_a (k, rank), w2_b (rank, n * kernel size)
/// Dtypes:   fp32, whatever the base is cast to; products run in the dtype of the input
/// Errors:   c10::ValueError if rank < 1, `init` is not the default, or `lokr_shape` does not
///           divide the layer's sizes
///
/// As in LyCORIS, w2 is of low rank if rank < max(k, n) / 2, w1 only with `decompose_both` too; w2
/// starts at zero. `network_alpha / rank` scales the delta also when both are full, as in PEFT.
class LoKrAdapterImpl : public AdapterModule<LoKrAdapterImpl, LoKrOptions> {
 public:
  static constexpr const char* kVariant = "lokr";

  LoKrAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose right matrix always starts at zero");
    reset();
  }

  void reset_parameters() override {
    torch::NoGradGuard no_grad;
    for (auto* tensor : {&lokr_w1, &lokr_w1_a, &lokr_w1_b, &lokr_w2_a}) {
      if (tensor->defined()) torch::nn::init::kaiming_uniform_(*tensor, std::sqrt(5.0));
    }
    lokr_w2.defined() ? lokr_w2.zero_() : lokr_w2_b.zero_();
  }

  torch::Tensor added(const torch::Tensor& /*weight*/) const override {
    const torch::Tensor w1 = lokr_w1.defined() ? lokr_w1 : lokr_w1_a.mm(lokr_w1_b);
    const torch::Tensor w2 = lokr_w2.defined() ? lokr_w2 : lokr_w2_a.mm(lokr_w2_b);
    // at::kron loses the version counters of its inputs on the way: a factor that changes before the
    // backward pass would spoil gradients in silence.
    const torch::Tensor product = w1.unsqueeze(1).unsqueeze(3) * w2.unsqueeze(0).unsqueeze(2);
    return product.reshape({w1.size(0) * w2.size(0), w1.size(1) * w2.size(1)}) * scale();
  }
  bool is_up_side(const std::string& name) const override {
    return name == "lokr_w1_a" || name == "lokr_w2_a";
  }

  torch::Tensor lokr_w1;    ///< (l, m), trained; undefined if of low rank
  torch::Tensor lokr_w1_a;  ///< (l, rank), trained; undefined if w1 is full
  torch::Tensor lokr_w1_b;  ///< (rank, m), trained; undefined if w1 is full
  torch::Tensor lokr_w2;    ///< (k, n * kernel size), trained; undefined if of low rank
  torch::Tensor lokr_w2_a;  ///< (k, rank), trained; undefined if w2 is full
  torch::Tensor lokr_w2_b;  ///< (rank, n * kernel size), trained; undefined if w2 is full

 protected:
  void register_tensors() override {
    const int64_t kernel = std::accumulate(layer_.kernel.begin(), layer_.kernel.end(), int64_t{1},
                                           std::multiplies<>());
    const int64_t inputs = layer_.in / kernel, r = options_.rank();
    const auto [l, k] = split(layer_.out, 0);
    const auto [m, n] = split(inputs, 1);
    const auto low = [&](int64_t a, int64_t b) {
      return !own().full_matrix() && 2 * r < std::max(a, b);
    };
    if (own().decompose_both() && low(l, m)) {
      lokr_w1_a = register_parameter("lokr_w1_a", torch::empty({l, r}));
      lokr_w1_b = register_parameter("lokr_w1_b", torch::empty({r, m}));
    } else {
      lokr_w1 = register_parameter("lokr_w1", torch::empty({l, m}));
    }
    if (low(k, n)) {
      lokr_w2_a = register_parameter("lokr_w2_a", torch::empty({k, r}));
      lokr_w2_b = register_parameter("lokr_w2_b", torch::empty({r, n * kernel}));
    } else {
      lokr_w2 = register_parameter("lokr_w2", torch::empty({k, n * kernel}));
    }
  }

 private:
  // The rank of a Kronecker product is the product of the ranks: too high for factors to pay.
  bool factorises() const override { return false; }

  std::pair<int64_t, int64_t> split(int64_t size, std::size_t side) const {
    const auto& shape = own().lokr_shape();
    if (shape.empty()) return kronecker_split(size, own().decompose_factor());
    TORCH_CHECK_VALUE(shape.size() == 2 && shape[side] >= 1 && size % shape[side] == 0, "'",
                      layer_.name, "': expected a lokr_shape of two numbers that ", "divide ",
                      layer_.out, " outputs and the inputs, got ", shape);
    return {shape[side], size / shape[side]};
  }
};

/// A layer of type `Layer` with a LoKr adapter.
template <typename Layer>
using LoKr = AdaptedLayer<Layer, LoKrAdapterImpl>;

}  // namespace lightlora
