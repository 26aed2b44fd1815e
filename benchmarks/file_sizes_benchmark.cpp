// SPDX-License-Identifier: Apache-2.0
// The sizes of the files of every kind for Stable Diffusion 1.5: learned embeddings, and adapters of
// the UNet's 128 attention layers (and the text encoder's 48) as this library and as others keep
// them. Prints a Markdown table; values are random, which changes no size.
//
//   build/bin/file_sizes_benchmark [rank, default 4]
#include <lightlora/formats/embeddings.h>
#include <lightlora/lightlora.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iomanip>
#include <iostream>

#include "stable_diffusion/clip.h"
#include "stable_diffusion/unet.h"
#include "stable_diffusion/weights.h"

namespace {

using lightlora::AdapterState;
using lightlora::Bases;
using lightlora::Components;
using lightlora::LayerInfo;
using lightlora::LoRAOptions;

// The selected layers of a model, of which nothing but the sizes is needed.
template <typename Model, typename Options>
std::vector<LayerInfo> layers_of(const Options& options, const lightlora::Targets& targets) {
  const sd::UninitializedModules uninitialized(at::kFloat);
  Model model(options);
  auto found = lightlora::adaptable_layers(*model);
  const auto paths = targets.select(found.targets);
  std::vector<LayerInfo> layers;
  for (const auto& [path, weight] : found.weights) {
    if (std::find(paths.begin(), paths.end(), path) != paths.end()) layers.push_back(weight.info(path));
  }
  return layers;
}

std::vector<LayerInfo> unet_layers() {
  return layers_of<sd::UNet2DConditionModel>(
      sd::UNet2DConditionModelOptions().cross_attention_dim({768}),
      {"to_q", "to_k", "to_v", "to_out.0"});
}

std::vector<LayerInfo> text_layers() {
  return layers_of<sd::CLIPTextModel>(
      sd::CLIPTextModelOptions().hidden_size(768).intermediate_size(3072).num_attention_heads(12),
      {"q_proj", "k_proj", "v_proj", "out_proj"});
}

AdapterState adapters(const std::string& variant, int64_t rank, const std::vector<LayerInfo>& layers,
                      Bases bases, at::ScalarType dtype) {
  AdapterState state;
  for (const auto& layer : layers) {
    const auto adapter = lightlora::find_variant(variant).make(LoRAOptions(rank), layer);
    state.push_back(lightlora::state_of(*adapter, bases));
    for (auto* tensors : {&state.back().trained, &state.back().frozen}) {
      for (auto& item : *tensors) item.second = item.second.to(dtype);
    }
  }
  return state;
}

class Table {
 public:
  Table() : folder_(std::filesystem::temp_directory_path() / "lightlora-file-sizes") {
    std::filesystem::create_directories(folder_);
    std::cout << "| weights | fp32 | fp16 |\n|---|---:|---:|\n";
  }
  ~Table() { std::filesystem::remove_all(folder_); }

  /// `write` makes a file of the given dtype at a path.
  void row(const std::string& name,
           const std::function<void(const std::string& path, at::ScalarType dtype)>& write) const {
    std::cout << "| " << name;
    for (const auto dtype : {at::kFloat, at::kHalf}) {
      const std::string path = (folder_ / "file").string();
      write(path, dtype);
      const auto bytes = std::filesystem::file_size(path);
      std::cout << " | " << std::fixed << std::setprecision(1) << static_cast<double>(bytes) / 1000
                << " KB";
    }
    std::cout << " |\n";
  }

 private:
  std::filesystem::path folder_;
};

void embedding_row(const Table& table, const std::string& name, int64_t layers, int64_t vectors) {
  table.row(name, [&](const std::string& path, at::ScalarType dtype) {
    lightlora::LearnedEmbedding embedding{"<cat-toy>", at::zeros({vectors, 768}), {}};
    if (layers > 1) {
      embedding.vectors = at::zeros({layers, vectors, 768});
      for (const auto& item : lightlora::detail::attention_order()) {
        embedding.layers.emplace_back(item.second);
      }
    }
    lightlora::save_embedding(path, embedding, lightlora::EmbeddingKey::token, dtype);
  });
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t rank = argc > 1 ? std::atoll(argv[1]) : 4;
  const std::string of_rank = " rank " + std::to_string(rank);
  const auto unet = unet_layers();
  const Table table;
  embedding_row(table, "embedding, 1 token", 1, 1);
  embedding_row(table, "embedding, 8 tokens", 1, 8);
  embedding_row(table, "layer-wise embedding, 16 layers x 8 tokens", 16, 8);

  const auto native = [&](const std::string& name, const std::string& variant, int64_t r,
                          Bases bases) {
    table.row(name, [&, variant, r, bases](const std::string& path, at::ScalarType dtype) {
      lightlora::save_native(path, {{"unet", adapters(variant, r, unet, bases, dtype)}});
    });
  };
  for (const auto& variant : lightlora::variants()) {
    native(variant.name + "," + of_rank, variant.name, rank, Bases::by_seed);
  }
  native("light," + of_rank + ", with bases", "light", rank, Bases::embedded);
  native("fused, with bases", "fused", rank, Bases::embedded);
  native("light, rank 1", "light", 1, Bases::by_seed);
  table.row("light, rank 1, with the text encoder", [&](const std::string& path,
                                                         at::ScalarType dtype) {
    lightlora::save_native(
        path, {{"unet", adapters("light", 1, unet, Bases::by_seed, dtype)},
               {"text_encoder", adapters("light", 1, text_layers(), Bases::by_seed, dtype)}});
  });
  const Components light{{"unet", adapters("light", rank, unet, Bases::by_seed, at::kFloat)}};
  table.row("light," + of_rank + ", for diffusers", [&](const auto& path, auto dtype) {
    lightlora::save_diffusers(path, light, dtype);
  });
  table.row("light," + of_rank + ", for kohya and A1111", [&](const auto& path, auto dtype) {
    lightlora::save_kohya(path, light, dtype);
  });
  return 0;
}
