// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <lightlora/detail/formats/layer_parts.h>
#include <lightlora/detail/formats/module_names.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

// Methods of PEFT and LyCORIS beside LoRA, LoHa and LoKr. What a file does not say of a layer's size
// is 0, and the model's.

namespace lightlora::detail {

// What PEFT's blocks of BOFT are multiplied by to be ours.
inline constexpr double kBoftOfPeft = -0.5;

// Where in PEFT's block each feature of ours is: the two halves one behind the other there, and
// feature by feature here.
inline at::Tensor boft_order(int64_t block) {
  const at::Tensor order = at::arange(block, at::kLong);
  return block % 2 == 0 ? order.reshape({2, -1}).t().flatten() : order;
}

class OtherMethods : protected LayerParts {
 protected:
  using LayerParts::LayerParts;

  // A whole difference.
  AssembledLayer difference() {
    const at::Tensor matrix = require("diff");
    if (matrix.dim() > 2) kernel_ = matrix.sizes().slice(2).vec();
    check_kernel();
    TORCH_CHECK(matrix.numel() > 0, where_, "expected values in diff, got none");
    const at::Tensor flat = matrix.flatten(1).contiguous();
    return with_kernel(method_state("full", flat.size(1), flat.size(0), 1, {{"diff", flat}}), 0);
  }

  // That of a norm's weight or bias, or of a layer's bias.
  AssembledLayer of_vector() {
    const at::Tensor values = require("vector");
    TORCH_CHECK(values.numel() > 0 && values.numel() == values.size(0), where_,
                "expected one value for each channel, got ", values.sizes());
    auto result = method_state("full", 1, values.numel(), 1,
                               {{"diff", values.reshape({-1, 1}).contiguous()}});
    result.state.layer.part = ends_with(layer_, ".bias") ? "bias" : "weight";
    return with_kernel(std::move(result), 0);
  }

  AssembledLayer hira() {
    const at::Tensor down = require_dims("hira_A", 2), up = require_dims("hira_B", 2);
    checked_up(down, up);
    return method_state("hira", down.size(1), up.size(0), down.size(0),
                        {{"down", down}, {"up", up}});
  }

  AssembledLayer miss() {
    const at::Tensor block = require_dims("miss_block", 2);
    return method_state("miss", 0, block.size(1), block.size(0), {{"block", block}});
  }

  AssembledLayer gralora() {
    const at::Tensor down = require_dims("gralora_A", 3), up = require_dims("gralora_B", 3);
    const int64_t blocks = down.size(0), rank = down.size(2);
    TORCH_CHECK(up.size(0) == blocks && up.size(1) == rank && rank % blocks == 0, where_,
                "expected gralora_A and gralora_B of one rank and number of blocks, got ",
                down.sizes(), " and ", up.sizes());
    auto result = method_state("gralora", blocks * down.size(1), blocks * up.size(2), rank,
                               {{"down", down}, {"up", up}});
    result.state.options.own({{"blocks", std::to_string(blocks)}});
    return result;
  }

  AssembledLayer oft() {
    const at::Tensor q = require_dims("oft_R", 2);
    const auto block =
        static_cast<int64_t>((1 + std::sqrt(1.0 + 8.0 * static_cast<double>(q.size(1)))) / 2);
    const int64_t inputs = saturating_product({q.size(0), block});
    TORCH_CHECK(block * (block - 1) / 2 == q.size(1) && inputs <= kMostFeatures, where_,
                "expected the upper triangles of square blocks as oft_R, got ", q.sizes());
    auto result = method_state("oft", inputs, 0, 1, {{"q", q}});
    result.state.options.own({{"block_size", std::to_string(block)}});
    return result;
  }

  // AdaLoRA's, of the ranks that its budget has left.
  AssembledLayer adalora() {
    const at::Tensor down = require_dims("down", 2), up = require_dims("up", 2);
    const at::Tensor lambda = require_dims("lora_E", 2);
    const int64_t rank = down.size(0);
    TORCH_CHECK(up.size(1) == rank && lambda.numel() == rank, where_,
                "expected lora_A, lora_B and lora_E of one rank, got ", down.sizes(), ", ",
                up.sizes(), " and ", lambda.sizes());
    return method_state("adalora", down.size(1), up.size(0), rank,
                        {{"down", down}, {"up", up}, {"lambda", lambda.reshape({rank, 1})}});
  }

  // How many features square blocks rotate, those of one factor side by side.
  // Errors: c10::Error for blocks that are none, and for more factors than there is room for
  int64_t rotated_features(const at::Tensor& blocks, const char* role) const {
    const int64_t dims = blocks.dim();
    TORCH_CHECK((dims == 3 || dims == 4) && blocks.size(dims - 1) == blocks.size(dims - 2) &&
                    blocks.numel() > 0,
                where_, "expected square blocks as ", role, ", got ", blocks.sizes());
    const int64_t block = blocks.size(dims - 1), count = blocks.size(dims - 3);
    const int64_t factors = dims == 4 ? blocks.size(0) : 1;
    const bool room = factors == 1 || (factors < 32 && block % 2 == 0 &&
                                       count % (int64_t{1} << (factors - 1)) == 0);
    TORCH_CHECK(room, where_, "expected even blocks, and a number of them that ", factors,
                " butterfly factors halve each time, got ", blocks.sizes());
    const int64_t features = saturating_product({count, block});
    TORCH_CHECK(features <= kMostFeatures, where_, "expected a layer with at most ", kMostFeatures,
                " features, got ", features);
    return features;
  }

  AssembledLayer boft_state(const at::Tensor& blocks, int64_t in, int64_t out) const {
    auto result = method_state("boft", in, out, blocks.size(3), {{"oft_blocks", blocks}});
    result.state.options.own({{"factors", std::to_string(blocks.size(0))}});
    return result;
  }

