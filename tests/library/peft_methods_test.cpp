// SPDX-License-Identifier: Apache-2.0
// HiRA, MiSS, GraLoRA, OFT and BOFT in PEFT's own files. tests/parity/make_peft_methods.py made them.
#include <lightlora/detail/formats/json.h>
#include <lightlora/lightlora.h>

#include <fstream>
#include <sstream>

#include "models.h"
#include "paths.h"

using namespace lightlora_tests;
using namespace lightlora;

namespace {

const std::string kData = std::string(LIGHTLORA_TEST_DATA) + "/peft_methods/";

// Scales that the configuration holds are in the tensors of files written here.
const std::vector<std::pair<std::string, bool>> kCases{
    {"hira", true},      {"miss", true},       {"gralora", true}, {"gralora_alpha", false},
    {"oft", true},       {"oft_exact", true},  {"boft", true},    {"boft_2", true},
    {"conv_boft", true}, {"conv_boft_2", true}};

TensorMap& numbers() {
  static TensorMap all = SafetensorsFile(kData + "numbers.safetensors").load_all();
  return all;
}

// What the names of a case's model and inputs begin with.
std::string start_of(const std::string& name) { return name.rfind("conv_", 0) == 0 ? "conv_" : ""; }

torch::nn::Sequential base_of_peft(const std::string& start = "") {
  torch::nn::Sequential model;
  if (start.empty()) {
    model->push_back(torch::nn::Linear(24, 20));
    model->push_back(torch::nn::Tanh());
    model->push_back(torch::nn::Linear(20, 16));
  } else {
    model->push_back(torch::nn::Conv2d(torch::nn::Conv2dOptions(4, 8, 3).stride(2).padding(1)));
    model->push_back(torch::nn::Tanh());
    model->push_back(torch::nn::Conv2d(torch::nn::Conv2dOptions(8, 5, 1)));
  }
  const torch::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) {
    item.value().copy_(numbers().at(start + "base." + item.key()));
  }
  return model;
}

Tensor output_of(const std::string& folder, const std::string& start = "") {
  auto model = base_of_peft(start);
  const auto lora = patch(*model, read_state(folder));
  const torch::NoGradGuard no_grad;
  return lora(model, numbers().at(start + "x"));
}

TensorMap tensors_of(const std::string& folder) {
  return SafetensorsFile(folder + "/adapter_model.safetensors").load_all();
}

JsonValue config_of(const std::string& folder) {
  std::ifstream file(folder + "/adapter_config.json");
  std::stringstream text;
  text << file.rdbuf();
  return parse_json(text.str());
}

void write_config(const std::string& folder, const std::string& text) {
  std::ofstream(folder + "/adapter_config.json") << text;
}

}  // namespace

TEST_CASE("PEFT's other methods: a file of PEFT computes what PEFT computes", "[peft]") {
  for (const auto& item : kCases) {
    INFO(item.first);
    // fp32 on both sides.
    CHECK(close(output_of(kData + item.first, start_of(item.first)),
                numbers().at(item.first + ".y"), 1e-5));
  }
}

TEST_CASE("PEFT's other methods: a file for PEFT has its names, values and configuration",
          "[peft]") {
  const ScratchFolder folder;
  const char* keep = std::getenv("LIGHTLORA_KEEP_PEFT");  // for make_peft_methods.py --check
  for (const auto& [name, same_values] : kCases) {
    INFO(name);
    const std::string written = (keep ? keep + std::string("/") : folder.file("")) + name;
    auto model = base_of_peft(start_of(name));
    const auto lora = patch(*model, read_state(kData + name));
    save(lora, written, Format::peft);
    CHECK(close(output_of(written, start_of(name)), numbers().at(name + ".y"), 1e-5));
    const auto expected = tensors_of(kData + name), found = tensors_of(written);
    REQUIRE(found.size() == expected.size());
    for (const auto& [key, value] : expected) {
      INFO(key);
      REQUIRE(found.count(key) == 1);
      CHECK(found.at(key).sizes() == value.sizes());
      if (same_values) CHECK(torch::equal(found.at(key), value));
    }
    const auto theirs = config_of(kData + name), ours = config_of(written);
    for (const char* field :
         {"r", "gralora_k", "oft_block_size", "boft_block_size", "boft_n_butterfly_factor"}) {
      if (const auto* value = theirs.find(field)) {
        REQUIRE(ours.find(field) != nullptr);
        CHECK(ours.find(field)->integer() == value->integer());
      }
    }
    CHECK(ours.find("peft_type")->string() == theirs.find("peft_type")->string());
  }
}

