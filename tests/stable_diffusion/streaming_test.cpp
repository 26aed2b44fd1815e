// SPDX-License-Identifier: Apache-2.0
#include "models/streaming.h"

#include "models/bands.h"
#include "models/blocks.h"
#include "support.h"
#include "support/cli/process.h"

namespace {

constexpr int64_t kWidth = 2048, kLayers = 14;  // 16 MB each

at::Tensor weight_of(int64_t layer) {
  torch::manual_seed(static_cast<uint64_t>(layer));
  return at::randn({kWidth, kWidth}) / 45;
}

struct LayerImpl : torch::nn::Module {
  LayerImpl() {
    fc = register_module("fc",
                         torch::nn::Linear(torch::nn::LinearOptions(kWidth, kWidth).bias(false)));
  }
  at::Tensor forward(const at::Tensor& x) { return at::tanh(fc(x)); }
  torch::nn::Linear fc{nullptr};
};
TORCH_MODULE(Layer);

}  // namespace

TEST_CASE("streamed weights keep the process below its limit, and its bits", "[streaming]") {
  const torch::NoGradGuard no_grad;
  const ScratchFolder folder;
  const at::Tensor x = at::randn({4, kWidth}, at::make_generator<at::CPUGeneratorImpl>(1));
  at::Tensor expected = x;
  for (int64_t i = 0; i < kLayers; ++i) expected = at::tanh(at::linear(expected, weight_of(i)));

  constexpr int64_t kAllowed = int64_t{64} << 20;  // of 224 MB
  const int64_t limit = cli::resident_memory() + kAllowed;
  torch::nn::ModuleList layers;
  for (int64_t i = 0; i < kLayers; ++i) {
    Layer layer;
    sd::stream_weights(*layer, {limit, folder.path().string()});
    layer->fc->weight.copy_(weight_of(i));
    sd::let_go_of_weights(/*written=*/true);
    layers->push_back(layer);
    CHECK(cli::resident_memory() < limit);
  }
  for (int repeat = 0; repeat < 2; ++repeat) {
    at::Tensor y = x;
    for (int64_t i = 0; i < kLayers; ++i) {
      y = sd::run_segment(layers->at<LayerImpl>(static_cast<size_t>(i)), y);
      CHECK(cli::resident_memory() < limit);
    }
    CHECK(at::equal(y, expected));
  }
  // The file has no name, and goes with the weights.
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("maps in bands pass through memory as the weights do", "[streaming]") {
  const torch::NoGradGuard no_grad;
  const ScratchFolder folder;
  torch::manual_seed(1);
  auto norm = sd::make_group_norm(/*groups=*/4, /*channels=*/16, /*eps=*/1e-6);
  auto conv = sd::make_conv(16, 16, /*kernel=*/3);
  torch::nn::Conv2d no_shortcut{nullptr};
  constexpr int64_t kRows = 16;
  const at::Tensor x = at::randn({1, 16, 1024, 512});  // 32 MB, as each of its results
  const at::Tensor first = conv(sd::norm_silu(norm, x));
  const at::Tensor expected = conv(sd::norm_silu(norm, first)) + first;

  const int64_t limit = cli::resident_memory() + (int64_t{24} << 20);
  torch::nn::Linear some(2, 2);
  sd::stream_weights(*some, {limit, folder.path().string()});
  const at::Tensor one = sd::norm_silu_conv(norm, conv, x, kRows);
  CHECK(cli::resident_memory() < limit);
  const at::Tensor two = sd::norm_silu_conv(norm, conv, one, kRows);
  CHECK(cli::resident_memory() < limit);
  sd::add_shortcut(two, no_shortcut, one, kRows);
  CHECK(cli::resident_memory() < limit);
  CHECK(close(two, expected, 1e-5));
}

TEST_CASE("a folder without room for streamed weights is named", "[streaming]") {
  Layer layer;
  CHECK_THROWS_WITH(sd::stream_weights(*layer, {1, "/no/such/folder"}),
                    ContainsSubstring("/no/such/folder"));
}
