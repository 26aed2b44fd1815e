// SPDX-License-Identifier: Apache-2.0
#include <ATen/autocast_mode.h>
#include <lightlora/detail/low_rank_linear.h>

#include "support.h"

using lightlora::Factors;
using lightlora::low_rank_linear;
using lightlora::Path;
using lightlora::Route;
using torch::Tensor;

namespace {

const std::vector<Path> kPaths{Path::bypass, Path::merged};

std::string name_of(Path path) { return path == Path::merged ? "merged" : "bypass"; }

struct Arguments {
  Tensor x, weight, bias, down, up;
  double scale = 0.75;

  explicit Arguments(torch::ScalarType dtype = torch::kDouble,
                     std::vector<int64_t> leading = {4, 7}, int64_t in = 10, int64_t out = 6,
                     int64_t rank = 3) {
    torch::manual_seed(5);
    const auto make = [&](std::vector<int64_t> sizes) {
      return torch::randn(sizes, torch::kDouble).to(dtype).requires_grad_();
    };
    leading.push_back(in);
    x = make(leading);
    weight = make({out, in});
    bias = make({out});
    down = make({rank, in});
    up = make({out, rank});
  }

  std::vector<Tensor> all() const { return {x, weight, bias, down, up}; }
  Tensor fused(Path path = Path::bypass) const {
    return low_rank_linear(x, weight, bias, {down, up}, scale, "layer", path);
  }
  Tensor composed() const {
    return torch::linear(x, weight, bias) + scale * torch::linear(torch::linear(x, down), up);
  }
};

// The same values in double.
Arguments in_double(const Arguments& a) {
  Arguments result;
  const auto copy = [](const Tensor& t) {
    return t.detach().to(torch::kDouble).requires_grad_(t.requires_grad());
  };
  result.x = copy(a.x);
  result.weight = copy(a.weight);
  result.bias = copy(a.bias);
  result.down = copy(a.down);
  result.up = copy(a.up);
  return result;
}

// Output and all gradients of each path against the composed form in double.
void check_against_double(const Arguments& a, double tolerance) {
  const Arguments exact = in_double(a);
  const Tensor y = exact.composed();
  const Tensor grad = torch::randn(y.sizes(), torch::kDouble).to(a.x.scalar_type());
  const auto expected = torch::autograd::grad({y}, exact.all(), {grad.to(torch::kDouble)});
  for (const Path path : kPaths) {
    INFO(name_of(path));
    const Tensor ours = a.fused(path);
    CHECK(ours.scalar_type() == a.x.scalar_type());
    CHECK(close(ours, y, tolerance));
    const auto gradients = torch::autograd::grad({ours}, a.all(), {grad});
    for (std::size_t i = 0; i < expected.size(); ++i) {
      INFO("argument " << i);
      CHECK(gradients[i].scalar_type() == a.all()[i].scalar_type());
      CHECK(close(gradients[i], expected[i], tolerance));
    }
  }
}

}  // namespace

TEST_CASE("low_rank_linear equals the composed form on every path, forward and gradients",
          "[low_rank_linear]") {
  check_against_double(Arguments(), 1e-13);
}

TEST_CASE("the CPU kernels equal the composed form for every rank, width and number of rows",
          "[low_rank_linear]") {
  // 70 and 37 are no multiples of a vector, 13 rows none of a block; rank 9 is the library's.
  for (int64_t rank = 1; rank <= 9; ++rank) {
    INFO("rank " << rank);
    check_against_double(Arguments(torch::kFloat, {13}, 70, 37, rank), 2e-6);
    check_against_double(Arguments(torch::kFloat, {2, 8}, 64, 96, rank), 2e-6);
    // bf16 keeps 8 bits.
    check_against_double(Arguments(torch::kBFloat16, {13}, 70, 37, rank), 2e-2);
  }
  check_against_double(Arguments(torch::kHalf, {13}, 70, 37, 4), 4e-3);
}

TEST_CASE("the CPU kernels use all threads and still find the same sums", "[low_rank_linear]") {
  const Arguments a(torch::kFloat, {2, 1000}, 96, 80, 4);
  const int threads = at::get_num_threads();
  at::set_num_threads(3);
  check_against_double(a, 2e-6);
  at::set_num_threads(threads);
}

TEST_CASE("numerical derivatives in double agree on every path", "[low_rank_linear]") {
  const double step = 1e-6;
  for (const Path path : kPaths) {
    const Arguments a;
    const Tensor weights = torch::randn({4, 7, 6}, torch::kDouble);
    const auto gradients = torch::autograd::grad({(a.fused(path) * weights).sum()}, a.all());
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      INFO(name_of(path) << ", argument " << i);
      const Tensor argument = a.all()[i];
      const Tensor direction = torch::randn_like(argument);
      const auto at = [&](double distance) {
        const torch::NoGradGuard no_grad;
        argument.add_(direction, distance);
        const double value = (a.fused(path) * weights).sum().item<double>();
        argument.sub_(direction, distance);
        return value;
      };
      const double slope = (at(step) - at(-step)) / (2 * step);
      CHECK(std::abs(slope - (gradients[i] * direction).sum().item<double>()) < 1e-6);
    }
  }
}