  // PEFT's BOFT rotates inputs, has the halves of a block one behind the other, and skew matrices of
  // half the size that turn the other way. A convolution's lengths are a row and a Linear layer's a
  // column; the kernel of one, whose numbers are inputs here, is the model's.
  AssembledLayer peft_boft() {
    const at::Tensor blocks = require("boft_R"), lengths = require("boft_s");
    TORCH_CHECK(blocks.dim() == 4, where_, "expected blocks with 4 dimensions as boft_R, got ",
                blocks.sizes());
    const int64_t inputs = rotated_features(blocks, "boft_R");
    const bool row = lengths.dim() == 2 && lengths.size(0) == 1 && lengths.size(1) > 1;
    TORCH_CHECK(lengths.numel() > 0 && (row || lengths.numel() == lengths.size(0)), where_,
                "expected one length for each output as boft_s, got ", lengths.sizes());
    const at::Tensor order = boft_order(blocks.size(3));
    auto result = boft_state(
        (blocks.index_select(2, order).index_select(3, order) * kBoftOfPeft).contiguous(),
        row ? 0 : inputs, lengths.numel());
    if (row) result.state.layer.type = "Conv2d";
    result.state.trained["rescale"] = lengths.reshape({-1, 1}).contiguous();
    result.state.options.own()["input_side"] = "1";
    result.state.options.own()["rescaled"] = "1";
    return result;
  }

  // LyCORIS' two methods that rotate outputs.
  AssembledLayer oft_blocks() {
    const at::Tensor blocks = require("oft_blocks");
    const int64_t outputs = rotated_features(blocks, "oft_blocks");
    auto result = blocks.dim() == 4 ? boft_state(blocks, 0, outputs)
                                    : method_state("diag_oft", 0, outputs, blocks.size(2),
                                                   {{"oft_blocks", blocks}});
    if (const at::Tensor lengths = take("rescale"); lengths.defined()) {
      TORCH_CHECK(lengths.numel() == outputs, where_, "expected a length for each of ", outputs,
                  " outputs as rescale, got ", lengths.sizes());
      result.state.trained["rescale"] = lengths.reshape({outputs, 1}).contiguous();
      result.state.options.own()["rescaled"] = "1";
      // How many dimensions the kernel has is all that the file tells of it.
      kernel_.assign(static_cast<std::size_t>(std::max<int64_t>(lengths.dim() - 2, 0)), 1);
    }
    return with_kernel(std::move(result), 0);
  }

  AssembledLayer glora() {
    const at::Tensor a1 = require("a1").flatten(1), a2 = require("a2").flatten(1);
    const at::Tensor b1 = require("b1").flatten(1);
    at::Tensor b2 = require("b2");
    if (b2.dim() > 2) kernel_ = b2.sizes().slice(2).vec();
    check_kernel();
    b2 = b2.flatten(1);
    const int64_t rank = a2.size(0), channels = a2.size(1);
    const bool fits = a1.size(0) == channels && a1.size(1) == rank && b1.size(1) == rank &&
                      b2.size(0) == rank &&
                      b2.size(1) == saturating_product({channels, c10::multiply_integers(kernel_)});
    TORCH_CHECK(fits && rank > 0 && b1.numel() > 0 && b2.numel() > 0, where_,
                "expected GLoRA's four factors of one rank, got a1 ", a1.sizes(), ", a2 ",
                a2.sizes(), ", b1 ", b1.sizes(), " and b2 ", b2.sizes());
    return with_kernel(method_state("glora", b2.size(1), b1.size(0), rank,
                                    {{"a1", a1.contiguous()},
                                     {"a2", a2.contiguous()},
                                     {"b1", b1.contiguous()},
                                     {"b2", b2.contiguous()}}),
                       rank);
  }

  // The start that is taken off follows from the layer's weight, and is in no file.
  AssembledLayer tlora() {
    const at::Tensor q = require("q_layer"), p = require("p_layer").flatten(1);
    const at::Tensor lambda = require("lambda_layer");
    const int64_t rank = q.size(0);
    TORCH_CHECK(q.numel() == rank * q.size(1) && p.size(1) == rank && lambda.numel() == rank &&
                    q.numel() > 0 && p.numel() > 0,
                where_, "expected T-LoRA's q_layer, p_layer and lambda_layer of one rank, got ",
                q.sizes(), ", ", p.sizes(), " and ", lambda.sizes());
    if (q.dim() > 2) kernel_ = q.sizes().slice(2).vec();
    return with_kernel(method_state("tlora", q.size(1), p.size(0), rank,
                                    {{"q", q.flatten(1).contiguous()},
                                     {"p", p.contiguous()},
                                     {"lambda", lambda.reshape({rank, 1}).contiguous()}}),
                       rank);
  }

  AssembledLayer ia3() {
    const at::Tensor values = require("ia3"), input = require("on_input");
    TORCH_CHECK(values.numel() > 0 && input.numel() == 1, where_,
                "expected one value for each channel and one number as on_input, got ",
                values.sizes(), " and ", input.sizes());
    const bool of_input = input.item<float>() != 0;
    const int64_t count = values.numel();
    const at::Tensor l =
        (values.flatten() + 1).reshape({of_input ? 1 : count, of_input ? count : 1});
    auto result = method_state("ia3", of_input && values.dim() == 1 ? count : 0,
                               of_input ? 0 : count, 1, {{"l", l.contiguous()}});
    if (of_input) result.state.options.own({{"scale_input", "1"}});
    kernel_.assign(static_cast<std::size_t>(std::max<int64_t>(values.dim() - 2, 0)), 1);
    return with_kernel(std::move(result), 0);
  }
};

}  // namespace lightlora::detail
