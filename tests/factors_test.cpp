// SPDX-License-Identifier: Apache-2.0
#include <lightlora/factors.h>

#include "support.h"

using lightlora::Factors;
using lightlora::low_rank_linear;
using torch::Tensor;

namespace {

struct Arguments {
  Tensor x, weight, bias, down, up;
  double scale = 0.75;

  explicit Arguments(torch::ScalarType dtype = torch::kDouble) {
    torch::manual_seed(5);
    const auto make = [&](std::vector<int64_t> sizes) {
      return torch::randn(sizes, torch::kDouble).to(dtype).requires_grad_();
    };
    x = make({4, 7, 10});
    weight = make({6, 10});
    bias = make({6});
    down = make({3, 10});
    up = make({6, 3});
  }

  std::vector<Tensor> all() const { return {x, weight, bias, down, up}; }
  Tensor fused() const { return low_rank_linear(x, weight, bias, {down, up}, scale); }
  Tensor composed() const {
    return torch::linear(x, weight, bias) + scale * torch::linear(torch::linear(x, down), up);
  }
};

}  // namespace

TEST_CASE("low_rank_linear equals the composed form, forward and every gradient", "[factors]") {
  Arguments a;
  const Tensor grad = torch::randn({4, 7, 6}, torch::kDouble);
  CHECK(close(a.fused(), a.composed(), 1e-14));
  const auto fused = torch::autograd::grad({a.fused()}, a.all(), {grad});
  const auto composed = torch::autograd::grad({a.composed()}, a.all(), {grad});
  for (std::size_t i = 0; i < fused.size(); ++i) {
    INFO(i);
    CHECK(fused[i].sizes() == a.all()[i].sizes());
    CHECK(close(fused[i], composed[i], 1e-13));
  }
}

TEST_CASE("low_rank_linear gives gradients to exactly the arguments that want one", "[factors]") {
  for (std::size_t wanted = 0; wanted < 5; ++wanted) {
    INFO(wanted);
    Arguments a;
    const auto all = a.all();
    for (std::size_t i = 0; i < all.size(); ++i) Tensor(all[i]).requires_grad_(i == wanted);
    const auto fused = torch::autograd::grad({a.fused().sum()}, {all[wanted]});
    const auto composed = torch::autograd::grad({a.composed().sum()}, {all[wanted]});
    CHECK(close(fused[0], composed[0], 1e-13));
  }
  Arguments a;
  for (auto& tensor : a.all()) Tensor(tensor).requires_grad_(false);
  CHECK_FALSE(a.fused().requires_grad());
}

TEST_CASE("low_rank_linear works without a bias and with strided or empty inputs", "[factors]") {
  Arguments a;
  const Tensor expected = a.composed() - a.bias;
  CHECK(close(low_rank_linear(a.x, a.weight, {}, {a.down, a.up}, a.scale), expected, 1e-14));
  const Tensor strided = a.x.transpose(0, 1);
  const Tensor y = low_rank_linear(strided, a.weight, {}, {a.down, a.up}, a.scale);
  CHECK(close(y, expected.transpose(0, 1), 1e-14));
  y.sum().backward();
  CHECK(a.x.grad().sizes() == a.x.sizes());
  const Tensor none = torch::empty({0, 10}, torch::kDouble);
  CHECK(low_rank_linear(none, a.weight, a.bias, {a.down, a.up}, 1).sizes() ==
        torch::IntArrayRef({0, 6}));
  const Tensor flat = torch::randn({10}, torch::kDouble);
  CHECK(low_rank_linear(flat, a.weight, a.bias, {a.down, a.up}, 1).sizes() ==
        torch::IntArrayRef({6}));
}

TEST_CASE("low_rank_linear keeps fp32 factors over bf16 activations", "[factors]") {
  Arguments a(torch::kFloat);
  Arguments half(torch::kBFloat16);
  const Factors factors{a.down, a.up};
  const Tensor y = low_rank_linear(half.x, half.weight, half.bias, factors, a.scale);
  CHECK(y.scalar_type() == torch::kBFloat16);
  CHECK(close(y, a.composed(), 2e-2));
  y.sum().backward();
  CHECK(a.down.grad().scalar_type() == torch::kFloat);
  CHECK(a.up.grad().scalar_type() == torch::kFloat);
  CHECK(half.x.grad().scalar_type() == torch::kBFloat16);
}

TEST_CASE("low_rank_linear honours autocast", "[factors]") {
  Arguments a(torch::kFloat);
  const Tensor expected = a.composed().detach();
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const Tensor y = a.fused();
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  CHECK(y.scalar_type() == torch::kBFloat16);
  CHECK(close(y, expected, 2e-2));
  y.to(torch::kFloat).sum().backward();
  CHECK(a.x.grad().scalar_type() == torch::kFloat);
  CHECK(a.down.grad().scalar_type() == torch::kFloat);
}

TEST_CASE("low_rank_linear names both shapes when the input does not fit", "[factors]") {
  Arguments a;
  CHECK_THROWS_WITH(
      low_rank_linear(torch::randn({2, 11}, torch::kDouble), a.weight, {}, {a.down, a.up}, 1),
      ContainsSubstring("expected x (..., 10), got [2, 11]"));
}

TEST_CASE("concatenated factors give the sum of the scaled deltas", "[factors]") {
  Arguments a;
  const Factors first{a.down, a.up};
  const Factors second{torch::randn({2, 10}, torch::kDouble), torch::randn({6, 2}, torch::kDouble)};
  const Factors sum = lightlora::concatenate({first, second}, {0.5, -2});
  CHECK(sum.down.size(0) == 5);
  CHECK(close(sum.up.mm(sum.down),
              0.5 * first.up.mm(first.down) - 2 * second.up.mm(second.down), 1e-13));
}
