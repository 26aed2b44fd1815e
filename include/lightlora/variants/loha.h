// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/layers.h>

namespace lightlora {

/// Adapter whose delta is the element-wise product of two low-rank matrices, of rank up to r * r.
/// Equation: delta = scale * (hada_w1_a * hada_w1_b) (.) (hada_w2_a * hada_w2_b)
/// Paper:    Hyeon-Woo et al. 2021, "FedPara", arXiv:2108.06098, proposition 1; as an adapter in
///           LyCORIS, Yeh et al. 2023, arXiv:2309.14859
/// Shapes:   trained hada_w1_a, hada_w2_a (out, rank) and hada_w1_b, hada_w2_b (rank, in)
/// Dtypes:   fp32, whatever the base is cast to; products run in the dtype of the input
/// Errors:   c10::ValueError if rank < 1
/// Starts as LyCORIS does: w1_a N(0, 0.1), w1_b and w2_b N(0, 1), w2_a zero; `down_zero` swaps the
/// roles of w2_a and w2_b. While r * r is small the product is composed as factors of that width
/// (row-wise Kronecker products), so that the delta is never formed.
class LoHaAdapterImpl : public AdapterModule<LoHaAdapterImpl> {
 public:
  static constexpr const char* kVariant = "loha";

  LoHaAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    reset();
  }

  void reset_parameters() override {
    torch::NoGradGuard no_grad;
    hada_w1_a.normal_(0, 0.1);
    hada_w1_b.normal_(0, 1);
    options_.init() == Init::down_zero ? hada_w2_a.normal_(0, 1) : hada_w2_a.zero_();
    options_.init() == Init::up_zero ? hada_w2_b.normal_(0, 1) : hada_w2_b.zero_();
  }

  int64_t rank() const override { return has_factors() ? product_rank() : options_.rank(); }

  Factors factors() const override {
    return {(hada_w1_b.unsqueeze(1) * hada_w2_b.unsqueeze(0)).reshape({-1, layer_.in}),
            (hada_w1_a.unsqueeze(2) * hada_w2_a.unsqueeze(1)).reshape({layer_.out, -1})};
  }
  torch::Tensor added(const torch::Tensor& /*weight*/) const override {
    return hada_w1_a.mm(hada_w1_b) * hada_w2_a.mm(hada_w2_b) * scale();
  }
  bool is_up_side(const std::string& name) const override {
    return name == "hada_w1_a" || name == "hada_w2_a";
  }

  torch::Tensor hada_w1_a;  ///< (out, rank), trained
  torch::Tensor hada_w1_b;  ///< (rank, in), trained
  torch::Tensor hada_w2_a;  ///< (out, rank), trained
  torch::Tensor hada_w2_b;  ///< (rank, in), trained

 protected:
  void register_tensors() override {
    const auto up = [&] { return torch::empty({layer_.out, options_.rank()}); };
    const auto down = [&] { return torch::empty({options_.rank(), layer_.in}); };
    hada_w1_a = register_parameter("hada_w1_a", up());
    hada_w1_b = register_parameter("hada_w1_b", down());
    hada_w2_a = register_parameter("hada_w2_a", up());
    hada_w2_b = register_parameter("hada_w2_b", down());
  }

 private:
  // Wider factors than this cost more than the delta.
  bool factorises() const override { return 2 * product_rank() <= std::min(layer_.in, layer_.out); }
  int64_t product_rank() const { return options_.rank() * options_.rank(); }
};

/// A layer of type `Layer` with a LoHa adapter.
template <typename Layer>
using LoHa = AdaptedLayer<Layer, LoHaAdapterImpl>;

}  // namespace lightlora
