// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <lightlora/detail/dora_state.h>
#include <lightlora/detail/formats/limits.h>
#include <lightlora/detail/formats/module_names.h>
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

/// A layer's state, and what its alpha is divided by; 0 if the method takes no alpha.
struct AssembledLayer {
  LayerState state;
  int64_t divisor = 0;
};

class LayerAssembler {
 public:
  /// `where` begins the error messages; `tensors` are the layer's, by the roles of `LoRAKey`;
  /// `budget` is the file's, for what is made of them.
  LayerAssembler(std::string where, std::string component, std::string layer,
                 std::map<std::string, at::Tensor> tensors, ValueBudget& budget)
      : budget_(budget),
        where_(std::move(where)),
        component_(std::move(component)),
        layer_(std::move(layer)),
        tensors_(std::move(tensors)) {}

  AssembledLayer assemble() {
    const at::Tensor dora_scale = take("dora_scale"), vector = take("magnitude");
    AssembledLayer result = has("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b") ? loha()
                            : has("lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a")   ? lokr()
                            : has("down_up")                                        ? fused()
                            : has("hira_A", "hira_B")                               ? hira()
                            : has("miss_block")                                     ? miss()
                            : has("gralora_A", "gralora_B")                         ? gralora()
                            : has("oft_R")                                          ? oft()
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
  template <typename... Roles>
  bool has(const Roles&... roles) const {
    return (... || (tensors_.count(roles) > 0));
  }
  at::Tensor take(const std::string& role) {
    const auto found = tensors_.find(role);
    if (found == tensors_.end()) return {};
    at::Tensor tensor = found->second;
    tensors_.erase(found);
    return tensor;
  }
  at::Tensor require(const std::string& role) {
    at::Tensor tensor = take(role);
    TORCH_CHECK(tensor.defined(), where_, "expected a tensor '", role, "' beside the others, got ",
                "none; hint: the file is incomplete");
    return tensor;
  }

  at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
    TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0), where_,
                "expected factors and bases that fit, got ", a.sizes(), " and ", b.sizes());
    budget_.spend(where_, {a.size(0), b.size(1)});
    return a.mm(b);
  }

  // A low-rank pair in LyCORIS' order: a (rows, rank) and b (rank, columns). With a Tucker core the
  // file has a (rank, rows), b (rank, inputs) and the core (rank, rank, kernel...), which is the
  // pair of a^T and of core and b as one matrix (rank, inputs * kernel).
  std::pair<at::Tensor, at::Tensor> pair(const std::string& a_role, const std::string& b_role,
                                         const std::string& core_role) {
    at::Tensor a = require(a_role), b = require(b_role);
    if (const at::Tensor core = take(core_role); core.defined()) {
      b = with_core(core, b.flatten(1));
      a = a.flatten(1).t();
    }
    b = b.flatten(1);
    TORCH_CHECK(a.dim() == 2 && a.size(1) == b.size(0) && a.numel() > 0 && b.numel() > 0, where_,
                "expected ", a_role, " and ", b_role, " of one rank, got ", a.sizes(), " and ",
                b.sizes());
    return {a.contiguous(), b.contiguous()};
  }

  void check_kernel() const {
    for (const int64_t size : kernel_) {
      TORCH_CHECK(size >= 1 && size <= kMostKernel, where_, "expected a kernel of sizes from 1 to ",
                  kMostKernel, ", got ", kernel_);
    }
  }

  // core (r, s, kernel...) and rows (s, n) as one matrix (r, n * kernel); keeps the kernel's sizes.
  at::Tensor with_core(const at::Tensor& core, const at::Tensor& rows) {
    TORCH_CHECK(core.dim() > 2 && core.size(1) == rows.size(0), where_,
                "expected a Tucker core that fits its factors, got ", core.sizes(), " and ",
                rows.sizes());
    kernel_ = core.sizes().slice(2).vec();
    check_kernel();
    const at::Tensor flat = core.flatten(2);  // (r, s, k)
    budget_.spend(where_, {flat.size(0), rows.size(1), flat.size(2)});
    const at::Tensor joined = at::einsum("rsk,sn->rnk", {flat, rows});
    return joined.flatten(1);
  }

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

  // A whole difference, as factors of full rank.
  AssembledLayer difference() {
    const at::Tensor matrix = require("diff");
    if (matrix.dim() > 2) kernel_ = matrix.sizes().slice(2).vec();
    const Factors factors = factorise(matrix.flatten(1));
    auto result = classic_state(factors.down.to(at::kFloat).contiguous(),
                                factors.up.to(at::kFloat).contiguous());
    result.divisor = 0;
    return result;
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

  at::Tensor checked_up(const at::Tensor& down, const at::Tensor& up) const {
    TORCH_CHECK(up.numel() == up.size(0) * up.size(1), where_,
                "expected an up factor with a 1x1 kernel, got ", up.sizes());
    TORCH_CHECK(down.size(0) == up.size(1) && down.numel() > 0 && up.numel() > 0, where_,
                "expected two factors of one rank, got down ", down.sizes(), " and up ",
                up.sizes());
    return up.flatten(1);
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

  // PEFT's methods beside LoRA. What a file does not say of a layer's size is 0, and the model's.
  AssembledLayer peft_state(const char* variant, int64_t in, int64_t out, int64_t rank,
                            std::map<std::string, at::Tensor> trained) const {
    AssembledLayer result;
    result.divisor = rank;
    result.state.variant = variant;
    result.state.layer = {layer_, in, out};
    result.state.options.rank(rank);
    result.state.trained = std::move(trained);
    return result;
  }

  at::Tensor require_dims(const std::string& role, int64_t dims) {
    const at::Tensor tensor = require(role);
    TORCH_CHECK(tensor.dim() == dims && tensor.numel() > 0, where_, "expected ", role, " of a ",
                "Linear layer, with ", dims, " dimensions, got ", tensor.sizes());
    return tensor;
  }

  AssembledLayer hira() {
    const at::Tensor down = require_dims("hira_A", 2), up = require_dims("hira_B", 2);
    checked_up(down, up);
    return peft_state("hira", down.size(1), up.size(0), down.size(0), {{"down", down}, {"up", up}});
  }

  AssembledLayer miss() {
    const at::Tensor block = require_dims("miss_block", 2);
    return peft_state("miss", 0, block.size(1), block.size(0), {{"block", block}});
  }

  AssembledLayer gralora() {
    const at::Tensor down = require_dims("gralora_A", 3), up = require_dims("gralora_B", 3);
    const int64_t blocks = down.size(0), rank = down.size(2);
    TORCH_CHECK(up.size(0) == blocks && up.size(1) == rank && rank % blocks == 0, where_,
                "expected gralora_A and gralora_B of one rank and number of blocks, got ",
                down.sizes(), " and ", up.sizes());
    auto result = peft_state("gralora", blocks * down.size(1), blocks * up.size(2), rank,
                             {{"down", down}, {"up", up}});
    result.state.options.own({{"blocks", std::to_string(blocks)}});
    return result;
  }

  AssembledLayer oft() {
    const at::Tensor q = require_dims("oft_R", 2);
    const auto block = static_cast<int64_t>((1 + std::sqrt(1.0 + 8.0 * q.size(1))) / 2);
    const int64_t inputs = saturating_product({q.size(0), block});
    TORCH_CHECK(block * (block - 1) / 2 == q.size(1) && inputs <= kMostFeatures, where_,
                "expected the upper triangles of square blocks as oft_R, got ", q.sizes());
    auto result = peft_state("oft", inputs, 0, 1, {{"q", q}});
    result.state.options.own({{"block_size", std::to_string(block)}});
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

  ValueBudget& budget_;
  std::string where_, component_, layer_;
  std::map<std::string, at::Tensor> tensors_;
  std::vector<int64_t> kernel_;
};

}  // namespace lightlora::detail
