// SPDX-License-Identifier: Apache-2.0
// LyCORIS' diag-OFT, BOFT, GLoRA, (IA)3, T-LoRA, whole differences, biases and norms in its own files.
// tests/parity/make_lycoris_methods.py made them.
#include <lightlora/lightlora.h>

#include <cstdlib>

#include "paths.h"
#include "support.h"

using namespace lightlora;
using torch::Tensor;

namespace {

const std::string kData = std::string(LIGHTLORA_TEST_DATA) + "/lycoris_methods/";
const std::vector<std::string> kCases{
    "diag_oft", "diag_oft_coft", "diag_oft_rescaled", "boft", "boft_coft", "boft_rescaled",
    "glora",    "ia3",           "ia3_input",         "full", "norms"};

const TensorMap& numbers() {
  static const auto all = SafetensorsFile(kData + "expected.safetensors").load_all();
  return all;
}

using ModulePointer = std::shared_ptr<torch::nn::Module>;

void place_module(const ModulePointer& root, const std::string& path, const ModulePointer& layer) {
  ModulePointer parent = root;
  std::size_t begin = 0;
  for (auto dot = path.find('.'); dot != path.npos; dot = path.find('.', begin)) {
    const std::string name = path.substr(begin, dot - begin);
    const auto children = parent->named_children();
    parent = children.contains(name)
                 ? children[name]
                 : parent->register_module(name, std::make_shared<torch::nn::Module>("part"));
    begin = dot + 1;
  }
  parent->register_module(path.substr(begin), layer);
}

// A model with the layers of the files, under their names.
ModulePointer base_of_lycoris() {
  namespace nn = torch::nn;
  auto root = std::make_shared<nn::Module>("unet");
  const std::string attention = "down_blocks.0.attentions.0.",
                    block = attention + "transformer_blocks.0.",
                    resnet = "down_blocks.0.resnets.0.";
  place_module(root, block + "attn1.to_q", nn::Linear(nn::LinearOptions(24, 16).bias(false)).ptr());
  place_module(root, block + "attn1.to_out.0", nn::Linear(16, 24).ptr());
  place_module(root, resnet + "conv1", nn::Conv2d(nn::Conv2dOptions(6, 16, 3)).ptr());
  place_module(root, attention + "proj_in", nn::Conv2d(nn::Conv2dOptions(12, 16, 1)).ptr());
  place_module(root, resnet + "norm1", nn::GroupNorm(nn::GroupNormOptions(2, 6)).ptr());
  place_module(root, block + "norm1", nn::LayerNorm(nn::LayerNormOptions({24})).ptr());
  const torch::NoGradGuard no_grad;
  for (auto& item : root->named_parameters()) {
    item.value().copy_(numbers().at("base." + item.key()));
  }
  return root;
}

// Whether each adapted weight or vector is what LyCORIS makes of it.
void check_values(const std::string& name, const Patched& lora, std::size_t layers) {
  const auto adapters = lora->adapters();
  CHECK(adapters.size() == layers);
  for (const auto& adapter : adapters) {
    const LayerInfo& layer = adapter->layer();
    INFO(name << " " << layer.name);
    const std::string key = layer.name + (layer.is_vector() ? "" : ".weight");
    const Tensor base = lora->weight_of(layer.name);
    const Tensor expected = numbers().at(name + "." + key).reshape(base.sizes());
    CHECK(close(adapter->delta(base), expected - base, 1e-5));
  }
}

std::size_t layers_of(const std::string& name) {
  return name == "full" ? 7 : name == "tlora" ? 3 : 4;
}

void check_same_file(const std::string& found_path, const std::string& expected_path) {
  const auto expected = SafetensorsFile(expected_path).load_all();
  const auto found = SafetensorsFile(found_path).load_all();
  CHECK(found.size() == expected.size());
  for (const auto& [key, value] : expected) {
    INFO(key);
    REQUIRE(found.count(key) == 1);
    CHECK(close(found.at(key).to(torch::kDouble), value.to(torch::kDouble), 1e-5));
  }
}

}  // namespace

TEST_CASE("lycoris methods: a file of LyCORIS makes the weights that it makes there",
          "[lycoris][parity]") {
  for (const auto& name : kCases) {
    auto model = base_of_lycoris();
    check_values(name, patch(*model, read_state(kData + name + ".safetensors")), layers_of(name));
  }
}

TEST_CASE("lycoris methods: files are written as LyCORIS has them, with a model or without",
          "[lycoris]") {
  const ScratchFolder folder;
  const char* keep = std::getenv("LIGHTLORA_KEEP_LYCORIS");  // for make_lycoris_methods.py --check
  for (const auto& name : kCases) {
    INFO(name);
    const std::string file = name + ".safetensors", original = kData + file;
    auto model = base_of_lycoris();
    const auto lora = patch(*model, read_state(original));
    const std::string written = keep ? keep + std::string("/") + file : folder.file(file);
    save(lora, written, Format::kohya);
    check_same_file(written, original);
    save(read_adapters(original).components, folder.file("again"), Format::kohya);
    check_same_file(folder.file("again"), original);
    save(lora, folder.file("native"));
    lora->remove();
    check_values(name, patch(*model, read_state(folder.file("native"))), layers_of(name));
  }
}

