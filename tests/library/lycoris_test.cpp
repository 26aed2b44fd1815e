// SPDX-License-Identifier: Apache-2.0
// Adapters of LyCORIS and PEFT give the weights that those libraries themselves compute with;
// parity/make_lycoris.py made the files and the numbers.
#include <lightlora/lightlora.h>

#include "paths.h"
#include "support.h"

using namespace lightlora;

namespace {

const std::string kData = LIGHTLORA_TEST_DATA "/lycoris/";
const std::string kLinear = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
const std::string kConv = "down_blocks.0.resnets.0.conv1";
const std::string kPoint = "down_blocks.0.attentions.0.proj_in";

const TensorMap& numbers() {
  static const auto all = SafetensorsFile(kData + "expected.safetensors").load_all();
  return all;
}

at::Tensor matrix(const std::string& key) { return numbers().at(key).flatten(1); }

// The weights after applying a file's adapters to the base weights.
void check_weights(const std::string& name, const std::string& path, double tolerance = 1e-6) {
  INFO(name);
  const auto components = read_adapters(path).components;
  const auto& state = components.at(components.count("unet") ? "unet" : "");
  REQUIRE(state.size() == 3);
  for (const auto& layer : state) {
    INFO(layer.layer.name << ", " << layer.variant);
    const auto base = matrix("base." + layer.layer.name);
    const auto delta = make_adapter(layer)->delta(base);
    CHECK(close(base + delta, matrix(name + "." + layer.layer.name), tolerance));
    // The adapter alone, so that the base cannot hide an error.
    CHECK(close(delta, matrix(name + "." + layer.layer.name) - base, 10 * tolerance));
  }
}

}  // namespace

TEST_CASE("lycoris: every algorithm gives LyCORIS' own weights", "[lycoris][parity]") {
  for (const char* name :
       {"locon", "locon_tucker", "locon_dora", "locon_dora_inputs", "locon_rslora", "loha",
        "loha_wide", "loha_tucker", "loha_dora", "loha_dora_inputs", "lokr", "lokr_full",
        "lokr_both", "lokr_factor", "lokr_tucker", "lokr_dora"}) {
    check_weights(name, kData + name + ".safetensors");
  }
}

TEST_CASE("lycoris: SDXL's files in sd-scripts' names give LyCORIS' own weights",
          "[lycoris][parity][sdxl]") {
  const auto expected = SafetensorsFile(kData + "sgm_expected.safetensors").load_all();
  for (const char* name : {"locon", "loha", "lokr"}) {
    CAPTURE(name);
    std::size_t layers = 0;
    const auto path = kData + "sgm_" + name + ".safetensors";
    for (const auto& [component, states] : read_adapters(path).components) {
      for (const auto& layer : states) {
        const auto full = component + "." + layer.layer.name;
        CAPTURE(full);
        const auto base = expected.at("base." + full).flatten(1);
        const auto delta = make_adapter(layer)->delta(base);
        CHECK(close(delta, expected.at(name + ("." + full)).flatten(1) - base, 1e-5));
        ++layers;
      }
    }
    CHECK(layers == 6);
  }
}

TEST_CASE("lycoris: PEFT's folders give PEFT's own weights", "[lycoris][parity]") {
  for (const char* name : {"peft_dora", "peft_loha", "peft_loha_flat", "peft_lokr",
                           "peft_lokr_full", "peft_lokr_tucker"}) {
    check_weights(name, kData + name);
  }
}

TEST_CASE("lycoris: native files keep the method, others the weights", "[lycoris]") {
  ScratchFolder folder;
  for (const char* name : {"loha", "lokr_both", "locon_dora", "loha_dora", "locon_dora_inputs"}) {
    const auto components = read_adapters(kData + std::string(name) + ".safetensors").components;
    save(components, folder.file("native"));
    CHECK(read_adapters(folder.file("native")).components.at("unet").front().variant ==
          components.at("unet").front().variant);
    check_weights(name, folder.file("native"));
    save(components, folder.file("kohya"), Format::kohya);
    check_weights(name, folder.file("kohya"), 1e-5);  // through a decomposition
    if (components.at("unet").front().options.dora_inputs()) {
      CHECK_THROWS_WITH(save(components, folder.file("x"), Format::diffusers),
                        ContainsSubstring("which only LyCORIS has"));
      continue;
    }
    save(components, folder.file("diffusers"), Format::diffusers);
    check_weights(name, folder.file("diffusers"), 1e-5);
    save(components, folder.file("peft"), Format::peft);
    check_weights(name, folder.file("peft"), 1e-5);
  }
}

TEST_CASE("lycoris: broken layers are named", "[lycoris]") {
  ScratchFolder folder;
  const auto error = [&](const std::string& name, const std::string& key, const at::Tensor& value) {
    auto tensors = SafetensorsFile(kData + name + ".safetensors").load_all();
    const std::string full = "lora_unet_mid_block_attentions_0_proj_in." + key;
    const std::string first = tensors.begin()->first;
    const std::string replaced = first.substr(0, first.find('.') + 1) + key;
    if (value.defined()) {
      tensors[replaced] = value;
    } else {
      tensors.erase(replaced);
    }
    save_safetensors(folder.file("x"), tensors);
    try {
      read_adapters(folder.file("x"));
    } catch (const c10::Error& error) {
      return std::string(error.what_without_backtrace());
    }
    return std::string("no error");
  };
  CHECK_THAT(error("loha", "hada_w2_b", {}), ContainsSubstring("expected a tensor 'hada_w2_b'"));
  CHECK_THAT(error("loha", "hada_w2_a", torch::ones({3, 3})), ContainsSubstring("of one rank"));
  CHECK_THAT(error("loha", "lokr_w1", torch::ones({3, 3})),
             ContainsSubstring("expected the tensors of one method, got 'lokr_w1'"));
  CHECK_THAT(error("locon_tucker", "lora_mid.weight", torch::ones({7, 7, 3, 3})),
             ContainsSubstring("Tucker core"));
  CHECK_THAT(error("locon_dora", "dora_scale", torch::ones({1, 5, 1, 1})),
             ContainsSubstring("expected a DoRA magnitude of 12 values, one for each input"));
  CHECK_THAT(error("locon_dora", "dora_scale", torch::ones({5, 1})),
             ContainsSubstring("expected a DoRA magnitude of 16 values"));
}
