// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace study {

/// Inputs and outputs of layers.
using Shapes = std::vector<std::pair<int64_t, int64_t>>;

/// What one file for Stable Diffusion 1.5 holds and takes up.
struct FileSize {
  std::string name;
  int64_t values = 0;                  ///< trained ones
  int64_t fp32 = 0, fp16 = 0;          ///< bytes
  std::optional<int64_t> described{};  ///< what the method's description says, in 1,024 bytes
};

/// Of a UNet's attention, which gets the adapters; and of Stable Diffusion 1.5's.
Shapes attention_layers(torch::nn::Module& unet);
Shapes sd15_layers();

/// Files of Stable Diffusion 1.5's shapes are written and measured: learned embeddings, and
/// adapters of the UNet's 128 attention layers. Values are random, which changes no size. The files
/// of the method's description, as this library writes them.
std::vector<FileSize> described_sizes();
/// All kinds of files, adapters of this rank.
std::vector<FileSize> all_sizes(int64_t rank);

}  // namespace study
