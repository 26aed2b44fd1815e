// SPDX-License-Identifier: Apache-2.0
// Files with weights as bitsandbytes saves them: its own numbers, layers that keep the bits of the file,
// and damaged files, each with one clear line. See tests/parity/make_bitsandbytes.py.
#include <lightlora/file_io.h>
#include <lightlora/packing.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "paths.h"
#include "support.h"

using lightlora::TensorMap;
using lightlora::WeightFormat;
using torch::Tensor;

namespace {

const std::string kLayers = LIGHTLORA_TEST_DATA "/bitsandbytes.safetensors";

Tensor bytes_tensor(const std::string& text) {
  Tensor tensor = torch::empty({static_cast<int64_t>(text.size())}, torch::kByte);
  std::copy(text.begin(), text.end(), tensor.mutable_data_ptr<uint8_t>());
  return tensor;
}

std::string description(const std::string& type, const std::string& shape, int block = 64,
                        const std::string& more = "") {
  return R"({"quant_type": ")" + type + R"(", "blocksize": )" + std::to_string(block) +
         R"(, "dtype": "float32", "shape": )" + shape + more + "}";
}

// A layer in NF4, whole.
TensorMap whole_layer() {
  const lightlora::FourBitWeight four(torch::randn({6, 32}));
  const auto& parts = four.parts();
  return {{"a.weight", parts.packed.unsqueeze(1)},
          {"a.weight.absmax", parts.absmax},
          {"a.weight.quant_map", parts.code},
          {"a.weight.quant_state.bitsandbytes__nf4", bytes_tensor(description("nf4", "[6, 32]"))}};
}

std::string error_of(const std::string& path) {
  try {
    lightlora::open_tensors(path)->load_all();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

const std::string kState = "a.weight.quant_state.bitsandbytes__nf4";

std::function<void(TensorMap&)> described(const std::string& text) {
  return [text](TensorMap& layer) { layer[kState] = bytes_tensor(text); };
}

struct DamagedWeight {
  const char* name;
  std::function<void(TensorMap&)> change;
  const char* says;
};
const std::string kNested = R"(, "nested_blocksize": 256, "nested_offset": 0.5)";
const std::vector<DamagedWeight> kDamagedWeights{
    {"no factors", [](auto& l) { l.erase("a.weight.absmax"); }, "'a.weight.absmax'"},
    {"no values", [](auto& l) { l.erase("a.weight.quant_map"); }, "'a.weight.quant_map'"},
    {"no weight", [](auto& l) { l.erase("a.weight"); }, "expected tensor 'a.weight'"},
    {"fewer factors", [](auto& l) { l["a.weight.absmax"] = torch::ones({2}); }, "3 numbers"},
    {"factors in fp16", [](auto& l) { l["a.weight.absmax"] = torch::ones({3}, torch::kHalf); },
     "F16"},
    {"15 values", [](auto& l) { l["a.weight.quant_map"] = torch::ones({15}); }, "16 numbers"},
    {"no JSON", described("{"), "nf4': expected"},
    {"a list", described("[]"), "nf4': expected"},
    {"deep JSON", described(std::string(5000, '[')), "nf4': expected"},
    {"a page of text", described(std::string(70'000, ' ')), "at most 65536 bytes"},
    {"another type", described(description("int4", "[6, 32]")), "quant_type"},
    {"escape codes", described(description("\\u001b[2J", "[6, 32]")), "quant_type"},
    {"a block of 0", described(description("nf4", "[6, 32]", 0)), "powers of two"},
    {"a block of 3", described(description("nf4", "[6, 32]", 3)), "powers of two"},
    {"a block of -64", described(description("nf4", "[6, 32]", -64)), "powers of two"},
    {"no shape", described(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32"})"),
     "'shape'"},
    {"an empty shape", described(description("nf4", "[]")), "1 to 8 dimensions"},
    {"a larger shape", described(description("nf4", "[6, 64]")), "a shape of the numbers"},
    {"a huge shape", described(description("nf4", "[4294967296, 4294967296]")),
     "a shape of the numbers"},
    {"a shape below 0", described(description("nf4", "[-6, -32]")), "a shape of the numbers"},
    {"a shape of texts", described(description("nf4", R"(["6", 32])")), "nf4': expected"},
    {"an offset without an end",
     described(
         description("nf4", "[6, 32]", 64, R"(, "nested_blocksize": 256, "nested_offset": 1e300)")),
     "nested_offset"},
    {"factors that are not nested", described(description("nf4", "[6, 32]", 64, kNested)),
     "'a.weight.absmax'"},
    {"both kinds",
     [](auto& l) {
       l["a.weight.quant_state.bitsandbytes__fp4"] = bytes_tensor(description("fp4", "[6, 32]"));
     },
     "one description"},
    {"eight bits of fewer rows",
     [](auto& l) {
       l = {{"a.weight", torch::ones({4, 3}, torch::kChar)}, {"a.SCB", torch::ones({3})}};
     },
     "'a.SCB'"},
    {"eight bits of a vector",
     [](auto& l) {
       l = {{"a.weight", torch::ones({4}, torch::kChar)}, {"a.SCB", torch::ones({4})}};
     },
     "a matrix in I8"},
};

}  // namespace

TEST_CASE("bitsandbytes: its files have its numbers", "[quantized]") {
  const auto file = lightlora::open_tensors(kLayers);
  const std::vector<std::string> names{"nf4", "nested", "fp4", "int8"};
  for (const auto& name : names) {
    INFO(name);
    const Tensor full = file->load(name + ".weight"), expected = file->load(name + ".dense");
    CHECK(full.sizes() == at::IntArrayRef({22, 24}));
    CHECK(full.scalar_type() == expected.scalar_type());
    // Scales in eight bits are multiplied in another order there.
    if (name == "int8") {
      CHECK(close(full, expected, 1e-7));
    } else {
      CHECK(torch::equal(full, expected));
    }
  }
  // Their parts are no tensors of their own: weights, full ones, and three biases.
  CHECK(file->tensors().size() == 4 + 4 + 3);
  CHECK(file->load_all().size() == 11);
}

TEST_CASE("bitsandbytes: layers keep the bits of a file", "[quantized]") {
  const auto file = lightlora::open_tensors(kLayers);
  CHECK(!file->load_quantized("nf4.weight", WeightFormat::int8, torch::kFloat).defined());
  CHECK(!file->load_quantized("int8.weight", WeightFormat::nf4, torch::kFloat).defined());
  CHECK(!file->load_quantized("nf4.bias", WeightFormat::nf4, torch::kFloat).defined());
  for (const std::string name : {"nf4", "nested", "fp4", "int8"}) {
    INFO(name);
    const auto format = name == "int8" ? WeightFormat::int8 : WeightFormat::nf4;
    torch::nn::Linear layer(24, 22);
    const auto options = lightlora::QuantizeOptions().format(format).source(
        [&](const std::string&, const Tensor& weight) {
          return file->load_quantized(name + ".weight", format, weight.scalar_type());
        });
    CHECK(lightlora::quantize(*layer, {}, options) == 1);
    const Tensor x = torch::randn({5, 24}), full = file->load(name + ".dense").to(torch::kFloat);
    const Tensor expected = torch::linear(x, full, layer->bias);
    // The full weight of "nested" is rounded to bf16, eight bits round inputs too.
    const double tolerance = name == "int8" ? 0.02 : name == "nested" ? 0.01 : 1e-5;
    CHECK(close(layer->forward(x), expected, tolerance));
    lightlora::dequantize(*layer);
    CHECK(close(layer->weight, full, name == "nested" ? 0.004 : 1e-6));
  }
}

TEST_CASE("bitsandbytes: damaged files end in one line", "[quantized][strangers]") {
  const ScratchFolder folder;
  const std::string path = folder.file("m.safetensors");
  lightlora::save_safetensors(path, whole_layer());
  CHECK(error_of(path).empty());
  for (const auto& row : kDamagedWeights) {
    INFO(row.name);
    auto layer = whole_layer();
    row.change(layer);
    lightlora::save_safetensors(path, layer);
    const auto message = error_of(path);
    CHECK_THAT(message, ContainsSubstring(row.says));
    CHECK_THAT(message, ContainsSubstring("m.safetensors': "));
    CHECK(message.find_first_of("\n\x1b") == message.npos);
  }
}
