// SPDX-License-Identifier: Apache-2.0
// The simulated device itself: that it computes what the CPU computes, and that it is strict.
#include <ATen/autocast_mode.h>
#include <torch/cuda.h>

#include <sstream>
#include <thread>

#include "support.h"
#include "support/fake_cuda/fake_cuda.h"

namespace {

using torch::Tensor;

const torch::Device kSecond(torch::kCUDA, 1);

struct NetImpl : torch::nn::Module {
  torch::nn::Conv2d conv{
      register_module("conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 16, 3).padding(1)))};
  torch::nn::GroupNorm norm{register_module("norm", torch::nn::GroupNorm(4, 16))};
  torch::nn::Linear qkv{register_module("qkv", torch::nn::Linear(16, 48))};
  torch::nn::LayerNorm last{
      register_module("last", torch::nn::LayerNorm(torch::nn::LayerNormOptions({16})))};

  Tensor forward(const Tensor& x) {
    const auto h = torch::silu(norm(conv(x))).flatten(2).transpose(1, 2);
    const auto parts = qkv(h).view({h.size(0), h.size(1), 3, 2, 8}).permute({2, 0, 3, 1, 4});
    const auto mixed = torch::scaled_dot_product_attention(parts[0], parts[1], parts[2]);
    return last(mixed.transpose(1, 2).flatten(2) + h).mean({1, 2});
  }
};
TORCH_MODULE(Net);

std::vector<Tensor> losses(torch::Device device, torch::Dtype dtype) {
  torch::manual_seed(3);
  Net net;
  auto x = torch::randn({2, 3, 9, 7});
  const auto target = torch::randn({2});
  net->to(device, dtype);
  torch::optim::AdamW optimizer(net->parameters(), torch::optim::AdamWOptions(1e-2));
  std::vector<Tensor> result;
  for (int step = 0; step < 4; ++step) {
    optimizer.zero_grad();
    const auto loss = torch::mse_loss(net(x.to(device, dtype)), target.to(device, dtype));
    loss.backward();
    optimizer.step();
    result.push_back(loss.detach().cpu());
  }
  return result;
}

}  // namespace

TEST_CASE("a network trains on both devices with the CPU's losses, bit for bit", "[device]") {
  for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kDouble}) {
    const auto expected = losses(torch::kCPU, dtype);
    for (const auto device : {torch::Device(torch::kCUDA), kSecond}) {
      const auto got = losses(device, dtype);
      for (size_t i = 0; i < got.size(); ++i) {
        CAPTURE(torch::toString(dtype), device.str(), i, expected[i].item<double>(),
                got[i].item<double>());
        CHECK(torch::equal(got[i], expected[i]));
      }
    }
  }
}

TEST_CASE("LibTorch sees two CUDA devices, of which one is current", "[device]") {
  CHECK(torch::cuda::is_available());
  CHECK(torch::cuda::device_count() == fake_cuda::kDeviceCount);
  CHECK(torch::empty({1}, torch::kCUDA).device() == torch::Device(torch::kCUDA, 0));
  const c10::DeviceGuard guard(kSecond);
  CHECK(torch::empty({1}, torch::kCUDA).device() == kSecond);
}

TEST_CASE("the backward pass runs in a thread of the device, as on a GPU", "[device]") {
  const auto x = torch::ones({2}, torch::TensorOptions(torch::kCUDA).requires_grad(true));
  std::thread::id thread;
  const auto y = x * 2;
  y.register_hook([&](const Tensor&) { thread = std::this_thread::get_id(); });
  y.sum().backward();
  CHECK(thread != std::thread::id());
  CHECK(thread != std::this_thread::get_id());
}

TEST_CASE("memory is NaN until it is written, also when it was used before", "[device]") {
  for (int i = 0; i < 20; ++i) {
    auto x = torch::empty({100}, torch::kCUDA);
    CHECK(x.isnan().all().item<bool>());
    x.fill_(1);
  }
}

TEST_CASE("views share memory, and what is written through one is read through all", "[device]") {
  const auto x = torch::zeros({4, 6}, torch::kCUDA);
  x.select(0, 1).narrow(0, 2, 3).fill_(5);
  x.t().index({3, torch::indexing::Slice()}).add_(1);
  auto same = torch::zeros({4, 6});
  same.select(0, 1).narrow(0, 2, 3).fill_(5);
  same.t().index({3, torch::indexing::Slice()}).add_(1);
  CHECK(torch::equal(x.cpu(), same));
  CHECK(x.view({24}).data_ptr() == x.data_ptr());
  CHECK(x.unfold(1, 2, 2).storage().is_alias_of(x.storage()));
}

TEST_CASE("storages resize and keep their values; results of another size are taken over",
          "[device]") {
  auto x = torch::arange(4, torch::kCUDA);
  const auto view = x.narrow(0, 0, 2);
  x.resize_({100});
  CHECK(torch::equal(x.narrow(0, 0, 4).cpu(), torch::arange(4)));
  CHECK(torch::equal(view.cpu(), torch::arange(2)));
  auto out = torch::empty({0}, torch::kCUDA);
  at::add_out(out, torch::ones({3}, torch::kCUDA), torch::ones({3}, torch::kCUDA));
  CHECK(torch::equal(out.cpu(), torch::full({3}, 2.0f)));
  auto other = torch::empty({0}, torch::TensorOptions(torch::kCUDA).dtype(torch::kLong));
  other.set_(x.storage(), /*storage_offset=*/1, {2}, {1});
  CHECK(torch::equal(other.cpu(), torch::tensor({1, 2})));
}