TEST_CASE("low_rank_linear gives gradients to exactly the arguments that want one",
          "[low_rank_linear]") {
  for (const auto dtype : {torch::kDouble, torch::kFloat}) {  // LibTorch's products, the kernels
    for (std::size_t wanted = 0; wanted < 5; ++wanted) {
      for (const Path path : kPaths) {
        INFO(dtype << ", " << name_of(path) << ", argument " << wanted);
        Arguments a(dtype);
        const auto all = a.all();
        for (std::size_t i = 0; i < all.size(); ++i) Tensor(all[i]).requires_grad_(i == wanted);
        const auto fused = torch::autograd::grad({a.fused(path).sum()}, {all[wanted]});
        const auto composed = torch::autograd::grad({a.composed().sum()}, {all[wanted]});
        CHECK(close(fused[0], composed[0], dtype == torch::kDouble ? 1e-13 : 2e-6));
      }
    }
    Arguments a(dtype);
    for (auto& tensor : a.all()) Tensor(tensor).requires_grad_(false);
    CHECK_FALSE(a.fused().requires_grad());
  }
}

TEST_CASE("low_rank_linear takes inputs of any number of dimensions and any strides",
          "[low_rank_linear]") {
  for (const auto& leading :
       std::vector<std::vector<int64_t>>{{}, {5}, {2, 5}, {2, 3, 4}, {0}, {2, 0}}) {
    INFO(leading);
    check_against_double(Arguments(torch::kFloat, leading), 2e-6);
  }
  for (const Path path : kPaths) {
    const Arguments a(torch::kFloat, {4, 7}, 32, 48);
    const Tensor turned = torch::randn({4, 32, 7}).requires_grad_();
    const Tensor every_second = torch::randn({4, 7, 64}).requires_grad_();
    for (const auto& [leaf, x] : {std::pair{turned, turned.transpose(1, 2)},
                                  std::pair{every_second, every_second.slice(2, 0, 64, 2)}}) {
      Arguments strided = a, dense = a;
      strided.x = x;
      dense.x = x.contiguous();
      const Tensor y = strided.fused(path);
      CHECK(close(y, dense.composed(), 2e-6));
      // A gradient whose rows are not dense either.
      const Tensor grad = torch::randn({4, 48, 7}).transpose(1, 2);
      const auto ours = torch::autograd::grad({y}, {leaf, a.down, a.up}, {grad});
      const auto expected = torch::autograd::grad({dense.composed()}, {leaf, a.down, a.up}, {grad});
      for (std::size_t i = 0; i < ours.size(); ++i) CHECK(close(ours[i], expected[i], 2e-6));
    }
  }
}

TEST_CASE("low_rank_linear works without a bias and with strided or empty inputs",
          "[low_rank_linear]") {
  Arguments a;
  const Tensor expected = a.composed() - a.bias;
  CHECK(close(low_rank_linear(a.x, a.weight, {}, {a.down, a.up}, a.scale), expected, 1e-14));
  const Tensor strided = a.x.transpose(0, 1);
  const Tensor y = low_rank_linear(strided, a.weight, {}, {a.down, a.up}, a.scale);
  CHECK(close(y, expected.transpose(0, 1), 1e-14));
  y.sum().backward();
  CHECK(a.x.grad().sizes() == a.x.sizes());
}

TEST_CASE("low_rank_linear keeps fp32 factors over bf16 activations", "[low_rank_linear]") {
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

TEST_CASE("low_rank_linear honours autocast on every path", "[low_rank_linear]") {
  for (const Path path : kPaths) {
    for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
      INFO(name_of(path) << ", " << dtype);
      Arguments a(torch::kFloat);
      const Tensor expected = a.composed().detach();
      at::autocast::set_autocast_enabled(at::kCPU, true);
      at::autocast::set_autocast_dtype(at::kCPU, dtype);
      const Tensor y = a.fused(path);
      at::autocast::set_autocast_enabled(at::kCPU, false);
      at::autocast::clear_cache();
      CHECK(y.scalar_type() == dtype);
      CHECK(close(y, expected, 2e-2));
      y.to(torch::kFloat).sum().backward();
      CHECK(a.x.grad().scalar_type() == torch::kFloat);
      CHECK(a.down.grad().scalar_type() == torch::kFloat);
    }
  }
}

// Gradient checkpointing: forward without autograd, run again with it in the backward pass.
struct Recomputed : torch::autograd::Function<Recomputed> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x,
                        const Arguments* layer, int64_t path) {
    ctx->save_for_backward({x});
    ctx->saved_data["layer"] = reinterpret_cast<int64_t>(layer);
    ctx->saved_data["path"] = path;
    return run(*layer, x, path);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const torch::AutoGradMode grad(true);
    const auto* layer = reinterpret_cast<const Arguments*>(ctx->saved_data["layer"].toInt());
    const Tensor x = ctx->get_saved_variables()[0].detach().requires_grad_();
    torch::autograd::backward({run(*layer, x, ctx->saved_data["path"].toInt())}, {grads[0]});
    return {x.grad(), Tensor(), Tensor()};
  }
  static Tensor run(Arguments layer, const Tensor& x, int64_t path) {
    layer.x = x;
    return layer.fused(static_cast<Path>(path));
  }
};

