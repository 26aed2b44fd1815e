// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <lightlora/detail/dora_state.h>
#include <lightlora/detail/formats/limits.h>
#include <lightlora/detail/formats/module_names.h>
#include <lightlora/detail/formats/other_methods.h>
#include <lightlora/state.h>
#include <lightlora/variants/lokr.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

// What the tensors that a file has for one layer mean: which method made them, and the state of the
// adapter that computes the same delta.

namespace lightlora::detail {

class LayerAssembler : private OtherMethods {
 public:
  /// `where` begins the error messages; `tensors` are the layer's, by the roles of `LoRAKey`;
  /// `budget` is the file's, for what is made of them.
  LayerAssembler(std::string where, std::string component, std::string layer,
                 std::map<std::string, at::Tensor> tensors, ValueBudget& budget)
      : OtherMethods(std::move(where), std::move(component), std::move(layer), std::move(tensors),
                     budget) {}

  AssembledLayer assemble() {
    const at::Tensor dora_scale = take("dora_scale"), vector = take("magnitude");
    AssembledLayer result = has("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b") ? loha()
                            : has("lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a")   ? lokr()
                            : has("down_up")                                        ? fused()
                            : has("hira_A", "hira_B")                               ? hira()
                            : has("miss_block")                                     ? miss()
                            : has("gralora_A", "gralora_B")                         ? gralora()
                            : has("oft_R")                                          ? oft()
                            : has("lora_E")                                         ? adalora()
                            : has("boft_R", "boft_s")                               ? peft_boft()
                            : has("oft_blocks", "rescale")                          ? oft_blocks()
                            : has("a1", "a2", "b1", "b2")                           ? glora()
                            : has("q_layer", "p_layer", "lambda_layer")             ? tlora()
                            : has("ia3", "on_input")                                ? ia3()
                            : has("vector")                                         ? of_vector()
                            : has("diff")                                           ? difference()
                                                                                    : classic();
    for (const auto& item : tensors_) {
      TORCH_CHECK(false, where_, "expected the tensors of one method, got '", item.first,
                  "' beside those of ", result.state.variant);
    }
    result.state.layer.name = layer_;
    TORCH_CHECK(!dora_scale.defined() || !vector.defined(), where_,
                "expected one DoRA magnitude, got dora_scale and lora_magnitude_vector");
    const at::Tensor magnitude = dora_scale.defined() ? dora_scale : vector;
    if (magnitude.defined()) set_magnitude(result.state, magnitude, dora_scale.defined());
    return result;
  }

 private:
  AssembledLayer classic() {
    at::Tensor down = take("down"), up = take("up");
    TORCH_CHECK(down.defined() && up.defined(), where_, "expected both factors, got only ",
                down.defined() ? "down"
                : up.defined() ? "up"
                               : "an alpha",
                "; hint: the file is incomplete");
    if (down.dim() > 2) kernel_ = down.sizes().slice(2).vec();
    check_kernel();
    down = down.flatten(1);
    if (const at::Tensor core = take("mid"); core.defined()) down = with_core(core, down);
    up = checked_up(down, up);
    if (const at::Tensor base = take("down_aux"); base.defined()) down = product(down, base);
    if (const at::Tensor base = take("up_aux"); base.defined()) up = product(base, up);
    return classic_state(down, up);
  }

  // The seed article's fused core between its two bases.
  AssembledLayer fused() {
    TORCH_CHECK(!has("down", "up"), where_,
                "down_up cannot be combined with down and up: it is both in one");
    TORCH_CHECK(has("up_aux") && has("down_aux"), where_,
                "expected down_aux and up_aux beside down_up, got ",
                has("up_aux") || has("down_aux") ? "one of them" : "neither",
                "; hint: the file is incomplete");
    const at::Tensor down = product(take("down_up"), take("down_aux"));
    return classic_state(down, checked_up(down, take("up_aux")));
  }

  AssembledLayer classic_state(const at::Tensor& down, const at::Tensor& up) const {
    AssembledLayer result;
    result.divisor = down.size(0);
    result.state.variant = "classic";
    result.state.layer = {layer_, down.size(1), up.size(0), kernel_};
    result.state.options.rank(result.divisor);
    result.state.trained = {{"down", down}, {"up", up}};
    return result;
  }

  AssembledLayer loha() {
    const auto [a1, b1] = pair("hada_w1_a", "hada_w1_b", "hada_t1");
    const auto [a2, b2] = pair("hada_w2_a", "hada_w2_b", "hada_t2");
    TORCH_CHECK(a1.sizes() == a2.sizes() && b1.sizes() == b2.sizes(), where_,
                "expected two LoHa pairs of equal sizes, got ", a1.sizes(), " ", b1.sizes(),
                " and ", a2.sizes(), " ", b2.sizes());
    AssembledLayer result;
    result.divisor = a1.size(1);
    result.state.variant = "loha";
    result.state.layer = {layer_, b1.size(1), a1.size(0), usual_kernel(b1.size(1))};
    result.state.options.rank(result.divisor);
    result.state.trained = {
        {"hada_w1_a", a1}, {"hada_w1_b", b1}, {"hada_w2_a", a2}, {"hada_w2_b", b2}};
    return result;
  }

