// SPDX-License-Identifier: Apache-2.0
// The trainer's CUDA graph over the simulated one, and gradient checkpointing inside it.
#include <lightlora/train.h>

#include <iostream>
#include <sstream>

#include "support.h"
#include "support/cuda/graph.h"

namespace {

using cuda::Graph;
using torch::Tensor;

const torch::Device kGpu(torch::kCUDA, 0);

// What is printed while it lives.
class Printed {
 public:
  Printed() : before_(std::cout.rdbuf(text_.rdbuf())) {}
  ~Printed() { std::cout.rdbuf(before_); }
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::streambuf* before_;
};

}  // namespace

TEST_CASE("the third call is recorded, and the device's default is to record", "[graph]") {
  const auto sum = torch::zeros({}, kGpu);
  int runs = 0;
  cuda::Graph graph(
      [&] {
        ++runs;
        sum.add_(1);
      },
      kGpu, /*record=*/true);
  for (int i = 1; i <= 6; ++i) {
    graph.run();
    CHECK(sum.item<float>() == static_cast<float>(i));
    CHECK(graph.recorded() == (i >= 3));
  }
  CHECK(runs == 3);
  CHECK(cuda::use_graph(std::nullopt, kGpu));
  CHECK_FALSE(cuda::use_graph(false, kGpu));
}

TEST_CASE("work that cannot be recorded runs on as it is, with one notice, or fails if it must not",
          "[graph]") {
  const auto sum = torch::zeros({}, kGpu);
  const auto work = [&] {
    sum.add_(1);
    sum.item<float>();
  };
  {
    const Printed printed;
    cuda::Graph graph(work, kGpu, /*record=*/true);
    for (int i = 0; i < 6; ++i) graph.run();
    const auto text = printed.text();
    CHECK(text.find("notice: this step cannot be recorded as a CUDA graph") == 0);
    CHECK(std::count(text.begin(), text.end(), '\n') == 1);
    CHECK_FALSE(graph.recorded());
  }
  CHECK(sum.item<float>() == 6);  // the capture that failed left nothing behind
  cuda::Graph strict(work, kGpu, /*record=*/true, cuda::Graph::OnFailure::fail);
  strict.run();
  strict.run();
  CHECK_THROWS_WITH(strict.run(), ContainsSubstring("not permitted when stream is capturing"));
}

TEST_CASE("a checkpointed segment is recorded if it need not preserve the random state",
          "[graph]") {
  const auto step = [](bool record, bool preserve_rng_state) {
    torch::manual_seed(1);
    torch::nn::Linear model(4, 4);
    model->to(kGpu);
    const auto x = torch::ones({2, 4}, kGpu), loss = torch::zeros({}, kGpu);
    model->weight.mutable_grad() = torch::zeros({4, 4}, kGpu);
    model->bias.mutable_grad() = torch::zeros({4}, kGpu);
    cuda::Graph graph(
        [&] {
          const auto y = lightlora::recompute(
              [&](const std::vector<Tensor>& inputs) { return model(inputs[0]).sin(); }, {x},
              preserve_rng_state);
          const auto sum = y.square().sum();
          sum.backward();
          const torch::NoGradGuard no_grad;
          loss.copy_(sum);
        },
        kGpu, record, cuda::Graph::OnFailure::fail);
    for (int i = 0; i < 5; ++i) {
      graph.run();
      const torch::NoGradGuard no_grad;
      model->weight.sub_(model->weight.grad(), 0.01);
    }
    return std::make_pair(loss.cpu(), model->weight.detach().cpu());
  };
  const auto [loss, weight] = step(true, false);
  const auto [eager_loss, eager_weight] = step(false, true);
  CHECK(torch::equal(loss, eager_loss));
  CHECK(torch::equal(weight, eager_weight));
  CHECK_THROWS_WITH(step(true, true), ContainsSubstring("CUDAGeneratorImpl::get_state"));
}