TEST_CASE("gradient checkpointing around low_rank_linear changes no gradient",
          "[low_rank_linear]") {
  for (const Path path : kPaths) {
    const Arguments plain(torch::kFloat, {13}, 70, 37, 4), checkpointed = plain;
    const Tensor x = plain.x.detach().clone().requires_grad_();
    const auto expected = torch::autograd::grad({plain.fused(path).sum()}, plain.all());
    Recomputed::apply(x, &checkpointed, static_cast<int64_t>(path)).sum().backward();
    CHECK(torch::equal(x.grad(), expected[0]));
    CHECK(torch::equal(checkpointed.down.grad(), expected[3]));
    CHECK(torch::equal(checkpointed.up.grad(), expected[4]));
  }
}

TEST_CASE("routes have the names that flags spell", "[route]") {
  for (const Route route : {Route::automatic, Route::bypass, Route::merged}) {
    CHECK(lightlora::parse_route(lightlora::to_string(route)) == route);
  }
  CHECK_THROWS_WITH(lightlora::parse_route("fast"), ContainsSubstring("auto, bypass, merged"));
}

TEST_CASE("second derivatives are those of the composed form, on every path and kernel",
          "[low_rank_linear]") {
  for (const auto dtype : {torch::kDouble, torch::kFloat}) {
    for (const int64_t rank : {2, 12}) {  // with the CPU kernels in fp32, and without
      for (const Path path : kPaths) {
        INFO(dtype << ", rank " << rank << ", " << name_of(path));
        const Arguments a(dtype, {13}, 70, 37, rank);
        const auto second = [&](const Tensor& y) {
          const auto first = torch::autograd::grad({y.tanh().sum()}, a.all(), {}, true, true);
          Tensor penalty = torch::zeros({}, dtype);
          for (const auto& gradient : first) penalty = penalty + gradient.square().sum();
          return torch::autograd::grad({penalty}, a.all());
        };
        const auto expected = second(a.composed()), found = second(a.fused(path));
        for (std::size_t i = 0; i < found.size(); ++i) {
          CHECK(close(found[i], expected[i], dtype == torch::kDouble ? 1e-10 : 1e-4));
        }
      }
    }
  }
}

TEST_CASE("the output may be changed in place, and x may not be before the backward pass",
          "[low_rank_linear]") {
  for (const Path path : kPaths) {
    for (const auto dtype : {torch::kDouble, torch::kFloat}) {
      INFO(name_of(path) << " " << dtype);
      const Arguments a(dtype, {2, 13}, 70, 37, 4);
      const auto expected = torch::autograd::grad({(a.fused(path) * 2).relu().sum()}, a.all());
      Tensor y = a.fused(path);
      y.mul_(2).relu_();
      const auto found = torch::autograd::grad({y.sum()}, a.all());
      for (std::size_t i = 0; i < found.size(); ++i) CHECK(close(found[i], expected[i], 1e-6));

      Arguments changed(dtype, {13}, 70, 37, 4);
      changed.x = (changed.x * 1).clone();
      const Tensor z = changed.fused(path);
      changed.x.mul_(2);
      CHECK_THROWS_WITH(z.sum().backward(), ContainsSubstring("modified by an inplace operation"));
    }
  }
}

TEST_CASE("a merged bf16 weight is summed in fp32 and rounded once", "[low_rank_linear]") {
  const Arguments a(torch::kFloat, {13}, 70, 37, 4);
  Arguments half(torch::kBFloat16, {13}, 70, 37, 4);
  half.down = a.down;
  half.up = a.up;
  const Tensor sum = half.weight.to(torch::kFloat) + a.scale * a.up.mm(a.down);
  CHECK(close(half.fused(Path::merged), torch::linear(half.x, sum.to(torch::kBFloat16), half.bias),
              1e-3));
}

TEST_CASE("low_rank_linear names both shapes when the input does not fit", "[low_rank_linear]") {
  Arguments a;
  CHECK_THROWS_WITH(
      low_rank_linear(torch::randn({2, 11}, torch::kDouble), a.weight, {}, {a.down, a.up}, 1),
      ContainsSubstring("expected x (..., 10), got [2, 11]"));
}

TEST_CASE("concatenated factors give the sum of the scaled deltas", "[low_rank_linear]") {
  Arguments a;
  const Factors first{a.down, a.up};
  const Factors second{torch::randn({2, 10}, torch::kDouble), torch::randn({6, 2}, torch::kDouble)};
  const Factors sum = lightlora::concatenate({first, second}, {0.5, -2});
  CHECK(sum.down.size(0) == 5);
  CHECK(close(sum.up.mm(sum.down), 0.5 * first.up.mm(first.down) - 2 * second.up.mm(second.down),
              1e-13));
}
