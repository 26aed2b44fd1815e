// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/embeddings.h>

#include <ATen/ops/stack.h>
#include <lightlora/detail/formats/file_errors.h>
#include <lightlora/detail/formats/limits.h>
#include <lightlora/detail/formats/lora_keys.h>
#include <lightlora/detail/formats/names.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <string_view>

namespace lightlora {

LIGHTLORA_INLINE const std::vector<std::pair<const char*, const char*>>& attention_order() {
  static const std::vector<std::pair<const char*, const char*>> order{
      {"IN01", "down_blocks.0.attentions.0"}, {"IN02", "down_blocks.0.attentions.1"},
      {"IN04", "down_blocks.1.attentions.0"}, {"IN05", "down_blocks.1.attentions.1"},
      {"IN07", "down_blocks.2.attentions.0"}, {"IN08", "down_blocks.2.attentions.1"},
      {"MID", "mid_block.attentions.0"},      {"OUT03", "up_blocks.1.attentions.0"},
      {"OUT04", "up_blocks.1.attentions.1"},  {"OUT05", "up_blocks.1.attentions.2"},
      {"OUT06", "up_blocks.2.attentions.0"},  {"OUT07", "up_blocks.2.attentions.1"},
      {"OUT08", "up_blocks.2.attentions.2"},  {"OUT09", "up_blocks.3.attentions.0"},
      {"OUT10", "up_blocks.3.attentions.1"},  {"OUT11", "up_blocks.3.attentions.2"}};
  return order;
}

namespace detail {

/// Reads the learned embeddings of one file, whatever wrote it.
class EmbeddingReader {
 public:
  EmbeddingReader(const TensorFile& file, std::string token)
      : file_(file), token_(std::move(token)) {}

  std::vector<LearnedEmbedding> read() {
    if (const auto layers = file_.metadata().find("layers"); layers != file_.metadata().end()) {
      layers_ = unfold_names(layers->second);
      TORCH_CHECK(layers_.size() <= 1000, where(), "expected at most 1000 layers, got ",
                  layers_.size());
    }
    TORCH_CHECK(!file_.tensors().empty(), where(), "expected learned embeddings, got no tensors");
    std::vector<LearnedEmbedding> all = bundled();
    if (all.empty()) refuse_others();
    if (!all.empty()) {
      // the rest of the file is the LoRA that they come with
    } else if (file_.contains("clip_g")) {
      all.push_back(two_encoders());
    } else if (file_.contains("IN01") || file_.contains("MID")) {
      all.push_back(kohya_layers());
    } else if (find_layered()) {
      all.push_back(promptplusplus());
    } else {
      for (const auto& tensor : file_.tensors()) all.push_back(single(tensor.name));
    }
    TORCH_CHECK(token_.empty() || all.size() == 1, where(), "expected one embedding to call '",
                token_, "', got ", all.size());
    for (auto& embedding : all) {
      if (!token_.empty()) embedding.token = token_;
      const bool control = std::any_of(embedding.token.begin(), embedding.token.end(), [](char c) {
        return static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
      });
      TORCH_CHECK(!control && embedding.token.find_first_not_of(' ') != std::string::npos &&
                      embedding.token.size() <= kMostTokenBytes && is_utf8(embedding.token),
                  where(), "expected a token's name of 1 to ", kMostTokenBytes,
                  " bytes of UTF-8 without control characters, got ", shown(embedding.token));
    }
    return all;
  }

 private:
  std::string where() const { return "'" + file_.path() + "': "; }

  void refuse_others() const {
    for (const auto& tensor : file_.tensors()) {
      const bool lora = tensor.name.find("lora") != std::string::npos && tensor.name[0] != '<';
      TORCH_CHECK(!lora, where(), "expected learned embeddings, got a LoRA (", shown(tensor.name),
                  "); hint: give it as --lora");
    }
  }

  // What the file itself is called, which is the token of A1111.
  std::string stem() const { return std::filesystem::path(file_.path()).stem().string(); }

