// SPDX-License-Identifier: Apache-2.0
#include "research/study/file_sizes.h"

#include <lightlora/embeddings.h>
#include <lightlora/lightlora.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "models/clip.h"
#include "models/unet.h"
#include "models/weights.h"
#include "support/cli/fmt.h"
#include "support/files/disk.h"

namespace study {

namespace {

using lightlora::AdapterState;
using lightlora::Bases;
using lightlora::Components;
using lightlora::Format;
using lightlora::LayerInfo;

const lightlora::Targets& attention() {
  static const lightlora::Targets targets{"to_q", "to_k", "to_v", "to_out.0"};
  return targets;
}

std::vector<LayerInfo> layers_of(torch::nn::Module& model, const lightlora::Targets& targets) {
  auto found = lightlora::adaptable_layers(model);
  const auto paths = targets.select(found.targets);
  std::vector<LayerInfo> layers;
  for (const auto& [path, weight] : found.weights) {
    const bool chosen = std::find(paths.begin(), paths.end(), path) != paths.end();
    if (chosen) layers.push_back(weight.info(path));
  }
  return layers;
}

// Of models that are never filled: nothing but their sizes is needed.
std::vector<LayerInfo> unet_layers() {
  const sd::UninitializedModules uninitialized(at::kFloat);
  sd::UNet2DConditionModel unet(sd::UNet2DConditionModelOptions().cross_attention_dim({768}));
  return layers_of(*unet, attention());
}

std::vector<LayerInfo> text_layers() {
  const sd::UninitializedModules uninitialized(at::kFloat);
  sd::CLIPTextModel encoder(
      sd::CLIPTextModelOptions().hidden_size(768).intermediate_size(3072).num_attention_heads(12));
  return layers_of(*encoder, {"q_proj", "k_proj", "v_proj", "out_proj"});
}

Shapes shapes_of(const std::vector<LayerInfo>& layers) {
  Shapes shapes;
  for (const auto& layer : layers) shapes.emplace_back(layer.in, layer.out);
  return shapes;
}

AdapterState adapters(const std::string& variant, int64_t rank,
                      const std::vector<LayerInfo>& layers, Bases bases = Bases::by_seed) {
  AdapterState state;
  for (const auto& layer : layers) {
    const auto adapter = lightlora::find_variant(variant).make(lightlora::LoRAOptions(rank), layer);
    state.push_back(lightlora::state_of(*adapter, bases));
  }
  return state;
}

int64_t trained_values(const Components& components) {
  int64_t count = 0;
  for (const auto& [name, state] : components) {
    for (const auto& layer : state) {
      for (const auto& item : layer.trained) count += item.second.numel();
    }
  }
  return count;
}

// Writes files and says how large they are.
class Scale {
 public:
  using Write = std::function<void(const std::string& path, at::ScalarType dtype)>;

  FileSize weigh(const std::string& name, int64_t values, const Write& write) const {
    const std::string path = folder_.path() + "/file";
    const auto bytes = [&](at::ScalarType dtype) {
      write(path, dtype);
      return static_cast<int64_t>(std::filesystem::file_size(path));
    };
    return {name, values, bytes(at::kFloat), bytes(at::kHalf)};
  }

  FileSize embedding(const std::string& name, int64_t layers, int64_t vectors) const {
    lightlora::LearnedEmbedding word{"<cat-toy>", at::zeros({vectors, 768}), {}};
    if (layers > 1) {
      word.vectors = at::zeros({layers, vectors, 768});
      for (const auto& item : lightlora::attention_order()) {
        word.layers.emplace_back(item.second);
      }
    }
    return weigh(name, word.vectors.numel(), [&](const std::string& path, at::ScalarType dtype) {
      lightlora::save_embedding(path, word, lightlora::EmbeddingKey::token, dtype);
    });
  }

  FileSize native(const std::string& name, const Components& components) const {
    const auto write = [&](const std::string& path, at::ScalarType dtype) {
      lightlora::save(components, path, lightlora::SaveOptions().dtype(dtype));
    };
    return weigh(name, trained_values(components), write);
  }

 private:
  sd::TemporaryFolder folder_{"sizes"};
};

FileSize with(FileSize size, int64_t described) {
  size.described = described;
  return size;
}

}  // namespace

Shapes attention_layers(torch::nn::Module& unet) { return shapes_of(layers_of(unet, attention())); }

Shapes sd15_layers() { return shapes_of(unet_layers()); }

std::vector<FileSize> described_sizes() {
  const Scale scale;
  const auto unet = unet_layers();
  const auto native = [&](const std::string& name, const std::string& variant, Bases bases) {
    return scale.native(name, {{"unet", adapters(variant, 4, unet, bases)}});
  };
  return {with(scale.embedding("word, 1 token", 1, 1), 4),
          with(scale.embedding("word, 8 tokens", 1, 8), 25),
          with(scale.embedding("layer-wise word, 16 layers of 8 tokens", 16, 8), 400),
          with(native("classic, rank 4", "classic", Bases::by_seed), 3211),
          with(native("light, rank 4", "light", Bases::by_seed), 379),
          with(native("light, rank 4, with bases", "light", Bases::embedded), 58844),
          native("fused", "fused", Bases::by_seed),
          with(native("fused, with bases", "fused", Bases::embedded), 60995)};
}

std::vector<FileSize> all_sizes(int64_t rank) {
  const Scale scale;
  const std::string of_rank = " rank " + fmt::to_string(rank);
  const auto unet = unet_layers();
  std::vector<FileSize> sizes{scale.embedding("embedding, 1 token", 1, 1),
                              scale.embedding("embedding, 8 tokens", 1, 8),
                              scale.embedding("layer-wise embedding, 16 layers x 8 tokens", 16, 8)};
  const auto native = [&](const std::string& name, const std::string& variant, int64_t r,
                          Bases bases) {
    sizes.push_back(scale.native(name, {{"unet", adapters(variant, r, unet, bases)}}));
  };
  for (const auto& variant : lightlora::variants()) {
    if (variant.name == "full") continue;  // as large as the layers themselves
    native(variant.name + "," + of_rank, variant.name, rank, Bases::by_seed);
  }
  native("light," + of_rank + ", with bases", "light", rank, Bases::embedded);
  native("fused, with bases", "fused", rank, Bases::embedded);
  native("light, rank 1", "light", 1, Bases::by_seed);
  sizes.push_back(scale.native("light, rank 1, with the text encoder",
                               {{"unet", adapters("light", 1, unet)},
                                {"text_encoder", adapters("light", 1, text_layers())}}));
  const Components light{{"unet", adapters("light", rank, unet)}};
  sizes.push_back(scale.weigh(
      "light," + of_rank + ", for diffusers", trained_values(light),
      [&](const std::string& path, at::ScalarType dtype) {
        lightlora::save(light, path, lightlora::SaveOptions(Format::diffusers).dtype(dtype));
      }));
  sizes.push_back(scale.weigh("light," + of_rank + ", for kohya and A1111", trained_values(light),
                              [&](const std::string& path, at::ScalarType dtype) {
                                lightlora::save(light, path,
                                                lightlora::SaveOptions(Format::kohya).dtype(dtype));
                              }));
  return sizes;
}

}  // namespace study
