// SPDX-License-Identifier: Apache-2.0
// The passes that replace several of LibTorch's operators on a CPU, against those operators in fp64.
#include <ATen/Parallel.h>
#include <lightlora/lightlora.h>

#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <vector>

#include "kernels/geglu.h"
#include "kernels/group_norm_silu.h"
#include "kernels/vectors.h"
#include "support.h"

namespace {

using Function = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

// The result for some inputs, and the gradients of all of them.
std::vector<at::Tensor> with_gradients(const Function& f, const std::vector<at::Tensor>& values,
                                       const at::Tensor& dy) {
  std::vector<at::Tensor> inputs;
  for (const auto& value : values) inputs.push_back(value.detach().requires_grad_());
  const auto y = f(inputs);
  std::vector<at::Tensor> all{y.detach()};
  for (const auto& grad : torch::autograd::grad({y}, inputs, {dy})) all.push_back(grad);
  return all;
}

std::vector<at::Tensor> cast(const std::vector<at::Tensor>& values, at::ScalarType dtype) {
  std::vector<at::Tensor> result;
  for (const auto& value : values) result.push_back(value.to(dtype));
  return result;
}

// Ours is as near to fp64 as LibTorch's operators are in the same dtype, but for a fifth of its
// error and the rounding of one operation.
void check_against_operators(const Function& ours, const Function& operators,
                             const std::vector<at::Tensor>& values, const at::Tensor& dy,
                             at::ScalarType dtype) {
  const auto inputs = cast(values, dtype);
  const auto grad = dy.to(dtype);
  const auto exact = with_gradients(operators, cast(inputs, at::kDouble), grad.to(at::kDouble));
  const auto theirs = with_gradients(operators, inputs, grad);
  const auto mine = with_gradients(ours, inputs, grad);
  const double rounding = dtype == at::kFloat ? 1e-7 : 2e-3;
  for (size_t i = 0; i < exact.size(); ++i) {
    CAPTURE(i, dtype);
    CHECK(mine[i].scalar_type() == dtype);
    CHECK(close(mine[i], exact[i], 1.2 * relative_error(theirs[i], exact[i]) + rounding));
  }
}

torch::nn::GroupNorm norm_of(const std::vector<at::Tensor>& inputs, int64_t groups) {
  torch::nn::GroupNorm norm(
      torch::nn::GroupNormOptions(groups, inputs[0].size(1)).eps(1e-5).affine(false));
  norm->weight = inputs[1];
  norm->bias = inputs[2];
  return norm;
}

Function norm_pass(int64_t groups, bool activates) {
  return [=](const std::vector<at::Tensor>& in) {
    auto norm = norm_of(in, groups);
    return activates ? sd::group_norm_silu(*norm, in[0]) : sd::group_norm(*norm, in[0]);
  };
}

Function norm_operators(int64_t groups, bool activates) {
  return [=](const std::vector<at::Tensor>& in) {
    const auto y = at::group_norm(in[0], groups, in[1], in[2], 1e-5);
    return activates ? at::silu(y) : y;
  };
}

// A map, weights and a bias, with a mean that is large beside the deviation.
std::vector<at::Tensor> norm_values(at::IntArrayRef sizes, at::MemoryFormat format) {
  const auto map = at::randn(sizes, at::kDouble) * 0.7 + 1.5;
  return {map.contiguous(format), at::randn({sizes[1]}, at::kDouble) + 1,
          at::randn({sizes[1]}, at::kDouble)};
}

struct NormShape {
  std::vector<int64_t> sizes;
  int64_t groups;
};

const std::vector<NormShape>& norm_shapes() {
  static const std::vector<NormShape> shapes{{{2, 320, 8, 8}, 32}, {{1, 30, 7, 5}, 3},
                                             {{3, 4, 1, 1}, 2},    {{1, 6, 37, 41}, 2},
                                             {{2, 17, 3, 3}, 1},   {{1, 8, 65, 33}, 8}};
  return shapes;
}

constexpr auto kPlanar = at::MemoryFormat::Contiguous;
constexpr auto kRows = at::MemoryFormat::ChannelsLast;

struct NormedImpl : torch::nn::Module {
  NormedImpl() {
    norm = register_module("norm", torch::nn::GroupNorm(torch::nn::GroupNormOptions(2, 6)));
    register_module("fc", torch::nn::Linear(2, 2));  // patching wants a layer that adapters have
  }
  at::Tensor forward(const at::Tensor& x) { return sd::group_norm_silu(*norm, x); }
  torch::nn::GroupNorm norm{nullptr};
};
TORCH_MODULE(Normed);

std::vector<at::Tensor> second_order(const Function& f, const std::vector<at::Tensor>& values,
                                     const at::Tensor& dy) {
  std::vector<at::Tensor> inputs;
  for (const auto& value : values) inputs.push_back(value.detach().requires_grad_());
  const auto outer = dy.detach().requires_grad_();
  const auto first = torch::autograd::grad({f(inputs)}, inputs, {outer}, /*retain_graph=*/true,
                                           /*create_graph=*/true);
  at::Tensor total;
  for (const auto& grad : first) {
    const auto part = (grad * grad).sum();
    total = total.defined() ? total + part : part;
  }
  inputs.push_back(outer);
  // No gradient depends on a bias without an activation behind it.
  auto grads = torch::autograd::grad({total}, inputs, {}, /*retain_graph=*/std::nullopt,
                                     /*create_graph=*/false, /*allow_unused=*/true);
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].defined()) grads[i] = at::zeros_like(inputs[i]);
  }
  return grads;
}

