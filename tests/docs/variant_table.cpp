// SPDX-License-Identifier: Apache-2.0
// Measures the table of docs/choosing.md: for each variant what trains in a 320 -> 320 layer, the
// bytes of its file, the time of a forward and backward pass against the bare frozen layer in the
// same run, and how much of a synthetic task it learns at the best of five learning rates, as the
// mean of three seeds. With variants' names as arguments, it measures their rows alone.
#include <lightlora/lightlora.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace {

using lightlora::LoRAOptions;
using torch::Tensor;

constexpr uint64_t kSeeds = 3;  // of the task, which is drawn anew for each

struct Row {
  const char* title;
  const char* variant;
  LoRAOptions options;
};

const std::vector<Row>& rows() {
  static const std::vector<Row> all{
      {"classic", "classic", LoRAOptions(4)},
      {"classic with DoRA", "classic", LoRAOptions(4).dora(true)},
      {"light", "light", LoRAOptions(4)},
      {"fused", "fused", LoRAOptions(4)},
      {"loha", "loha", LoRAOptions(4)},
      {"lokr", "lokr", LoRAOptions(4)},
      {"vera (rank 64)", "vera", LoRAOptions(64)},
      {"ia3", "ia3", LoRAOptions(4)},
      {"lora_xs (rank 16)", "lora_xs", LoRAOptions(16)},
      {"oft (blocks of 32)", "oft", LoRAOptions(4)},
      {"hira", "hira", LoRAOptions(4)},
      {"miss (rank 16)", "miss", LoRAOptions(16)},
      {"gralora", "gralora", LoRAOptions(4)},
      {"classic from pissa", "classic", LoRAOptions(4).own({{"init_lora_weights", "pissa"}})},
      {"classic from olora", "classic", LoRAOptions(4).own({{"init_lora_weights", "olora"}})},
      {"classic from mica", "classic", LoRAOptions(4).own({{"init_lora_weights", "mica"}})},
      {"classic from svd_down", "classic", LoRAOptions(4).own({{"init_lora_weights", "svd_down"}})},
      {"psoft (rank 16)", "psoft", LoRAOptions(16)},
      {"diag_oft (blocks of 8)", "diag_oft", LoRAOptions(8)},
      {"boft (blocks of 10)", "boft", LoRAOptions(10)},
      {"glora", "glora", LoRAOptions(4)},
      {"shira", "shira", LoRAOptions(4)},
      {"tlora", "tlora", LoRAOptions(4)},
      {"adalora (without its budget)", "adalora", LoRAOptions(4)},
      {"full", "full", LoRAOptions(4)},
  };
  return all;
}

double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Median over interleaved pairs of (adapted time / bare time).
double time_ratio(const Row& row) {
  torch::nn::Sequential bare(torch::nn::Linear(320, 320)), adapted(torch::nn::Linear(320, 320));
  for (auto& parameter : bare->parameters()) parameter.set_requires_grad(false);
  const auto lora = lightlora::patch(*adapted, row.variant, row.options, {"0"});
  const Tensor x = torch::randn({1024, 320}).requires_grad_(), g = torch::randn({1024, 320});
  std::vector<double> ratios;
  for (int i = 0; i < 41; ++i) {
    const double without = seconds([&] { bare->forward(x).backward(g); });
    const double with = seconds([&] { lora(adapted, x).backward(g); });
    if (i > 0) ratios.push_back(with / without);
  }
  std::nth_element(ratios.begin(), ratios.begin() + 20, ratios.end());
  return ratios[20];
}

// A frozen network and the same network with each weight changed by singular values 1, 1/2, 1/3,
// ...
torch::nn::Sequential network(bool changed, uint64_t seed) {
  torch::manual_seed(2 * seed - 1);
  torch::nn::Sequential model(torch::nn::Linear(128, 256), torch::nn::GELU(),
                              torch::nn::Linear(256, 256), torch::nn::GELU(),
                              torch::nn::Linear(256, 128));
  if (!changed) return model;
  const torch::NoGradGuard no_grad;
  for (auto& weight : model->parameters()) {
    if (weight.dim() != 2) continue;
    const auto [u, s, vh] = torch::linalg_svd(torch::randn_like(weight), /*full_matrices=*/false);
    weight.add_((u / torch::arange(1, s.size(0) + 1)).mm(vh) * (0.3 * weight.norm()));
  }
  return model;
}

// Share of the initial loss that is gone on inputs that were not trained on.
double learned(const Row& row, double rate, uint64_t seed) {
  auto model = network(false, seed), teacher = network(true, seed);
  torch::manual_seed(2 * seed);
  const auto lora =
      lightlora::patch(*model, row.variant, row.options, lightlora::Targets::all_linear());
  torch::optim::AdamW optimizer(lora->parameters(),
                                torch::optim::AdamWOptions(rate).weight_decay(0));
  const auto loss = [&](const Tensor& x) {
    Tensor target;
    {
      const torch::NoGradGuard no_grad;
      target = teacher->forward(x);
    }
    return torch::mse_loss(lora(model, x), target);
  };
  const Tensor unseen = torch::randn({1024, 128});
  const double before = loss(unseen).item<double>();
  const int steps = 400;
  for (int step = 0; step < steps; ++step) {
    for (auto& group : optimizer.param_groups()) {
      group.options().set_lr(rate * (1.0 - static_cast<double>(step) / steps));
    }
    optimizer.zero_grad();
    loss(torch::randn({128, 128})).backward();
    optimizer.step();
  }
  return 1.0 - loss(unseen).item<double>() / before;
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> only(arguments + 1, arguments + count);
  const auto asked = [&](const Row& row) {
    return only.empty() || std::find(only.begin(), only.end(), row.variant) != only.end();
  };
  for (const auto& name : only) {
    if (std::none_of(rows().begin(), rows().end(),
                     [&](const Row& row) { return name == row.variant; })) {
      std::fprintf(stderr, "'%s': expected a variant of the table, got another name\n",
                   name.c_str());
      return 1;
    }
  }
  std::printf("| variant | trained values | file | time / bare layer | task learned | at rate |\n");
  std::printf("|---|---|---|---|---|---|\n");
  for (const auto& row : rows()) {
    if (!asked(row)) continue;
    torch::manual_seed(0);
    torch::nn::Sequential layer(torch::nn::Linear(320, 320));
    const auto lora = lightlora::patch(*layer, row.variant, row.options, {"0"});
    const auto file = std::filesystem::temp_directory_path() / "variant_table.safetensors";
    lightlora::save(lora, file.string());
    const double ratio = time_ratio(row);
    double best = -1e9, best_rate = 0;
    for (const double rate : {1e-3, 3e-3, 1e-2, 3e-2, 1e-1}) {
      double share = 0;
      for (uint64_t seed = 1; seed <= kSeeds; ++seed) share += learned(row, rate, seed) / kSeeds;
      if (share > best) best = share, best_rate = rate;
    }
    std::printf("| %s | %ld | %.1f KB | %.2f | %.0f %% | %g |\n", row.title,
                static_cast<long>(lora->report().trainable),
                static_cast<double>(std::filesystem::file_size(file)) / 1000, ratio, 100 * best,
                best_rate);
    std::fflush(stdout);
    std::filesystem::remove(file);
  }
}
