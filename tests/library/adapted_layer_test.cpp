// SPDX-License-Identifier: Apache-2.0
// A layer of any variant as a child of a model of one's own: cast, trained and replicated with it.
#include <tuple>

#include "data_parallel.h"
#include "models.h"

using namespace lightlora_tests;
using namespace lightlora;

namespace {

template <typename AdapterImpl>
struct NetImpl : torch::nn::Cloneable<NetImpl<AdapterImpl>> {
  using Layer = AdaptedLayer<torch::nn::Linear, AdapterImpl>;

  NetImpl() { reset(); }
  void reset() override {
    layer = this->register_module(
        "layer", Layer(torch::nn::Linear(70, 90), usual_options(AdapterImpl::kVariant)));
  }
  Tensor forward(const Tensor& x) { return layer->forward(x); }
  std::vector<Tensor> trained() const { return layer->adapter->parameters(); }

  Layer layer{nullptr};
};

template <typename AdapterImpl, typename Body>
void with_net(const Body& body) {
  INFO(AdapterImpl::kVariant);
  torch::manual_seed(5);
  const auto net = std::make_shared<NetImpl<AdapterImpl>>();
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : net->trained()) parameter.normal_(0, 0.3);
  }
  body(net);
}

template <typename Body, typename... AdapterImpls>
void with_each_net(const Body& body, const std::tuple<AdapterImpls...>* /*list*/) {
  (with_net<AdapterImpls>(body), ...);
}

// Calls `body` with such a model of every variant, whose adapter does something.
template <typename Body>
void for_each_net(const Body& body) {
  with_each_net(body, static_cast<LibraryVariants*>(nullptr));
}

}  // namespace

TEST_CASE("a child of a model that is cast to half takes a finite step of AdamW in fp32",
          "[layers]") {
  for_each_net([](const auto& net) {
    net->to(torch::kHalf);
    CHECK(net->layer->base->weight.scalar_type() == torch::kHalf);
    std::vector<Tensor> before;
    for (const auto& parameter : net->trained()) before.push_back(parameter.detach().clone());
    torch::optim::AdamW optimizer(net->trained(), torch::optim::AdamWOptions(1e-3));
    // Gradients whose squares are zero in half precision: the step would be a division by nothing.
    const Tensor x = torch::randn({4, 70}, torch::kHalf) * 1e-2;
    (net->forward(x).to(torch::kFloat).square().mean() * 1e-3).backward();
    optimizer.step();
    const auto after = net->trained();
    for (std::size_t i = 0; i < after.size(); ++i) {
      CHECK(after[i].scalar_type() == torch::kFloat);
      CHECK(after[i].isfinite().all().template item<bool>());
      CHECK_FALSE(torch::equal(after[i], before[i]));
    }
  });
}

TEST_CASE("replicas of a model with such a child compute and train the same adapter", "[layers]") {
#if LIGHTLORA_TESTS_DATA_PARALLEL
  for_each_net([](const auto& net) {
    const Tensor x = random_input({6, 70}).to(torch::kFloat);
    const auto gradients = [&](const Tensor& y) {
      return torch::autograd::grad({y.tanh().sum()}, net->trained());
    };
    const Tensor alone = net->forward(x);
    const auto expected = gradients(alone);
    const std::vector<torch::Device> devices(2, torch::kCPU);
    auto replicas = torch::nn::parallel::replicate(net, devices);
    const Tensor y = torch::cat(
        {replicas[0]->forward(x.narrow(0, 0, 2)), replicas[1]->forward(x.narrow(0, 2, 4))});
    CHECK(close(y, alone, 1e-6));
    const auto found = gradients(y);
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(close(found[i], expected[i], 1e-5));
  });
#else
  WARN(kNoDataParallel);
#endif
}