TEST_CASE("lycoris methods: T-LoRA's start is the model's, and its file plain LoRA", "[lycoris]") {
  const ScratchFolder folder;
  const std::string original = kData + "tlora.safetensors";
  auto model = base_of_lycoris();
  {
    const auto lora = patch(*model, read_state(original));
    check_values("tlora", lora, 3);
    save(lora, folder.file("kohya"), Format::kohya);
    save(lora, folder.file("native"));
    lora->remove();
  }
  for (const char* file : {"kohya", "native"}) {
    INFO(file);
    const auto lora = patch(*model, read_state(folder.file(file)));
    check_values("tlora", lora, 3);
    lora->remove();
  }
  CHECK_THROWS_WITH(save(read_adapters(original).components, folder.file("x"), Format::kohya),
                    ContainsSubstring("which follows from the layer's weight"));
}

TEST_CASE("lycoris methods: BOFT that LyCORIS cannot hold is refused, fewer factors are filled up",
          "[lycoris]") {
  const ScratchFolder folder;
  const std::string layer = "mid_block.attentions.0.proj_in",
                    flat = "lora_unet_mid_block_attentions_0";
  auto model = std::make_shared<torch::nn::Module>("unet");
  place_module(model, layer, torch::nn::Linear(20, 24).ptr());
  const auto lora = patch(*model, "boft", BOFTOptions(6).factors(1), {layer});
  const torch::NoGradGuard no_grad;
  for (auto& value : lora->parameters()) value.normal_(0, 0.2);
  const Tensor delta = lora->adapters()[0]->delta(lora->weight_of(layer));
  save({{"unet", {state_of(*lora->adapters()[0])}}}, folder.file("kohya"), Format::kohya);
  const auto tensors = SafetensorsFile(folder.file("kohya")).load_all();
  CHECK(tensors.at(flat + "_proj_in.oft_blocks").sizes() == at::IntArrayRef({3, 4, 6, 6}));
  const Tensor weight = lora->weight_of(layer).clone();
  lora->remove();
  const auto again = patch(*model, read_state(folder.file("kohya")));
  CHECK(close(again->adapters()[0]->delta(weight), delta, 1e-6));
  again->remove();
  const auto inputs = patch(*model, "boft", BOFTOptions(4).input_side(true), {layer});
  CHECK_THROWS_WITH(
      save({{"unet", {state_of(*inputs->adapters()[0])}}}, folder.file("x"), Format::kohya),
      ContainsSubstring("expected rotations of the outputs"));
  inputs->remove();
  const auto three = patch(*model, "boft", BOFTOptions(8).factors(1), {layer});
  CHECK_THROWS_WITH(
      save({{"unet", {state_of(*three->adapters()[0])}}}, folder.file("x"), Format::kohya),
      ContainsSubstring("got 3 of 8"));
}

TEST_CASE("lycoris methods: broken layers are named", "[lycoris]") {
  const ScratchFolder folder;
  const std::string layer = "lora_unet_mid_block_attentions_0_proj_in.";
  const auto error_of = [&](const TensorMap& tensors) {
    TensorMap named;
    for (const auto& [key, value] : tensors) named[layer + key] = value;
    save_safetensors(folder.file("x"), named);
    try {
      read_adapters(folder.file("x"));
    } catch (const c10::Error& error) {
      return std::string(error.what_without_backtrace());
    }
    return std::string("no error");
  };
  using torch::ones;
  CHECK_THAT(error_of({{"oft_blocks", ones({2, 2, 3, 3})}}),
             ContainsSubstring("that 2 butterfly factors halve each time, got [2, 2, 3, 3]"));
  CHECK_THAT(error_of({{"oft_blocks", ones({3, 2, 4, 4})}}),
             ContainsSubstring("that 3 butterfly factors halve each time"));
  CHECK_THAT(error_of({{"oft_blocks", ones({2, 3, 2})}}), ContainsSubstring("square blocks"));
  CHECK_THAT(error_of({{"oft_blocks", ones({2, 3, 3})}, {"rescale", ones({5, 1})}}),
             ContainsSubstring("a length for each of 6 outputs"));
  CHECK_THAT(error_of({{"oft_blocks", ones({2, 3, 3})}, {"alpha", torch::tensor(-1.0)}}),
             ContainsSubstring("expected a bound of at least 0"));
  CHECK_THAT(error_of({{"a1.weight", ones({4, 2})},
                       {"a2.weight", ones({2, 4})},
                       {"b1.weight", ones({5, 2})},
                       {"b2.weight", ones({3, 4})}}),
             ContainsSubstring("GLoRA's four factors of one rank"));
  CHECK_THAT(error_of({{"weight", ones({4})}}), ContainsSubstring("expected a tensor 'on_input'"));
  CHECK_THAT(error_of({{"q_layer.weight", ones({2, 4})},
                       {"p_layer.weight", ones({5, 3})},
                       {"lambda_layer", ones({1, 2})}}),
             ContainsSubstring("of one rank"));
  CHECK_THAT(error_of({{"diff_b", ones({4, 2})}}), ContainsSubstring("one value for each channel"));
}
