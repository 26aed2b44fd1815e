// SPDX-License-Identifier: Apache-2.0
#include <lightlora/detail/formats/names.h>
#include <lightlora/detail/formats/native.h>
#include <lightlora/lightlora.h>

#include <fstream>

#include "support.h"

using namespace lightlora;

namespace {

using Names = std::vector<std::string>;

std::string read_bytes(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

// The attention layers of Stable Diffusion 1.5's UNet: name, in, out.
std::vector<LayerInfo> sd15_attention() {
  std::vector<LayerInfo> layers;
  const auto block = [&](const std::string& prefix, int64_t count, int64_t width) {
    for (int64_t i = 0; i < count; ++i) {
      const std::string base =
          prefix + "attentions." + std::to_string(i) + ".transformer_blocks.0.attn";
      for (const char* attention : {"1", "2"}) {
        for (const char* name : {".to_q", ".to_k", ".to_v", ".to_out.0"}) {
          const bool text = attention[0] == '2' && (name[4] == 'k' || name[4] == 'v');
          layers.push_back({base + attention + name, text ? 768 : width, width, {}});
        }
      }
    }
  };
  block("down_blocks.0.", 2, 320);
  block("down_blocks.1.", 2, 640);
  block("down_blocks.2.", 2, 1280);
  block("up_blocks.1.", 3, 1280);
  block("up_blocks.2.", 3, 640);
  block("up_blocks.3.", 3, 320);
  block("mid_block.", 1, 1280);
  return layers;
}

AdapterState state_for(const std::vector<LayerInfo>& layers, const LoRAOptions& options) {
  AdapterState state;
  for (const auto& layer : layers) {
    const auto random = [&](int64_t rows, int64_t columns) {
      return torch::randn({rows, columns});
    };
    LayerState one{"light", layer, options, 1.0, {}, {}};
    one.trained["down"] = random(options.rank(), 100);
    one.trained["up"] = random(50, options.rank());
    state.push_back(one);
  }
  return state;
}

}  // namespace

TEST_CASE("folded names read back in order, and are short", "[native]") {
  const std::vector<Names> cases{{""},
                                 {"a"},
                                 {"a", "a.b"},
                                 {"a.b", "a"},
                                 {"a.0.x", "a.0.y", "a.1.x"},
                                 {"b", "a", "b.c", "b.c.d", "b"},
                                 {"to_out.0", "to_q", "0", "1"}};
  for (const auto& names : cases) {
    INFO(fold_names(names));
    CHECK(unfold_names(fold_names(names)) == names);
  }
  CHECK(fold_names({"a.0.x", "a.0.y", "a.1.x"}) == "a.{0.{x,y},1.x}");
  CHECK_THROWS_WITH(fold_names({"a{b"}), ContainsSubstring("'a{b': expected a layer name without"));
  CHECK_THROWS_WITH(unfold_names("a.{b,c"), ContainsSubstring("expected '}'"));
  CHECK_THROWS_WITH(unfold_names("a}b"), ContainsSubstring("'}b' left over"));
  CHECK_THROWS_WITH(unfold_names(std::string(1'000'000, '{')),
                    ContainsSubstring("nested at most 64"));
  CHECK_THROWS_WITH(unfold_names("a{" + std::string(2'000'000, ',') + "}"),
                    ContainsSubstring("expected at most 16000000 bytes of names"));
  Names sd15;
  for (const auto& layer : sd15_attention()) sd15.push_back(layer.name);
  REQUIRE(sd15.size() == 128);
  CHECK(unfold_names(fold_names(sd15)) == sd15);
  CHECK(fold_names(sd15).size() < 2500);
}

TEST_CASE("the native LightLoRA file of SD 1.5 is at most 330 KB, rank 1 at most 90 KB",
          "[native]") {
  const ScratchFolder folder;
  const auto size = [&](const LoRAOptions& options) {
    save(Components{{"unet", state_for(sd15_attention(), options)}}, folder.file("x.safetensors"));
    return std::filesystem::file_size(folder.file("x.safetensors"));
  };
  CHECK(size(LoRAOptions(4)) <= 330'000);
  CHECK(size(LoRAOptions(4)) >= 307'200);  // the tensors alone
  CHECK(size(LoRAOptions(1)) <= 90'000);
}

TEST_CASE("in fp16 it is at most 170 KB, rank 1 with the text encoder at most 130 KB", "[native]") {
  const ScratchFolder folder;
  std::vector<LayerInfo> text;
  for (int i = 0; i < 12; ++i) {
    for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      text.push_back(
          {"text_model.encoder.layers." + std::to_string(i) + ".self_attn." + name, 768, 768, {}});
    }
  }
  Components half{{"unet", state_for(sd15_attention(), LoRAOptions(4))}};
  for (auto& layer : half["unet"]) {
    for (auto& item : layer.trained) item.second = item.second.to(torch::kHalf);
  }
  save(half, folder.file("half"));
  CHECK(std::filesystem::file_size(folder.file("half")) <= 170'000);
  const Components both{{"unet", state_for(sd15_attention(), LoRAOptions(1))},
                        {"text_encoder", state_for(text, LoRAOptions(1))}};
  save(both, folder.file("both"));
  CHECK(std::filesystem::file_size(folder.file("both")) <= 130'000);
  // Nothing else is needed to rebuild every layer.
  CHECK(read_adapters(folder.file("both")).components.at("text_encoder").size() == 48);
}

TEST_CASE("native files keep every option, several components and every bit", "[native]") {
  const ScratchFolder folder;
  const auto file = folder.file("x.safetensors");
  torch::manual_seed(0);
  auto unet = state_for({{"a.to_q", 300, 200, {}}, {"a.to_k", 300, 200, {}}, {"b", 400, 90, {}}},
                        LightOptions(2).network_alpha(0.1).aux_seed(0xFFFFFFFFFFFFFFFFULL));
  unet[1].scale = 1.0 / 3;
  unet[2].options.own()["aux_init"] = "normal_scaled";
  unet[2].options.init(Init::down_zero);
  unet[2].layer.kernel = {2, 2};
  auto text = state_for({{"t", 128, 128, {}}}, LoRAOptions(1));
  const auto options = SaveOptions().metadata({{"prompt", "a \"sks\" bär"}});
  save({{"unet", unet}, {"text_encoder", text}}, file, options);

  const SafetensorsFile opened(file);
  CHECK(opened.metadata().at("prompt") == "a \"sks\" bär");
  for (const auto& info : opened.tensors()) CHECK(info.name.find("lora") == std::string::npos);
  auto read = read_adapters(file).components;
  REQUIRE(read.size() == 2);
  REQUIRE(read["unet"].size() == 3);
  for (const auto& before : unet) {
    const auto& after = *std::find_if(read["unet"].begin(), read["unet"].end(), [&](const auto& l) {
      return l.layer.name == before.layer.name;
    });
    INFO(before.layer.name);
    CHECK(after.variant == before.variant);
    CHECK(after.scale == before.scale);
    CHECK(after.layer.in == before.layer.in);
    CHECK(after.layer.out == before.layer.out);
    CHECK(after.layer.kernel == before.layer.kernel);
    CHECK(after.options.rank() == before.options.rank());
    CHECK(after.options.network_alpha() == before.options.network_alpha());
    CHECK(after.options.own() == before.options.own());
    CHECK(after.options.init() == before.options.init());
    CHECK(torch::equal(after.trained.at("down"), before.trained.at("down")));
    CHECK(torch::equal(after.trained.at("up"), before.trained.at("up")));
  }
  CHECK_THROWS_WITH(read_state(file, "vae"),
                    ContainsSubstring("expected a component 'vae', got ") &&
                        ContainsSubstring("'text_encoder', 'unet'"));
  CHECK(read_state(file, "text_encoder").size() == 1);

  const std::string bytes = read_bytes(file);
  save({{"unet", unet}, {"text_encoder", text}}, file, options);
  CHECK(read_bytes(file) == bytes);
}

TEST_CASE("embedded bases are compared with those of the seed", "[native]") {
  const LayerInfo layer{"a", 300, 200, {}};
  const auto adapter = find_variant("light").make(LightOptions(2).aux_seed(3), layer);
  auto state = state_of(*adapter, Bases::embedded);
  CHECK(torch::equal(make_adapter(state)->delta(), adapter->delta()));
  state.options.own()["aux_seed"] = "4";
  CHECK_THROWS_WITH(make_adapter(state),
                    ContainsSubstring("'a': expected the embedded 'down_aux' to equal the basis of "
                                      "the seed"));
}

TEST_CASE("native files that are damaged or from elsewhere name what is wrong", "[native]") {
  const ScratchFolder folder;
  const auto file = folder.file("x.safetensors");
  const auto state = state_for({{"a", 300, 200, {}}}, LoRAOptions(2));
  const auto rewritten = [&](const std::string& key, const std::string& value) {
    save(Components{{"", state}}, file);
    const SafetensorsFile opened(file);
    Metadata metadata = opened.metadata();
    value.empty() ? void(metadata.erase(key)) : void(metadata[key] = value);
    save_safetensors(file, opened.load_all(), metadata);
    return file;
  };
  const auto fails_with = [&](const std::string& message) {
    CHECK_THROWS_WITH(read_state(file), ContainsSubstring(message));
  };
  rewritten("format", "");
  fails_with("expected the names of a LoRA, got 2 of 2 that match no layer");
  rewritten("format_version", "2");
  fails_with("expected format version 1, got '2'; hint: update lightlora");
  rewritten("basis_version", "9");
  fails_with("expected basis version 1, got '9'");
  rewritten("0.rank", "four");
  fails_with("expected a number in metadata '0.rank', got 'four'");
  rewritten("0.in", "1000000000000");
  fails_with("expected 1 to 1000000 as metadata '0.in', got 1000000000000");
  rewritten("0.rank", "-4");
  fails_with("expected 1 to 1000000 as metadata '0.rank', got -4");
  rewritten("0.padding_row", "0");
  fails_with("expected one of the 300 rows of an Embedding as metadata '0.padding_row', got 0");
  rewritten("0.uncommon", "a b c d e f g h i");
  fails_with("expected up to 8 names of options as metadata '0.uncommon', got 'a b c");
  rewritten("0.variant", "");
  fails_with("expected metadata '0.variant', got none");
  rewritten("0.layers", "{a,b}");
  fails_with("tensor '0.down': expected (2, ...), a tensor for each layer, got [1, 2, 100]");
}
