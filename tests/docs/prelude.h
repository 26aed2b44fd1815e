// SPDX-License-Identifier: Apache-2.0
// What the C++ blocks of the documentation take as given: a model with attention's names, an input
// and a target; see blocks.py.
#pragma once

#include <lightlora/lightlora.h>
#include <torch/script.h>
#include <torch/torch.h>

#include <cstdio>
#include <exception>
#include <functional>
#include <iostream>
#include <memory>
#include <utility>
#include <vector>

struct DocsBlockImpl : torch::nn::Module {
  DocsBlockImpl() {
    to_q = register_module("to_q", torch::nn::Linear(32, 32));
    to_k = register_module("to_k", torch::nn::Linear(32, 32));
    to_v = register_module("to_v", torch::nn::Linear(32, 32));
    to_out = register_module("to_out", torch::nn::ModuleList(torch::nn::Linear(32, 32)));
  }
  torch::Tensor forward(torch::Tensor x) {
    const auto weights = torch::softmax(to_q(x).mm(to_k(x).t()), -1);
    return to_out[0]->as<torch::nn::Linear>()->forward(weights.mm(to_v(x)));
  }
  torch::nn::Linear to_q{nullptr}, to_k{nullptr}, to_v{nullptr};
  torch::nn::ModuleList to_out{nullptr};
};
TORCH_MODULE(DocsBlock);

struct DocsNetImpl : torch::nn::Module {
  DocsNetImpl() {
    blocks = register_module("blocks", torch::nn::ModuleList(DocsBlock(), DocsBlock()));
    head = register_module("head", torch::nn::Linear(32, 10));
    conv = register_module("conv", torch::nn::Conv2d(3, 4, 3));
  }
  torch::Tensor forward(torch::Tensor x) {
    for (const auto& block : *blocks) x = x + block->as<DocsBlock>()->forward(x);
    return head(x);
  }
  torch::nn::ModuleList blocks{nullptr};
  torch::nn::Linear head{nullptr};
  torch::nn::Conv2d conv{nullptr};
};
TORCH_MODULE(DocsNet);

// A model with layers that have names of Stable Diffusion's UNet, which kohya's format asks for.
struct DocsUNetImpl : torch::nn::Module {
  DocsUNetImpl() {
    std::shared_ptr<torch::nn::Module> inside = attention.ptr();
    for (const char* name : {"attn1", "0", "transformer_blocks", "0", "attentions", "0"}) {
      auto outside = std::make_shared<torch::nn::Module>("Folder");
      outside->register_module(name, inside);
      inside = outside;
    }
    register_module("down_blocks", inside);
    head = register_module("head", torch::nn::Linear(32, 10));
  }
  torch::Tensor forward(torch::Tensor x) { return head(x + attention(x)); }
  DocsBlock attention;
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(DocsUNet);

// The model of "Getting started", for the file that its program writes.
struct DocsPlainNetImpl : torch::nn::Module {
  DocsPlainNetImpl() {
    encoder = register_module("encoder", torch::nn::Linear(64, 128));
    head = register_module("head", torch::nn::Linear(128, 10));
  }
  torch::Tensor forward(torch::Tensor x) { return head(torch::relu(encoder(x))); }
  torch::nn::Linear encoder{nullptr}, head{nullptr};
};
TORCH_MODULE(DocsPlainNet);

inline void docs_net_file(const char* path) {
  DocsPlainNet model;
  lightlora::save(lightlora::patch<lightlora::ClassicLoRA>(*model, 4, {"encoder"}), path);
}

inline DocsNet docs_tuned(const DocsNet& model) {
  DocsNet tuned;
  const torch::NoGradGuard no_grad;
  auto to = tuned->parameters();
  const auto from = model->parameters();
  for (std::size_t i = 0; i < to.size(); ++i)
    to[i].copy_(from[i] + 0.01 * torch::randn_like(to[i]));
  return tuned;
}

#define DOCS_OBJECTS                               \
  [[maybe_unused]] DocsNet model;                  \
  [[maybe_unused]] auto x = torch::randn({6, 32}); \
  [[maybe_unused]] auto target = torch::randn({6, 10});

inline int docs_run(const std::vector<std::pair<const char*, std::function<int()>>>& blocks) {
  int failed = 0;
  for (const auto& [place, run] : blocks) {
    try {
      torch::manual_seed(0);
      const int code = run();
      std::printf("%s: %s\n", place, code == 0 ? "ok" : "returned an error");
      failed += code != 0;
    } catch (const std::exception& error) {
      std::printf("%s: %s\n", place, error.what());
      ++failed;
    }
  }
  std::printf("%zu blocks, %d failed\n", blocks.size(), failed);
  return failed == 0 ? 0 : 1;
}