void check_second_order(const Function& ours, const Function& operators,
                        const std::vector<at::Tensor>& values, const at::Tensor& dy) {
  const auto exact = second_order(operators, values, dy);
  const auto mine = second_order(ours, cast(values, at::kFloat), dy.to(at::kFloat));
  for (size_t i = 0; i < exact.size(); ++i) {
    CAPTURE(i);
    CHECK(close(mine[i], exact[i], 1e-4));
  }
}

}  // namespace

TEST_CASE("fused passes: group norm and silu are as exact as the operators", "[kernels]") {
  at::manual_seed(1);
  for (const auto& shape : norm_shapes()) {
    for (const auto format : {kPlanar, kRows}) {
      for (const bool activates : {true, false}) {
        for (const auto dtype : {at::kFloat, at::kBFloat16}) {
          CAPTURE(shape.sizes, shape.groups, format == kRows, activates);
          const auto values = norm_values(shape.sizes, format);
          // Of another layout than the map, as some operators hand them back.
          const auto dy = at::randn(shape.sizes, at::kDouble);
          check_against_operators(norm_pass(shape.groups, activates),
                                  norm_operators(shape.groups, activates), values, dy, dtype);
        }
      }
    }
  }
}

TEST_CASE("fused passes: a far mean costs the statistics nothing", "[kernels]") {
  at::manual_seed(2);
  for (const auto format : {kPlanar, kRows}) {
    const auto x = (at::randn({1, 64, 40, 40}) + 1000).contiguous(format);
    const auto ones = at::ones({64}), zeros = at::zeros({64});
    const auto y = norm_pass(4, false)({x, ones, zeros});
    const auto exact =
        at::group_norm(x.to(at::kDouble), 4, ones.to(at::kDouble), zeros.to(at::kDouble), 1e-5);
    CHECK(close(y, exact, 1e-4));  // x itself is rounded to 6e-5 of a deviation
  }
}

TEST_CASE("fused passes: group norm keeps the memory format and takes any strides", "[kernels]") {
  const auto values = cast(norm_values({2, 32, 6, 10}, kRows), at::kFloat);
  const auto y = norm_pass(8, true)(values);
  CHECK(y.is_contiguous(kRows));
  const auto planar = values[0].contiguous();
  const auto cut = at::cat({planar, planar}, 3).narrow(3, 0, 10);
  REQUIRE(!cut.is_contiguous());
  const auto z = norm_pass(8, true)({cut, values[1], values[2]});
  CHECK(close(z, y, 1e-6));
  CHECK(norm_pass(8, true)({planar, values[1], values[2]}).is_contiguous());
}