  at::Tensor matrix(const std::string& name, bool layered) const {
    at::Tensor values = file_.load(name);
    if (values.dim() == 1) values = values.unsqueeze(0);
    const bool fits = values.dim() == (layered ? 3 : 2) && values.numel() > 0;
    TORCH_CHECK(fits && values.is_floating_point(), where(), "tensor ", shown(name),
                ": expected vectors (n, width) or (layers, n, width), got ", values.scalar_type(),
                " ", values.sizes());
    return values.to(at::kFloat);
  }

  LearnedEmbedding single(const std::string& name) const {
    const std::string param = "string_to_param.";
    LearnedEmbedding result{name, {}, layers_};
    result.vectors = matrix(name, !result.layers.empty());
    TORCH_CHECK(result.layers.empty() ||
                    result.vectors.size(0) == static_cast<int64_t>(result.layers.size()),
                where(), "tensor ", shown(name), ": expected one slice for each of ",
                result.layers.size(), " layers, got ", result.vectors.sizes());
    if (name == "emb_params" || name == "clip_l") {
      result.token = stem();
    } else if (const auto bundle = bundled_embedding(name); !bundle.empty()) {
      result.token = bundle;
    } else if (starts_with(name, param)) {
      const auto own = file_.metadata().find("name");
      result.token = own == file_.metadata().end() ? stem() : own->second;
    }
    return result;
  }

  LearnedEmbedding two_encoders() const {
    TORCH_CHECK(file_.contains("clip_l") && file_.tensors().size() == 2, where(),
                "expected clip_l and clip_g as the embeddings of SDXL, got ",
                file_.contains("clip_l") ? "more tensors" : "clip_g without clip_l");
    LearnedEmbedding result{stem(), matrix("clip_l", false)};
    result.vectors_2 = matrix("clip_g", false);
    TORCH_CHECK(result.vectors.size(0) == result.vectors_2.size(0), where(),
                "expected as many vectors for both text encoders, got ", result.vectors.size(0),
                " and ", result.vectors_2.size(0));
    const auto token = file_.metadata().find("token");
    if (token != file_.metadata().end()) result.token = token->second;
    return result;
  }

  std::vector<LearnedEmbedding> bundled() const {
    std::vector<LearnedEmbedding> all;
    for (const auto& tensor : file_.tensors()) {
      if (!bundled_embedding(tensor.name).empty()) all.push_back(single(tensor.name));
    }
    return all;
  }

  LearnedEmbedding kohya_layers() const {
    LearnedEmbedding result{stem(), {}, {}};
    std::vector<at::Tensor> slices;
    for (const auto& [name, layer] : attention_order()) {
      TORCH_CHECK(file_.contains(name), where(), "expected the 16 tensors of a layer-wise ",
                  "embedding (IN01 to OUT11), got none called ", name);
      slices.push_back(matrix(name, false));
      result.layers.emplace_back(layer);
      TORCH_CHECK(slices.back().sizes() == slices.front().sizes(), where(), "tensor '", name,
                  "': expected ", slices.front().sizes(), " as the others, got ",
                  slices.back().sizes());
    }
    TORCH_CHECK(file_.tensors().size() == slices.size(), where(), "expected 16 tensors, got ",
                file_.tensors().size());
    result.vectors = at::stack(slices);
    return result;
  }

  // "<yc-3-0>": the first vector of the fourth layer of "<yc>".
  struct Layered {
    std::string token;
    std::size_t layer = 0, vector = 0;
  };
  static std::optional<Layered> parse_layered(const std::string& name) {
    if (name.empty() || name.back() != '>') return std::nullopt;
    const auto last = name.rfind('-');
    const auto first = last == name.npos || last == 0 ? name.npos : name.rfind('-', last - 1);
    if (first == name.npos) return std::nullopt;
    std::string_view layer = std::string_view(name).substr(first + 1, last - first - 1);
    std::string_view vector = std::string_view(name).substr(last + 1, name.size() - last - 2);
    const auto a = take_number(layer), b = take_number(vector);
    if (!a || !b || !layer.empty() || !vector.empty()) return std::nullopt;
    return Layered{name.substr(0, first) + ">", static_cast<std::size_t>(*a),
                   static_cast<std::size_t>(*b)};
  }
  bool find_layered() const {
    for (const auto& tensor : file_.tensors()) {
      if (parse_layered(tensor.name)) return true;
    }
    return false;
  }