TEST_CASE("PEFT's other methods: BOFT of convolutions is passed on without a model", "[peft]") {
  const ScratchFolder folder;
  const auto state = read_state(kData + "conv_boft_2");
  CHECK(state[0].layer.in == 0);
  CHECK(state[0].layer.out == 8);
  save({{"", state}}, folder.file("passed"), Format::peft);
  CHECK(tensors_of(folder.file("passed")).at("base_model.model.0.boft_s").sizes() ==
        torch::IntArrayRef({1, 8}));
  CHECK(close(output_of(folder.file("passed"), "conv_"), numbers().at("conv_boft_2.y"), 1e-5));
  torch::nn::Sequential wide(torch::nn::Conv2d(torch::nn::Conv2dOptions(4, 8, {3, 1})));
  const auto lora = patch(*wide, "boft", BOFTOptions(4).factors(1).input_side(true), {"0"});
  CHECK_THROWS_WITH(save(lora, folder.file("wide"), Format::peft),
                    ContainsSubstring("'0': expected a square kernel"));
  auto linear = base_of_peft();
  CHECK_THROWS(patch(*linear, state));
}

TEST_CASE("PEFT's other methods: a size that the file does not tell is the model's", "[peft]") {
  const auto oft = read_state(kData + "oft"), miss = read_state(kData + "miss");
  CHECK(oft[0].layer.in == 24);
  CHECK(oft[0].layer.out == 0);
  CHECK(miss[0].layer.in == 0);
  CHECK(miss[0].layer.out == 20);
  const ScratchFolder folder;
  CHECK_THROWS_WITH(save({{"", oft}}, folder.file("native")),
                    ContainsSubstring("'0': expected a layer whose sizes are known, got 24 -> 0"));
  auto model = base_of_peft();
  save(patch(*model, oft), folder.file("native"));
  CHECK(close(output_of(folder.file("native")), numbers().at("oft.y"), 1e-5));
}

TEST_CASE("PEFT's other methods: what PEFT cannot hold, or what is not read, is refused",
          "[peft]") {
  const ScratchFolder folder;
  auto model = base_of_peft();
  const auto scaled = patch(*model, "oft", LoRAOptions(1).network_alpha(2), {"0"});
  CHECK_THROWS_WITH(save(scaled, folder.file("oft"), Format::peft),
                    ContainsSubstring("'0': expected scale 1 of a rotation"));
  scaled->remove();
  const auto outputs = patch(*model, "boft", LoRAOptions(4), {"0"});
  CHECK_THROWS_WITH(save(outputs, folder.file("boft"), Format::peft),
                    ContainsSubstring("'0': expected rotations of the inputs"));
  outputs->remove();
  const auto ranks = patch(*model, "miss", LoRAOptions(2), Targets{"0", "2"}.rank("2", 4));
  CHECK_THROWS_WITH(save(ranks, folder.file("miss"), Format::peft),
                    ContainsSubstring("'2': expected rank 2 in every layer"));
  std::filesystem::copy(kData + "oft", folder.file("coft"));
  write_config(folder.file("coft"), R"({"peft_type": "OFT", "coft": true})");
  CHECK_THROWS_WITH(read_state(folder.file("coft")),
                    ContainsSubstring("expected a method without coft"));
  std::filesystem::copy(kData + "miss", folder.file("bat"));
  write_config(folder.file("bat"), R"({"peft_type": "MISS", "r": 5, "init_weights": "bat"})");
  CHECK_THROWS_WITH(read_state(folder.file("bat")),
                    ContainsSubstring("expected a method without init_weights"));
}