TEST_CASE("fused passes: without gradients a map that nobody holds is used again", "[kernels]") {
  if (sd::passes::best_isa() == sd::passes::Isa::none) return;
  const at::NoGradGuard no_grad;
  for (const auto format : {kPlanar, kRows}) {
    const auto values = cast(norm_values({2, 32, 6, 10}, format), at::kFloat);
    auto norm = norm_of(values, 8);
    const auto expected = sd::group_norm_silu(*norm, values[0]);
    const auto copy = values[0].clone(at::MemoryFormat::Preserve);
    const auto result = sd::group_norm_silu_of(*norm, copy);
    CHECK(result.data_ptr() == copy.data_ptr());
    CHECK(result.equal(expected));
  }
}

TEST_CASE("fused passes: geglu is as exact as the operators", "[kernels]") {
  at::manual_seed(3);
  const Function operators = [](const std::vector<at::Tensor>& in) {
    const auto halves = in[0].chunk(2, -1);
    return halves[0] * at::gelu(halves[1]);
  };
  const Function ours = [](const std::vector<at::Tensor>& in) { return sd::geglu(in[0]); };
  for (const auto& sizes :
       std::vector<std::vector<int64_t>>{{2, 5, 64}, {1, 3, 2}, {7, 46}, {34}, {2, 3, 130}}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      CAPTURE(sizes);
      auto half = sizes;
      half.back() /= 2;
      check_against_operators(ours, operators, {at::randn(sizes, at::kDouble) * 2},
                              at::randn(half, at::kDouble), dtype);
    }
  }
  check_second_order(ours, operators, {at::randn({3, 22}, at::kDouble)},
                     at::randn({3, 11}, at::kDouble));
}

TEST_CASE("fused passes: geglu holds far out, and for what is no number", "[kernels]") {
  const auto gate = at::linspace(-30, 30, 2001);
  const auto both = at::cat({at::ones_like(gate), gate});
  const auto exact = at::gelu(gate.to(at::kDouble));
  const auto y = sd::geglu(both).to(at::kDouble);
  CHECK((y - exact).abs().max().item<double>() < 2e-6);  // 30 rounded to fp32
  CHECK((y - exact).abs().narrow(0, 0, 1001).max().item<double>() < 1.5e-7);
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  CHECK(sd::geglu(at::tensor({1.0F, nan})).isnan().all().item<bool>());
  CHECK(sd::geglu(at::tensor({1.0F, inf})).item<float>() == inf);
}

TEST_CASE("fused passes: group norm can be differentiated twice", "[kernels]") {
  at::manual_seed(4);
  for (const auto format : {kPlanar, kRows}) {
    for (const bool activates : {true, false}) {
      CAPTURE(format == kRows, activates);
      check_second_order(norm_pass(3, activates), norm_operators(3, activates),
                         norm_values({2, 6, 5, 3}, format), at::randn({2, 6, 5, 3}, at::kDouble));
    }
  }
}

TEST_CASE("fused passes: the number of threads changes no bit", "[kernels]") {
  if (sd::passes::best_isa() == sd::passes::Isa::none) return;
  at::manual_seed(5);
  const int before = at::get_num_threads();
  for (const auto format : {kPlanar, kRows}) {
    const auto values = cast(norm_values({2, 64, 48, 48}, format), at::kFloat);
    const auto dy = at::randn({2, 64, 48, 48});
    at::set_num_threads(1);
    const auto one = with_gradients(norm_pass(8, true), values, dy);
    at::set_num_threads(3);
    const auto three = with_gradients(norm_pass(8, true), values, dy);
    at::set_num_threads(before);
    for (size_t i = 0; i < one.size(); ++i) CHECK(one[i].equal(three[i]));
  }
}

TEST_CASE("fused passes: adapters of a norm count", "[kernels]") {
  Normed net;
  const auto x = at::randn({1, 6, 4, 5});
  const auto before = net(x);
  const auto lora = lightlora::patch<lightlora::ClassicLoRA>(
      *net, 2, lightlora::Targets().vectors({lightlora::Targets::norms()}));
  {
    const at::NoGradGuard no_grad;
    for (auto parameter : lora->parameters()) parameter.fill_(0.5);
  }
  const auto expected =
      at::silu(at::group_norm(x, 2, net->norm->weight + 0.5, net->norm->bias + 0.5, 1e-5));
  CHECK(close(lora(net, x), expected, 1e-6));
  CHECK(net(x).equal(before));
}