TEST_CASE("tensors are written to and read from archives, and copied between the devices",
          "[device]") {
  const auto x = torch::rand({3, 5}, torch::kCUDA);
  std::stringstream stream;
  torch::save(x, stream);
  Tensor loaded;
  torch::load(loaded, stream);
  CHECK(loaded.is_cuda());
  CHECK(torch::equal(loaded, x));
  CHECK(torch::equal(x.to(kSecond).cpu(), x.cpu()));
}

TEST_CASE("the generators are the device's own, and 16 bytes restore them", "[device]") {
  torch::manual_seed(5);
  const auto cpu = torch::randn({10});
  const auto first = torch::randn({10}, torch::kCUDA);
  CHECK_FALSE(torch::equal(first.cpu(), cpu));
  auto generator = at::globalContext().defaultGenerator(torch::Device(torch::kCUDA, 0));
  const auto state = generator.get_state();
  CHECK(state.numel() == 16);
  const auto second = torch::randn({10}, torch::kCUDA);
  CHECK_FALSE(torch::equal(second, first));
  generator.set_state(state);
  CHECK(torch::equal(torch::randn({10}, torch::kCUDA), second));
  torch::manual_seed(5);
  CHECK(torch::equal(torch::randn({10}, torch::kCUDA), first));
}

TEST_CASE("dropout on the device leaves the CPU's random numbers alone", "[device]") {
  torch::manual_seed(7);
  const auto expected = torch::rand({4});
  torch::manual_seed(7);
  const auto once = torch::dropout(torch::ones({1000}, torch::kCUDA), 0.5, /*train=*/true);
  const auto again = torch::dropout(torch::ones({1000}, torch::kCUDA), 0.5, /*train=*/true);
  CHECK_FALSE(torch::equal(once, again));
  CHECK(std::abs(once.mean().item<float>() - 1) < 0.15);
  CHECK(torch::equal(torch::rand({4}), expected));
}

TEST_CASE("kernels and waits are counted by operator, in every thread", "[device]") {
  const auto x = torch::ones({8}, torch::TensorOptions(torch::kCUDA).requires_grad(true));
  const auto host = torch::ones({8});
  auto pinned = host.pin_memory();
  fake_cuda::reset_counts();
  (x * x).sum().backward();
  CHECK(fake_cuda::counts().wait_total() == 0);
  CHECK(fake_cuda::counts().kernels.at("mul.Tensor") >= 3);  // two of them in the backward pass

  const auto waits = [](const auto& work) {
    fake_cuda::reset_counts();
    work();
    return fake_cuda::counts().wait_total();
  };
  CHECK(waits([&] { x.sum().item<float>(); }) == 1);
  CHECK(waits([&] { x.detach().cpu(); }) == 1);
  CHECK(waits([&] { host.to(torch::kCUDA); }) == 1);
  CHECK(waits([&] { host.to(torch::kCUDA, /*non_blocking=*/true); }) == 1);  // not pinned
  CHECK(waits([&] { pinned.to(torch::kCUDA, /*non_blocking=*/true); }) == 0);
  CHECK(waits([&] { pinned.copy_(x.detach(), /*non_blocking=*/true); }) == 0);
  CHECK(waits([&] { x.detach().nonzero(); }) == 1);
  CHECK(waits([&] { x.detach().index({x.detach() > 0}); }) >= 1);
  CHECK(waits([&] { torch::equal(x, x); }) == 1);
  CHECK(waits([&] { torch::zeros({8}, torch::kCUDA).add_(x.detach(), 2).fill_(3); }) == 0);
  CHECK(waits([&] { torch::cuda::synchronize(); }) == 1);
  const auto square = torch::eye(3, torch::kCUDA);
  CHECK(waits([&] { at::linalg_solve_ex(square, square); }) == 0);
  CHECK(waits([&] { at::linalg_solve(square, square); }) == 1);  // its error code
}

TEST_CASE("memory is counted, now and at its most", "[device]") {
  const auto before = fake_cuda::live_bytes(1);
  fake_cuda::reset_peak(1);
  {
    const auto x = torch::empty({1000}, kSecond);
    CHECK(fake_cuda::live_bytes(1) == before + 4096);
  }
  CHECK(fake_cuda::live_bytes(1) == before);
  CHECK(fake_cuda::peak_bytes(1) == before + 4096);
}

TEST_CASE("autocast lowers products on the device and leaves sums in fp32", "[device]") {
  const auto a = torch::rand({4, 4}, torch::kCUDA);
  at::autocast::set_autocast_enabled(at::kCUDA, true);
  at::autocast::set_autocast_dtype(at::kCUDA, at::kBFloat16);
  const auto product = torch::mm(a, a);
  const auto sum = torch::sum(a);
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCUDA, false);
  CHECK(product.scalar_type() == torch::kBFloat16);
  CHECK(sum.scalar_type() == torch::kFloat);
}

TEST_CASE("operators that CUDA does not have are refused", "[device]") {
  CHECK_THROWS_WITH(at::histogram(torch::ones({3}, torch::kCUDA), 2),
                    ContainsSubstring("Could not run 'aten::histogram"));
}
