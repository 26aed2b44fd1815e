// SPDX-License-Identifier: Apache-2.0
#include "kernels/fused_attention.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/core/InferenceMode.h>

#include <cmath>
#include <vector>

#include "support.h"

using torch::Tensor;

namespace {

Tensor by_head(const Tensor& x, int64_t heads) {
  return x.unflatten(2, {heads, x.size(2) / heads}).transpose(1, 2);
}

Tensor of_operators(const Tensor& query, const Tensor& key, const Tensor& value, int64_t heads,
                    bool causal) {
  const double scale = 1 / std::sqrt(static_cast<double>(query.size(2) / heads));
  Tensor scores = by_head(query, heads).matmul(by_head(key, heads).transpose(-1, -2)) * scale;
  if (causal) {
    const auto behind = torch::ones_like(scores).triu(1).to(torch::kBool);
    scores = scores.masked_fill(behind, -INFINITY);
  }
  return scores.softmax(-1).matmul(by_head(value, heads)).transpose(1, 2).flatten(2);
}

Tensor of_libtorch(const Tensor& query, const Tensor& key, const Tensor& value, int64_t heads,
                   bool causal) {
  return torch::scaled_dot_product_attention(by_head(query, heads), by_head(key, heads),
                                             by_head(value, heads), /*attn_mask=*/{},
                                             /*dropout_p=*/0.0, causal)
      .transpose(1, 2)
      .flatten(2);
}

struct Sizes {
  int64_t batch, heads, queries, keys, width;
};

// Arguments, with scores of about `score`, and a gradient of the result.
struct Arguments {
  Arguments(const Sizes& sizes, double score, torch::Dtype dtype) : heads(sizes.heads) {
    torch::manual_seed(7);
    const auto tokens = [&](int64_t count, double size) {
      return (torch::randn({sizes.batch, count, sizes.heads * sizes.width}) * size).to(dtype);
    };
    query = tokens(sizes.queries, score);
    key = tokens(sizes.keys, 1);
    value = tokens(sizes.keys, 1);
    gradient = tokens(sizes.queries, 1);
  }

  // The result and the gradients of query, key and value.
  template <typename Attention>
  std::vector<Tensor> run(const Attention& attention, torch::Dtype dtype) const {
    const auto leaf = [&](const Tensor& x) { return x.detach().to(dtype).requires_grad_(); };
    const std::vector<Tensor> leaves{leaf(query), leaf(key), leaf(value)};
    std::vector<Tensor> all{attention(leaves[0], leaves[1], leaves[2], heads, causal)};
    for (auto& found : torch::autograd::grad({all[0]}, leaves, {gradient.to(dtype)})) {
      all.push_back(found);
    }
    return all;
  }

  Tensor query, key, value, gradient;
  int64_t heads;
  bool causal = false;
};

}  // namespace

TEST_CASE("fused attention: values and gradients are as near to fp64 as LibTorch's",
          "[fused_attention]") {
  const auto dtype = GENERATE(torch::kFloat, torch::kBFloat16);
  const double score = GENERATE(1.0, 30.0, 1000.0);
  // Blocks are of 64 queries and of up to 64 or 96 keys: whole ones, odd rests, and single rows.
  const auto sizes = GENERATE(
      Sizes{1, 2, 64, 64, 40}, Sizes{2, 3, 129, 77, 40}, Sizes{1, 2, 130, 401, 64},
      Sizes{1, 1, 1, 77, 80}, Sizes{2, 2, 33, 17, 160}, Sizes{1, 2, 1, 1, 40}, Sizes{1, 4, 7, 5, 6},
      Sizes{1, 1, 300, 2, 2}, Sizes{1, 1, 70, 70, 512}, Sizes{3, 1, 515, 97, 46});
  Arguments arguments(sizes, score, dtype);
  arguments.causal = GENERATE(false, true);
  const auto exact = arguments.run(of_operators, torch::kDouble);
  const auto ours = arguments.run(sd::fused_attention, dtype);
  const auto theirs = arguments.run(of_libtorch, dtype);
  // Scores are sums in fp32, whose rounding exp() enlarges; roundings of one size differ by chance.
  const double chance = dtype == torch::kFloat ? 5e-7 * (1 + score) : 1e-3;
  // Where one key takes nearly all, terms of half precision cancel, and what is left is chance.
  const double factor = dtype == torch::kBFloat16 && score > 100 ? 3 : 1.5;
  for (size_t i = 0; i < exact.size(); ++i) {
    CAPTURE(dtype, score, arguments.causal, sizes.queries, sizes.keys, sizes.width, i);
    REQUIRE(ours[i].sizes() == exact[i].sizes());
    CHECK(ours[i].scalar_type() == dtype);
    // Where one key takes all, the gradient is what rounding leaves of terms that cancel.
    const double terms = std::sqrt(static_cast<double>(exact[i].numel())) * (i == 2 ? score : 1);
    const double norm = exact[i].norm().item<double>(), size = norm > 1e-3 * terms ? norm : terms;
    const auto error = [&](const Tensor& x) {
      return (x.to(torch::kDouble) - exact[i]).norm().item<double>() / size;
    };
    CHECK(error(ours[i]) <= factor * error(theirs[i]) + chance);
  }
}

