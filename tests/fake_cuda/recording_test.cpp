// SPDX-License-Identifier: Apache-2.0
// The simulated CUDA graph: what it replays is what ran, and what CUDA forbids while it records
// throws.
#include <memory>

#include "support.h"
#include "support/cuda/graph_recorder.h"
#include "support/fake_cuda/fake_cuda.h"

extern "C" cuda::GraphRecorder* lightlora_make_graph_recorder(c10::Device device);

namespace {

using torch::Tensor;

const torch::Device kDevice(torch::kCUDA, 0);

std::unique_ptr<cuda::GraphRecorder> recorder() {
  return std::unique_ptr<cuda::GraphRecorder>(lightlora_make_graph_recorder(kDevice));
}

// A step whose inputs, parameters, gradient and loss stay where they are, as a recording asks for.
struct Training {
  torch::nn::Linear model{6, 6};
  Tensor x = torch::zeros({4, 6}, kDevice), rate = torch::zeros({}, kDevice);
  Tensor loss = torch::zeros({}, kDevice), gradient = torch::zeros({6, 6}, kDevice);
  double baked = 1;  // a number of the host, which a recording keeps for ever
  bool bakes = false;

  Training() {
    torch::manual_seed(1);
    model = torch::nn::Linear(6, 6);
    model->to(kDevice);
    model->weight.mutable_grad() = gradient;
  }

  void work() {
    const auto y = torch::dropout(model(x), 0.25, /*train=*/true).square().mean();
    auto scaled = y * rate;
    if (bakes) scaled = scaled * baked;
    scaled.backward();
    const torch::NoGradGuard no_grad;
    loss.copy_(scaled);
  }

  // Losses of ten steps over changing batches and rates, and the weights in the end.
  template <typename Run>
  std::vector<Tensor> ten(const Run& run) {
    std::vector<Tensor> result;
    for (int step = 0; step < 10; ++step) {
      const torch::NoGradGuard no_grad;
      gradient.zero_();
      baked = 1 + step;
      x.copy_(torch::randn({4, 6}, at::detail::createCPUGenerator(static_cast<uint64_t>(step))));
      rate.fill_(0.1 * (step + 1));
      torch::manual_seed(static_cast<uint64_t>(step));
      {
        const torch::AutoGradMode record(true);
        run();
      }
      result.push_back(loss.cpu().clone());
      model->weight.sub_(gradient, 0.5);
    }
    result.push_back(model->weight.detach().cpu());
    return result;
  }

  std::vector<Tensor> eager() {
    return ten([&] { work(); });
  }
  std::vector<Tensor> recorded() {
    const auto graph = recorder();
    int calls = 0;
    return ten([&] {
      if (calls++ < graph->warm_ups()) return graph->warm_up([&] { work(); });
      if (calls == graph->warm_ups() + 1) graph->record([&] { work(); });
      graph->replay();
    });
  }
};

bool equal(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!torch::equal(a[i], b.at(i))) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("ten recorded steps equal ten that ran, bit for bit, also with dropout", "[recording]") {
  CHECK(equal(Training().recorded(), Training().eager()));
}

TEST_CASE("a number of the host that was baked into a recording shows", "[recording]") {
  Training a, b;
  a.bakes = b.bakes = true;
  CHECK_FALSE(equal(a.recorded(), b.eager()));
}

TEST_CASE("recording changes nothing, and what a replay leaves in its own memory is gone after it",
          "[recording]") {
  const auto x = torch::ones({3}, kDevice), out = torch::zeros({3}, kDevice);
  Tensor inside;
  const auto graph = recorder();
  graph->record([&] {
    inside = x * 2;
    x.add_(1);
    out.copy_(inside);
  });
  CHECK(torch::equal(x.cpu(), torch::ones({3})));
  CHECK(torch::equal(out.cpu(), torch::zeros({3})));
  graph->replay();
  CHECK(torch::equal(x.cpu(), torch::full({3}, 2.0f)));
  CHECK(torch::equal(out.cpu(), torch::full({3}, 2.0f)));
  graph->replay();
  CHECK(torch::equal(out.cpu(), torch::full({3}, 4.0f)));
  CHECK(inside.isnan().all().item<bool>());
}

TEST_CASE("what would wait, touch the host or the generator's state cannot be recorded",
          "[recording]") {
  const auto x = torch::ones({3}, kDevice);
  const auto pinned = torch::ones({3}).pin_memory();
  auto generator = at::globalContext().defaultGenerator(kDevice);
  const auto state = generator.get_state();
  const std::pair<const char*, std::function<void()>> forbidden[] = {
      {"item", [&] { x.sum().item<float>(); }},
      {"a copy to the CPU", [&] { x.cpu(); }},
      {"an upload", [&] { torch::ones({3}).to(kDevice); }},
      {"an upload of memory that will be another's", [&] { x.copy_(pinned, true); }},
      {"a size that depends on values", [&] { x.nonzero(); }},
      {"synchronising", [&] { torch::cuda::synchronize(); }},
      {"reading the generator", [&] { generator.get_state(); }},
      {"setting the generator", [&] { generator.set_state(state); }},
      {"seeding", [&] { torch::manual_seed(1); }}};
  for (const auto& [what, work] : forbidden) {
    INFO(what);
    CHECK_THROWS_WITH(recorder()->record([&, &go = work] {
      x.add_(1);
      go();
    }),
                      ContainsSubstring("not permitted when stream is capturing"));
    CHECK(torch::equal(x.cpu(), torch::ones({3})));  // nothing of it happened
  }
}
