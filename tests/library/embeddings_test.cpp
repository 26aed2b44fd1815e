// SPDX-License-Identifier: Apache-2.0
#include <lightlora/embeddings.h>
#include <lightlora/file_io.h>

#include "paths.h"
#include "support.h"

using namespace lightlora;

namespace {

class Files {
 public:
  std::vector<LearnedEmbedding> read(const TensorMap& tensors, const std::string& token = "",
                                     const Metadata& metadata = {},
                                     const std::string& name = "cat-toy.safetensors") {
    save_safetensors(folder_.file(name), tensors, metadata);
    return load_embeddings(folder_.file(name), token);
  }
  std::string error(const TensorMap& tensors, const std::string& token = "") {
    try {
      read(tensors, token);
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "no error";
  }
  std::string path(const std::string& name) const { return folder_.file(name); }

 private:
  ScratchFolder folder_;
};

TensorMap kohya_layers() {
  TensorMap tensors;
  for (const auto& [name, layer] : lightlora::attention_order()) {
    tensors[name] = torch::randn({2, 8});
  }
  return tensors;
}

TensorMap promptplusplus() {
  TensorMap tensors{{"<yc>", torch::zeros(8)}};
  for (int layer = 0; layer < 16; ++layer) {
    for (int vector = 0; vector < 3; ++vector) {
      tensors["<yc-" + std::to_string(layer) + "-" + std::to_string(vector) + ">"] =
          torch::full(8, layer + vector / 10.0);
    }
  }
  return tensors;
}

}  // namespace

TEST_CASE("embeddings: diffusers' files name their tokens", "[embeddings]") {
  Files files;
  const auto vectors = torch::randn({8, 16});
  const auto one = files.read({{"<cat>", vectors[0].clone()}});
  REQUIRE(one.size() == 1);
  CHECK(one[0].token == "<cat>");
  CHECK(at::equal(one[0].vectors, vectors.slice(0, 0, 1)));
  const auto half = files.read({{"<cat>", vectors.to(torch::kHalf)}}, "<dog>");
  CHECK(half.at(0).token == "<dog>");
  CHECK(half.at(0).vectors.scalar_type() == torch::kFloat);
  CHECK(close(half.at(0).vectors, vectors, 1e-3));  // fp16
  const auto two = files.read({{"<a>", vectors.clone()}, {"<b>", torch::ones(16)}});
  CHECK(two.size() == 2);
  CHECK_THAT(files.error({{"<a>", vectors.clone()}, {"<b>", torch::ones(16)}}, "c"),
             ContainsSubstring("expected one embedding to call 'c', got 2"));
}

TEST_CASE("embeddings: files without a token are called after the file", "[embeddings]") {
  Files files;
  for (const char* key : {"emb_params", "clip_l"}) {
    CHECK(files.read({{key, torch::ones({2, 8})}}).at(0).token == "cat-toy");
    CHECK(files.read({{key, torch::ones({2, 8})}}, "x").at(0).token == "x");
  }
  CHECK(files.read({{"bundle_emb.toy.string_to_param.*", torch::ones({2, 8})}}).at(0).token ==
        "toy");
}

TEST_CASE("embeddings: A1111's .pt files", "[embeddings]") {
  const std::string data = LIGHTLORA_TEST_DATA "/torch_files/";
  const auto named = load_embeddings(data + "a1111.pt");
  CHECK(named.at(0).token == "cat");
  CHECK(named.at(0).vectors.sizes() == at::IntArrayRef{3, 8});
  CHECK(load_embeddings(data + "parameter_dict.pt").at(0).token == "parameter_dict");
}

TEST_CASE("embeddings: kohya's and P+'s layer-wise files", "[embeddings]") {
  Files files;
  const auto tensors = kohya_layers();
  const auto kohya = files.read(tensors).at(0);
  CHECK(kohya.token == "cat-toy");
  CHECK(kohya.vectors.sizes() == at::IntArrayRef{16, 2, 8});
  CHECK(at::equal(kohya.vectors[6], tensors.at("MID")));
  CHECK(kohya.layers.at(6) == "mid_block.attentions.0");
  CHECK(kohya.layers.at(15) == "up_blocks.3.attentions.2");
  const auto plus = files.read(promptplusplus()).at(0);
  CHECK(plus.token == "<yc>");
  CHECK(plus.vectors.sizes() == at::IntArrayRef{16, 3, 8});
  CHECK(plus.vectors[11][2][0].item<float>() == 11.2f);

  auto missing = tensors, more = tensors;
  missing.erase("OUT07");
  CHECK_THAT(files.error(missing), ContainsSubstring("got none called OUT07"));
  more["OUT12"] = torch::ones({2, 8});
  CHECK_THAT(files.error(more), ContainsSubstring("expected 16 tensors, got 17"));
  auto gap = promptplusplus();
  gap.erase("<yc-4-1>");
  gap.erase("<yc-4-2>");
  gap.erase("<yc-4-0>");
  CHECK_THAT(files.error(gap), ContainsSubstring("got none for layer 4"));
}

TEST_CASE("embeddings: what is written is read again", "[embeddings]") {
  Files files;
  torch::manual_seed(1);
  const LearnedEmbedding several{"<cat>", torch::randn({3, 8}), {}};
  save_embedding(files.path("a"), several);
  CHECK(SafetensorsFile(files.path("a")).contains("<cat>"));
  CHECK(at::equal(load_embeddings(files.path("a")).at(0).vectors, several.vectors));
  save_embedding(files.path("<cat>.safetensors"), several, EmbeddingKey::emb_params);
  CHECK(load_embeddings(files.path("<cat>.safetensors")).at(0).token == "<cat>");

  const LearnedEmbedding layered{
      "<cat>", torch::randn({2, 3, 8}), {"mid_block.attentions.0", "up_blocks.1.attentions.0"}};
  save_embedding(files.path("b"), layered, EmbeddingKey::token, torch::kHalf);
  const auto again = load_embeddings(files.path("b")).at(0);
  CHECK(again.layers == layered.layers);
  CHECK(close(again.vectors, layered.vectors, 1e-3));  // fp16
  CHECK_THROWS_WITH(save_embedding(files.path("c"), {"", torch::ones({1, 8}), {}}),
                    ContainsSubstring("expected a token's name"));
  CHECK_THROWS_WITH(save_embedding(files.path("c"), {"x", torch::ones({1, 8}), {"layer"}}),
                    ContainsSubstring("with 1 layers, got [1, 8]"));
}

TEST_CASE("embeddings: other files are refused by name", "[embeddings]") {
  Files files;
  CHECK_THAT(files.error({{"clip_l", torch::ones({1, 8})}, {"clip_g", torch::ones({2, 9})}}),
             ContainsSubstring("as many vectors for both text encoders, got 1 and 2"));
  CHECK_THAT(files.error({{"clip_g", torch::ones({2, 9})}}),
             ContainsSubstring("got clip_g without clip_l"));
  CHECK_THAT(files.error({{"lora_unet_conv_in.lora_up.weight", torch::ones({1, 8})}}),
             ContainsSubstring("give it as --lora"));
  CHECK_THAT(files.error({{"<cat>", torch::ones({2, 3, 8})}}),
             ContainsSubstring("expected vectors (n, width)"));
  CHECK_THAT(files.error({{"<cat>", torch::ones({2, 8}, torch::kLong)}}),
             ContainsSubstring("got Long"));
  CHECK_THAT(files.error({}), ContainsSubstring("got no tensors"));
}