  LearnedEmbedding promptplusplus() const {
    std::map<std::pair<std::size_t, std::size_t>, at::Tensor> vectors;
    LearnedEmbedding result;
    for (const auto& tensor : file_.tensors()) {
      const auto key = parse_layered(tensor.name);
      if (!key) continue;  // the plain token, which the layers replace
      TORCH_CHECK(result.token.empty() || result.token == key->token, where(),
                  "expected one token, got ", shown(result.token), " and ", shown(key->token));
      result.token = key->token;
      vectors[{key->layer, key->vector}] = matrix(tensor.name, false)[0];
    }
    const std::size_t layers = attention_order().size(), count = vectors.size() / layers;
    std::vector<at::Tensor> slices;
    for (std::size_t i = 0; i < layers; ++i) {
      std::vector<at::Tensor> rows;
      for (std::size_t k = 0; k < count; ++k) {
        const auto found = vectors.find({i, k});
        TORCH_CHECK(found != vectors.end(), where(), "expected ", count, " vectors for each of ",
                    layers, " layers, got none for layer ", i, ", vector ", k);
        rows.push_back(found->second);
      }
      TORCH_CHECK(!rows.empty(), where(), "expected vectors for ", layers, " layers, got ",
                  vectors.size(), " in all");
      slices.push_back(at::stack(rows));
      result.layers.emplace_back(attention_order()[i].second);
    }
    TORCH_CHECK(vectors.size() == layers * count, where(), "expected ", layers * count,
                " vectors, got ", vectors.size());
    result.vectors = at::stack(slices);
    return result;
  }

  const TensorFile& file_;
  std::string token_;
  std::vector<std::string> layers_;  // of a layer-wise embedding
};

}  // namespace detail

LIGHTLORA_INLINE std::vector<LearnedEmbedding> load_embeddings(const std::string& path,
                                                               const std::string& token) {
  const auto file = open_tensors(path);
  return detail::with_file_name(path, [&] { return detail::EmbeddingReader(*file, token).read(); });
}

LIGHTLORA_INLINE void save_embedding(const std::string& path, const LearnedEmbedding& embedding,
                                     EmbeddingKey key, at::ScalarType dtype) {
  const auto& vectors = embedding.vectors;
  const bool layered = !embedding.layers.empty();
  TORCH_CHECK_VALUE(!embedding.token.empty(), "'", path, "': expected a token's name, got none");
  TORCH_CHECK_VALUE(
      vectors.defined() && vectors.dim() == (layered ? 3 : 2) &&
          (!layered || vectors.size(0) == static_cast<int64_t>(embedding.layers.size())),
      "'", path, "': expected vectors (n, width), or (layers, n, width) with ",
      embedding.layers.size(), " layers, got ",
      vectors.defined() ? c10::str(vectors.sizes()) : "none");
  Metadata metadata{{"format", "pt"}};
  if (embedding.vectors_2.defined()) {
    TORCH_CHECK_VALUE(
        !layered && key == EmbeddingKey::token, "'", path,
        "': vectors for two text encoders cannot be combined with ",
        layered ? "layers: " : "the key emb_params: ", "the format of SDXL has no place for them");
    metadata["token"] = embedding.token;
    return save_safetensors(path,
                            {{"clip_l", vectors.detach().to(dtype)},
                             {"clip_g", embedding.vectors_2.detach().to(dtype)}},
                            metadata);
  }
  if (layered) metadata["layers"] = fold_names(embedding.layers);
  const std::string name = key == EmbeddingKey::token ? embedding.token : "emb_params";
  save_safetensors(path, {{name, vectors.detach().to(dtype)}}, metadata);
}

}  // namespace lightlora