  // One side of a Kronecker product: in full, or as a pair.
  struct KroneckerSide {
    at::Tensor full, a, b;
    int64_t rows() const { return full.defined() ? full.size(0) : a.size(0); }
    int64_t columns() const { return full.defined() ? full.size(1) : b.size(1); }
  };
  void compose(KroneckerSide& side) {
    if (!side.full.defined()) side.full = product(side.a, side.b);
  }

  KroneckerSide kronecker_side(const std::string& name, const std::string& core) {
    KroneckerSide side;
    if (has(name)) {
      side.full = take(name);
      if (side.full.dim() > 2) kernel_ = side.full.sizes().slice(2).vec();
      check_kernel();
      side.full = side.full.flatten(1).contiguous();
      TORCH_CHECK(side.full.numel() > 0, where_, "expected values in ", name, ", got none");
    } else {
      std::tie(side.a, side.b) = pair(name + "_a", name + "_b", core);
    }
    return side;
  }

  AssembledLayer lokr() {
    KroneckerSide left = kronecker_side("lokr_w1", "lokr_t1");
    KroneckerSide right = kronecker_side("lokr_w2", "lokr_t2");
    AssembledLayer result;
    // LyCORIS has no rank to divide by where both sides are in full, and takes scale 1 there.
    result.divisor = right.b.defined() ? right.b.size(0) : left.b.defined() ? left.b.size(0) : 0;
    LayerState& state = result.state;
    state.variant = "lokr";
    const int64_t inputs = saturating_product({left.columns(), right.columns()});
    const int64_t outputs = saturating_product({left.rows(), right.rows()});
    TORCH_CHECK(inputs <= kMostFeatures && outputs <= kMostFeatures, where_,
                "expected factors of a layer with at most ", kMostFeatures,
                " inputs and outputs, got ", inputs, " and ", outputs);
    state.layer = {layer_, inputs, outputs, usual_kernel(inputs)};
    TORCH_CHECK(inputs % c10::multiply_integers(state.layer.kernel) == 0, where_,
                "expected inputs that the kernel divides, got ", inputs, " and ",
                state.layer.kernel);
    // The adapter decides by the same rule as LyCORIS which side is of low rank; what was made by
    // another rule is multiplied out.
    const int64_t rank = std::max<int64_t>(result.divisor, 1);
    const int64_t kernel = c10::multiply_integers(state.layer.kernel);
    const auto low = [&](const KroneckerSide& side, int64_t columns) {
      return !side.full.defined() && side.b.size(0) == rank &&
             2 * rank < std::max(side.rows(), columns);
    };
    const bool right_low = low(right, right.columns() / kernel);
    const bool left_low = right_low && low(left, left.columns());
    if (!left_low) compose(left);
    if (!right_low) compose(right);
    state.options = LoKrOptions(rank)
                        .lokr_shape({left.rows(), left.columns()})
                        .decompose_both(left_low)
                        .full_matrix(!right_low);
    const auto add = [&](const std::string& name, const KroneckerSide& side) {
      if (side.full.defined()) {
        state.trained[name] = side.full;
      } else {
        state.trained[name + "_a"] = side.a;
        state.trained[name + "_b"] = side.b;
      }
    };
    add("lokr_w1", left);
    add("lokr_w2", right);
    return result;
  }

  // LoHa and LoKr may hold a convolution's kernel as columns of a matrix. Stable Diffusion's
  // convolutions have 3x3 kernels where the name does not say otherwise.
  std::vector<int64_t> usual_kernel(int64_t inputs) const {
    if (!kernel_.empty() || component_ != "unet" || inputs % 9 != 0) return kernel_;
    for (const char* ending : {".conv1", ".conv2", ".conv"}) {
      if (ends_with(layer_, ending)) return {3, 3};
    }
    return layer_ == "conv_in" || layer_ == "conv_out" ? std::vector<int64_t>{3, 3} : kernel_;
  }

  // PEFT stores one length for each output, as (out) or, for convolutions, (1, out, 1, 1); LyCORIS
  // as (out, 1, ...) since 3.2, and before that one for each input, as (1, in, ...).
  void set_magnitude(LayerState& state, const at::Tensor& magnitude, bool lycoris) const {
    const int64_t out = state.layer.out;
    const int64_t channels = state.layer.in / c10::multiply_integers(state.layer.kernel);
    const bool inputs = lycoris && magnitude.size(0) == 1 && out != 1;
    const int64_t expected = inputs ? channels : out;
    TORCH_CHECK(magnitude.numel() == expected, where_, "expected a DoRA magnitude of ", expected,
                " values, one for each ", inputs ? "input" : "output", ", got ", magnitude.sizes());
    const std::vector<int64_t> sizes =
        inputs ? std::vector<int64_t>{1, channels} : std::vector<int64_t>{out, 1};
    put_dora(state, {magnitude.reshape(sizes).contiguous(), inputs});
  }
};

}  // namespace lightlora::detail