TEST_CASE("fused attention: strides do not matter", "[fused_attention]") {
  const auto dtype = GENERATE(torch::kFloat, torch::kBFloat16);
  torch::manual_seed(1);
  const auto expected = [](const std::vector<Tensor>& parts) {
    return sd::fused_attention(parts[0].contiguous(), parts[1].contiguous(), parts[2].contiguous(),
                               /*heads=*/2);
  };
  const auto strided = [](const std::vector<Tensor>& parts) {
    return sd::fused_attention(parts[0], parts[1], parts[2], /*heads=*/2);
  };
  const auto thirds = torch::randn({2, 50, 3 * 20}, dtype).chunk(3, /*dim=*/-1);
  CHECK(strided(thirds).equal(expected(thirds)));
  const std::vector<Tensor> turned(3, torch::randn({20, 50, 2}, dtype).permute({2, 1, 0}));
  CHECK(strided(turned).equal(expected(turned)));
  // One text for both pictures, and a gradient that is one number everywhere.
  const auto text = torch::randn({1, 7, 20}, dtype).expand({2, 7, 20});
  const auto query = torch::randn({2, 9, 20}, dtype).requires_grad_();
  const auto result = sd::fused_attention(query, text, text, 2);
  const auto of_sum = torch::autograd::grad({result.sum()}, {query}, {}, /*retain_graph=*/true)[0];
  const auto ones = torch::ones_like(result);
  CHECK(of_sum.equal(torch::autograd::grad({result}, {query}, {ones})[0]));
}

TEST_CASE("fused attention: threads and what else is asked for change no bit",
          "[fused_attention]") {
  const auto dtype = GENERATE(torch::kFloat, torch::kBFloat16);
  const Arguments arguments({2, 3, 600, 200, 16}, 1, dtype);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto alone = arguments.run(sd::fused_attention, dtype);
  at::set_num_threads(3);
  const auto together = arguments.run(sd::fused_attention, dtype);
  at::set_num_threads(threads);
  for (size_t i = 0; i < alone.size(); ++i) CHECK(alone[i].equal(together[i]));
  const c10::InferenceMode inference;
  CHECK(sd::fused_attention(arguments.query.clone(), arguments.key, arguments.value, 3)
            .equal(alone[0]));
}

TEST_CASE("fused attention: gradients of gradients", "[fused_attention]") {
  torch::manual_seed(1);
  const auto x = torch::randn({2, 5, 12}, torch::kDouble);
  const bool one = GENERATE(true, false);  // query, key and value the same tensor
  const bool causal = GENERATE(false, true);
  const auto second = [&](const auto& attention, const Tensor& from) {
    const auto leaf = from.clone().requires_grad_();
    const auto key = one ? leaf : leaf * 0.5, value = one ? leaf : leaf.sin();
    const auto result = attention(leaf, key, value, 3, causal);
    const auto first = torch::autograd::grad({result.pow(2).sum()}, {leaf}, {},
                                             /*retain_graph=*/true, /*create_graph=*/true)[0];
    return torch::autograd::grad({first.pow(2).sum()}, {leaf})[0];
  };
  // 1e-5: three derivatives in fp32.
  CHECK(close(second(sd::fused_attention, x.to(torch::kFloat)), second(of_operators, x), 1e-5));
}

TEST_CASE("fused attention: everything else is LibTorch's", "[fused_attention]") {
  const auto tokens = [](int64_t width, torch::Dtype dtype) {
    torch::manual_seed(1);
    return torch::randn({2, 5, width}, dtype);
  };
  const auto by_libtorch = [](const Tensor& x, int64_t heads) {
    CHECK_FALSE(sd::has_fused_attention(x, x, x, heads));
    CHECK(sd::fused_attention(x, x, x, heads).equal(of_libtorch(x, x, x, heads, /*causal=*/false)));
    CHECK(sd::fused_attention(x, x, x, heads, /*causal=*/true)
              .equal(of_libtorch(x, x, x, heads, /*causal=*/true)));
  };
  by_libtorch(tokens(8, torch::kDouble), 2);
  by_libtorch(tokens(8, torch::kHalf), 2);
  by_libtorch(tokens(15, torch::kFloat), 3);       // an odd width
  by_libtorch(tokens(2 * 514, torch::kFloat), 2);  // a wide one
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, torch::kBFloat16);
  const auto cast = sd::fused_attention(tokens(8, torch::kFloat), tokens(8, torch::kFloat),
                                        tokens(8, torch::kFloat), 2);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  CHECK(cast.scalar_type() == torch::kBFloat16);
}

TEST_CASE("fused attention: what is not a number stays where it is", "[fused_attention]") {
  const auto dtype = GENERATE(torch::kFloat, torch::kBFloat16);
  const Arguments arguments({1, 2, 70, 90, 8}, 1, dtype);
  auto query = arguments.query.clone();
  query[0][3][0] = NAN;  // of the first head
  const auto result = sd::fused_attention(query, arguments.key, arguments.value, 2).isnan();
  CHECK(result.sum().item<int64_t>() == 8);
  CHECK(result[0][3].slice(0, 0, 8).all().item<bool>());
}
