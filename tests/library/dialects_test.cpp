// SPDX-License-Identifier: Apache-2.0
#include <lightlora/detail/formats/kohya.h>
#include <lightlora/detail/formats/module_names.h>
#include <lightlora/lightlora.h>

#include <fstream>

#include "dialect_files.h"
#include "support.h"

using namespace lightlora;
using namespace spellings;
using namespace dialect_files;

namespace {

void write_text(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

}  // namespace

TEST_CASE("the same adapters load from every spelling", "[dialects]") {
  Files files;
  for (const auto& [name, rename] : dialects()) {
    INFO(name);
    check_deltas(files.read(spelled(attention_layers(), rename)), attention_layers());
  }
}

TEST_CASE("unused copies of diffusers 0.16 are left out", "[dialects]") {
  Files files;
  auto tensors = spelled(attention_layers(), dialects().at("D1 of 0.16"));
  tensors["text_encoder." + kText + "q_proj.to_k_lora.down.weight"] = torch::randn({2, 4});
  tensors["text_encoder." + kText + "q_proj.to_k_lora.up.weight"] = torch::randn({4, 2});
  check_deltas(files.read(tensors), attention_layers());
}

TEST_CASE("other layers of the UNet have kohya's and the original names", "[dialects]") {
  const std::pair<const char*, const char*> names[] = {
      {"input_blocks_0_0", "conv_in"},
      {"out_2", "conv_out"},
      {"time_embed_0", "time_embedding.linear_1"},
      {"time_embed_2", "time_embedding.linear_2"},
      {"input_blocks_8_0_emb_layers_1", "down_blocks.2.resnets.1.time_emb_proj"},
      {"input_blocks_4_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut"},
      {"input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"},
      {"middle_block_1_proj_in", "mid_block.attentions.0.proj_in"},
      {"middle_block_2_in_layers_2", "mid_block.resnets.1.conv1"},
      {"output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"},
      {"output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"},
      {"output_blocks_11_0_out_layers_3", "up_blocks.3.resnets.2.conv2"},
      {"output_blocks_11_1_transformer_blocks_0_ff_net_0_proj",
       "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj"},
      {"up_blocks_1_attentions_2_transformer_blocks_0_ff_net_2",
       "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.2"},
      {"mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
       "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"}};
  for (const auto& [flat, dotted] : names) {
    CHECK(lightlora::detail::unet_layer_from_flat(flat) == std::string(dotted));
  }
  for (const char* wrong : {"input_blocks_1", "input_blocks_3_1_proj_in", "output_blocks_1_1_conv",
                            "middle_block_3_in_layers_2", "down_blocks_0_attentions_0",
                            "down_blocks_9999_attentions_0_proj_in", "conv_in_2", ""}) {
    CHECK_FALSE(lightlora::detail::unet_layer_from_flat(wrong));
  }
}

TEST_CASE("convolutions, and matrices for 1x1 kernels", "[dialects]") {
  torch::manual_seed(6);
  const std::vector<Layer> layers{
      {"unet", "conv_in", torch::randn({2, 4, 3, 3}), torch::randn({5, 2, 1, 1})},
      {"unet", "mid_block.attentions.0.proj_in", torch::randn({2, 6}), torch::randn({6, 2})},
      {"unet", kAttention + "to_q", torch::randn({2, 6, 1, 1}), torch::randn({5, 2, 1, 1})}};
  Files files;
  const auto components = files.read(spelled(layers, dialects().at("kohya lora_te_")));
  check_deltas(components, layers);
  CHECK(find(components, layers[0]).layer.kernel == std::vector<int64_t>{3, 3});
  CHECK(find(components, layers[0]).layer.in == 36);
}

TEST_CASE("the seed article's files are composed", "[dialects]") {
  torch::manual_seed(7);
  const auto down = torch::randn({2, 4}), down_aux = torch::randn({4, 6});
  const auto up = torch::randn({3, 2}), up_aux = torch::randn({5, 3});
  const std::string to_q =
      "unet." + replaced(kAttention, "attn1.", "attn1.processor.") + "to_q_lora.";
  Files files;
  check_deltas(files.read({{to_q + "down.weight", down},
                           {to_q + "up.weight", up},
                           {to_q + "down_aux.weight", down_aux},
                           {to_q + "up_aux.weight", up_aux}}),
               {{"unet", kAttention + "to_q", down.mm(down_aux), up_aux.mm(up)}});
  const auto core = up.mm(down);
  check_deltas(files.read({{to_q + "down_up.weight", core},
                           {to_q + "down_aux.weight", down_aux},
                           {to_q + "up_aux.weight", up_aux}}),
               {{"unet", kAttention + "to_q", core.mm(down_aux), up_aux}});
}

TEST_CASE("alpha tensors of any numeric dtype set the scale", "[dialects]") {
  Files files;
  for (const auto& alpha :
       {torch::tensor(0.5), torch::tensor(0.5, torch::kHalf), torch::tensor({0.5}, torch::kDouble),
        torch::tensor(3, torch::kLong), torch::tensor(-1.5, torch::kBFloat16)}) {
    auto tensors = kohya_file();
    for (const auto& layer : attention_layers()) {
      tensors[kohya_key(layer, "lora_te_", ".alpha")] = alpha.clone();
    }
    check_deltas(files.read(tensors), attention_layers(),
                 alpha.to(torch::kDouble).item<double>() / 2);
  }
}

TEST_CASE("an alpha without meaning is an error", "[dialects]") {
  Files files;
  for (const auto& alpha :
       {torch::tensor(0.0), torch::tensor(NAN), torch::tensor({1.0, 2.0}), torch::tensor(true)}) {
    auto tensors = kohya_file();
    tensors[kohya_key(attention_layers()[0], "lora_te_", ".alpha")] = alpha;
    CHECK_THAT(files.error(tensors), ContainsSubstring(attention_layers()[0].name));
  }
}

TEST_CASE("diffusers' metadata sets the scales", "[dialects]") {
  Files files;
  const auto tensors = spelled(attention_layers(), d4_key);
  const auto meta = [](const std::string& unet) {
    return Metadata{{"lora_adapter_metadata", "{" + unet +
                                                  R"(, "text_encoder.r": 2,
                                                     "text_encoder.lora_alpha": 4})"}};
  };
  const std::vector<Layer> unet(attention_layers().begin(), attention_layers().begin() + 4);
  const auto plain = files.read(tensors, meta(R"("unet.r": 2, "unet.lora_alpha": 1)"));
  check_deltas({{"unet", plain.at("unet")}}, unet, 0.5);
  CHECK(plain.at("text_encoder").front().scale == 2);
  const auto pattern = files.read(
      tensors, meta(R"("unet.r": 8, "unet.lora_alpha": 1, "unet.rank_pattern": {"attn1.*": 2},
                       "unet.alpha_pattern": {"attn1.to_q": 6}, "unet.use_rslora": false)"));
  CHECK(find(pattern, unet[0]).scale == 3);
  CHECK(find(pattern, unet[1]).scale == 0.5);
  CHECK_THAT(files.error(tensors, meta(R"("unet.r": 4, "unet.lora_alpha": 1)")),
             ContainsSubstring("expected rank 2"));
  CHECK_THAT(files.error(tensors, {{"lora_adapter_metadata", "{"}}),
             ContainsSubstring("expected JSON"));
}

TEST_CASE("an alpha tensor and metadata that disagree are an error", "[dialects]") {
  Files files;
  auto tensors = spelled(attention_layers(), d4_key);
  tensors["unet." + attention_layers()[0].name + ".alpha"] = torch::tensor(1.0);
  const auto meta = [](const char* alpha) {
    return Metadata{{"lora_adapter_metadata",
                     std::string(R"({"unet.r": 2, "unet.lora_alpha": )") + alpha + "}"}};
  };
  CHECK(files.read(tensors, meta("1")).at("unet").front().scale == 0.5);
  CHECK_THAT(files.error(tensors, meta("2")), ContainsSubstring("expected one scale, got 0.5"));
}

TEST_CASE("PEFT folders, one or one for each model", "[dialects]") {
  Files files;
  const auto rename = [](const Layer& l, bool up) {
    return "base_model.model." + l.name + ".lora_" + letter(up) + ".weight";
  };
  const std::vector<Layer> unet(attention_layers().begin(), attention_layers().begin() + 4);
  const std::vector<Layer> text(attention_layers().begin() + 4, attention_layers().end());
  const auto write = [&](const std::string& name, const std::vector<Layer>& layers,
                         const std::string& config) {
    std::filesystem::create_directories(files.folder().path() / name);
    save_safetensors(files.folder().file(name + "/adapter_model.safetensors"),
                     spelled(layers, rename));
    if (!config.empty()) write_text(files.folder().file(name + "/adapter_config.json"), config);
  };
  write("both/unet", unet, R"({"peft_type": "LORA", "r": 2, "lora_alpha": 1, "new_field": [1]})");
  write("both/text_encoder", text, R"({"r": 2, "lora_alpha": 2, "use_rslora": true})");
  const auto both = read_adapters(files.folder().file("both")).components;
  check_deltas({{"unet", both.at("unet")}}, unet, 0.5);
  check_deltas({{"text_encoder", both.at("text_encoder")}}, text, std::sqrt(2.0));
  check_deltas(read_adapters(files.folder().file("both/unet")).components, unet, 0.5);
  check_deltas(read_adapters(files.folder().file("both/unet/adapter_model.safetensors")).components,
               unet, 0.5);
  write("bare", unet, "");
  CHECK_THROWS_WITH(read_adapters(files.folder().file("bare")), ContainsSubstring("lora_alpha"));
  write("dora", unet, R"({"r": 2, "use_dora": true})");
  CHECK_THROWS_WITH(read_adapters(files.folder().file("dora")),
                    ContainsSubstring("exactly if the configuration says use_dora, got none"));
  write("pissa", unet, R"({"r": 2, "init_lora_weights": "pissa_niter_4"})");
  CHECK_THROWS_WITH(read_adapters(files.folder().file("pissa")),
                    ContainsSubstring("unchanged base"));
  write("vera", unet, R"({"peft_type": "VERA", "r": 2})");
  CHECK_THROWS_WITH(read_adapters(files.folder().file("vera")), ContainsSubstring("got 'VERA'"));
  std::filesystem::create_directories(files.folder().path() / "empty");
  CHECK_THROWS_WITH(read_adapters(files.folder().file("empty")),
                    ContainsSubstring("adapter_model.safetensors"));
}

TEST_CASE("other methods are named", "[dialects]") {
  Files files;
  const std::string layer = "lora_unet_mid_block_attentions_0_proj_in.";
  const std::pair<std::string, const char*> cases[] = {{layer + "oft_diag", "OFT"},
                                                       {layer + "ia3_l", "IA3"}};
  for (const auto& [key, algorithm] : cases) {
    auto tensors = kohya_file();
    tensors[key] = torch::ones({2, 2});
    const auto message = files.error(tensors);
    CHECK_THAT(message, ContainsSubstring(algorithm));
    CHECK_THAT(message, ContainsSubstring("in 1 of 17 tensors (first '" + key));
  }
}

TEST_CASE("names that match no layer are counted, shown and explained", "[dialects]") {
  Files files;
  const std::pair<const char*, const char*> cases[] = {
      {"lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight", "Stable Diffusion 3"},
      {"lora_unet_double_blocks_0_img_attn_proj.lora_up.weight", "FLUX"},
      {"lora_unet_mid_block_attentions_0_proj_im.lora_up.weight", "another model"},
      {"unet:0:up", "cloneofsimo"},
      {"emb_params", "embedding"},
      {"down_blocks.0.resnets.0.conv1.weight", "whole model"}};
  for (const auto& [key, cause] : cases) {
    auto tensors = kohya_file();
    tensors[key] = torch::ones({2, 2});
    const auto message = files.error(tensors);
    CHECK_THAT(message, ContainsSubstring("got 1 of 17 that match no layer: '" + std::string(key)));
    CHECK_THAT(message, ContainsSubstring(cause));
    CHECK(message.find('\n') == message.npos);
  }
  CHECK_THAT(files.error({}), ContainsSubstring("expected LoRA tensors"));
  auto tensors = kohya_file();
  tensors["a\nb"] = torch::zeros({2, 2});
  tensors["text_encoder_3.x"] = torch::ones({2, 2});
  const auto message = files.error(tensors);
  CHECK_THAT(message,
             ContainsSubstring("got 2 of 18 that match no layer: 'a?b', 'text_encoder_3.x'"));
  CHECK_THAT(message, ContainsSubstring("Stable Diffusion 3"));
}

TEST_CASE("unmatched tensors are passed over only if asked for", "[dialects]") {
  Files files;
  auto tensors = kohya_file();
  tensors["lora_unet_mid_block_attentions_0_proj_in.oft_diag"] = torch::ones({2, 2});
  tensors["something.else"] = torch::ones({2, 2});
  files.error(tensors);
  const auto path = files.folder().file("lora.safetensors");
  const auto contents = read_adapters(path, ReadOptions().ignore_unmatched(true));
  check_deltas(contents.components, attention_layers());
  CHECK(contents.ignored == std::vector<std::string>{"something.else",
                                                     "lora_unet_mid_block_attentions_0_proj_in.oft_"
                                                     "diag"});
  save_safetensors(path, {{"something.else", torch::ones(2)}});
  CHECK_THROWS_WITH(read_adapters(path, ReadOptions().ignore_unmatched(true)),
                    ContainsSubstring("expected LoRA tensors, got none"));
}

TEST_CASE("bytes behind the last tensor are allowed only if asked for", "[dialects]") {
  Files files;
  files.read(kohya_file());
  const auto path = files.folder().file("lora.safetensors");
  std::ofstream(path, std::ios::binary | std::ios::app) << "more";
  CHECK_THROWS_WITH(read_adapters(path), ContainsSubstring("allow_trailing_bytes"));
  check_deltas(read_adapters(path, ReadOptions().allow_trailing_bytes(true)).components,
               attention_layers());
}

TEST_CASE("embeddings bundled with a LoRA are named and read by themselves", "[dialects]") {
  Files files;
  auto tensors = kohya_file();
  tensors["bundle_emb.cat.string_to_param.*"] = torch::ones({2, 4});
  check_deltas(files.read(tensors), attention_layers());
  const auto path = files.folder().file("lora.safetensors");
  CHECK(read_adapters(path).embeddings == std::set<std::string>{"cat"});
  const auto embeddings = load_embeddings(path);
  REQUIRE(embeddings.size() == 1);
  CHECK(embeddings[0].token == "cat");
}

TEST_CASE("broken pairs name their layer", "[dialects]") {
  Files files;
  const auto& layer = attention_layers()[0];
  const auto down = kohya_key(layer, "lora_te_", ".lora_down.weight");
  auto tensors = kohya_file();
  tensors.erase(down);
  CHECK_THAT(files.error(tensors), ContainsSubstring(layer.name + "': expected both factors"));
  tensors[down] = torch::randn({3, 6});
  CHECK_THAT(files.error(tensors),
             ContainsSubstring(layer.name + "': expected two factors of one"));
  tensors[down] = torch::randn({6});
  CHECK_THAT(files.error(tensors), ContainsSubstring(layer.name + "': expected a matrix"));
  tensors[down] = torch::ones({2, 6}, torch::kLong);
  CHECK_THAT(files.error(tensors), ContainsSubstring("floating-point"));
  tensors[down] = layer.down;
  tensors["unet." + layer.name + ".lora_A.weight"] = torch::randn({2, 6});
  CHECK_THAT(files.error(tensors), ContainsSubstring(layer.name + "': expected 'down' once"));
}

TEST_CASE("files for other programs read back with the same deltas", "[dialects]") {
  torch::manual_seed(8);
  ScratchFolder folder;
  auto layers = attention_layers();
  layers.push_back({"unet", "conv_in", torch::randn({2, 4, 3, 3}), torch::randn({5, 2, 1, 1})});
  layers.push_back({"unet", "time_embedding.linear_1", torch::randn({4, 6}), torch::randn({5, 4})});
  Files files;
  Components components = files.read(spelled(layers, dialects().at("D3")));
  for (auto& [name, state] : components) {
    for (auto& layer : state) layer.scale = 0.25;
  }
  save(components, folder.file("diffusers"), Format::diffusers);
  save(components, folder.file("kohya"), Format::kohya);
  save(components, folder.file("peft"), Format::peft);
  for (const char* name : {"diffusers", "kohya", "peft"}) {
    INFO(name);
    check_deltas(read_adapters(folder.file(name)).components, layers, 0.25);
  }
  const SafetensorsFile kohya(folder.file("kohya"));
  CHECK(kohya.load("lora_unet_conv_in.alpha").item<float>() == 4);
  CHECK(kohya.metadata().at("ss_network_args") == R"({"conv_dim": "4", "conv_alpha": "4"})");
  CHECK(kohya.metadata().at("sshs_legacy_hash") == "e3b0c442");  // a file below 1 MiB
}

TEST_CASE("kohya files are complete in the text encoder and without alpha at rank 1",
          "[dialects]") {
  ScratchFolder folder;
  Components components{{"text_encoder", {}}};
  LayerState state{"classic", {kText + "q_proj", 4, 4, {}}, LoRAOptions(1), 1.0, {}, {}};
  state.trained = {{"down", torch::randn({1, 4})}, {"up", torch::randn({4, 1})}};
  components["text_encoder"].push_back(state);
  const auto tensors = lightlora::detail::to_kohya(components, torch::kHalf);
  CHECK(tensors.size() == 8);
  const auto& added =
      tensors.at("lora_te_text_model_encoder_layers_0_self_attn_out_proj.lora_up.weight");
  CHECK(added.scalar_type() == torch::kHalf);
  CHECK(added.abs().max().item<float>() == 0);
  // bf16 has no 301.
  state.options.rank(301);
  state.trained = {{"down", torch::randn({301, 4})}, {"up", torch::randn({4, 301})}};
  const auto alpha = lightlora::detail::to_kohya({{"text_encoder", {state}}}, torch::kBFloat16)
                         .at("lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha");
  CHECK(alpha.item<double>() == 301);
  components["text_encoder"][0].layer.name = "my.layer";
  CHECK_THROWS_WITH(lightlora::detail::to_kohya(components), ContainsSubstring("'my.layer'"));
}
