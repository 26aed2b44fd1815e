// SPDX-License-Identifier: Apache-2.0
#include "models/weights.h"

#include <lightlora/file_io.h>

#include <fstream>

#include "support.h"

namespace {

// fc.weight, fc.bias, norm.weight, norm.bias.
struct NetImpl : torch::nn::Module {
  NetImpl() {
    fc = register_module("fc", torch::nn::Linear(3, 2));
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({2})));
  }
  torch::nn::Linear fc{nullptr};
  torch::nn::LayerNorm norm{nullptr};
};
TORCH_MODULE(Net);

lightlora::TensorMap values(at::ScalarType dtype = at::kFloat) {
  torch::manual_seed(3);
  lightlora::TensorMap map;
  const Net net;
  for (const auto& item : net->named_parameters()) {
    map[item.key()] = at::randn(item.value().sizes()).to(dtype);
  }
  return map;
}

std::string error_of(torch::nn::Module& module, const std::string& path,
                     const sd::RenameTensor& rename = {}) {
  try {
    sd::load_weights(module, path, rename);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

std::string find_error(const std::string& folder) {
  try {
    return sd::find_weights(folder, "model");
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
}

void touch(const std::string& path, const std::string& text = "") { std::ofstream(path) << text; }

}  // namespace

TEST_CASE("weights: files of every dtype fill modules of every dtype", "[weights]") {
  const ScratchFolder scratch;
  for (const auto stored : {at::kHalf, at::kBFloat16, at::kFloat}) {
    const auto map = values(stored);
    lightlora::save_safetensors(scratch.file("w.safetensors"), map);
    for (const auto dtype : {at::kHalf, at::kBFloat16, at::kFloat, at::kDouble}) {
      Net net;
      net->to(dtype);
      sd::load_weights(*net, scratch.file("w.safetensors"));
      for (const auto& item : net->named_parameters()) {
        REQUIRE(item.value().scalar_type() == dtype);
        REQUIRE(item.value().requires_grad());
        REQUIRE(at::equal(item.value(), map.at(item.key()).to(dtype)));
      }
    }
  }
}

TEST_CASE("weights: names are translated", "[weights]") {
  const ScratchFolder scratch;
  lightlora::TensorMap map;
  for (const auto& [name, value] : values()) map["model." + name] = value;
  lightlora::save_safetensors(scratch.file("w.safetensors"), map);
  const auto strip = [](const std::string& name) { return name.substr(6); };
  Net net;
  sd::load_weights(*net, scratch.file("w.safetensors"), strip);
  REQUIRE(at::equal(net->fc->weight, map.at("model.fc.weight")));
  REQUIRE_THAT(
      error_of(*net, scratch.file("w.safetensors"), [](const std::string&) { return "one"; }),
      ContainsSubstring("expected each tensor once"));
}

TEST_CASE("weights: a missing, unknown or misshapen tensor is named and nothing changes",
          "[weights]") {
  const ScratchFolder scratch;
  const auto path = scratch.file("w.safetensors");
  Net net;
  const auto before = net->fc->weight.detach().clone();
  auto map = values();
  SECTION("missing and unknown") {
    map.erase("norm.bias");
    map["extra"] = at::zeros({1});
    lightlora::save_safetensors(path, map);
    const auto error = error_of(*net, path);
    REQUIRE_THAT(error, ContainsSubstring(path));
    REQUIRE_THAT(error, ContainsSubstring("expected the model's 4 tensors, got 1 (norm.bias) "
                                          "missing and 1 (extra) unknown; hint:"));
  }
  SECTION("many") {
    for (int i = 0; i < 7; ++i) map["extra" + std::to_string(i)] = at::zeros({1});
    lightlora::save_safetensors(path, map);
    REQUIRE_THAT(error_of(*net, path),
                 ContainsSubstring("got 7 (extra0, extra1, extra2, extra3 and 3 more) unknown"));
  }
  SECTION("shape") {
    map["fc.weight"] = at::zeros({3, 2});
    lightlora::save_safetensors(path, map);
    REQUIRE_THAT(error_of(*net, path),
                 ContainsSubstring("tensor 'fc.weight': expected shape [2, 3], got [3, 2]; hint:"));
  }
  SECTION("integers") {
    map["fc.weight"] = at::zeros({2, 3}, at::kLong);
    lightlora::save_safetensors(path, map);
    REQUIRE_THAT(error_of(*net, path), ContainsSubstring("expected float, got I64; hint:"));
  }
  SECTION("no file") {
    REQUIRE_THAT(error_of(*net, path), ContainsSubstring("expected a file of weights, got none"));
  }
  REQUIRE(at::equal(net->fc->weight, before));
}

TEST_CASE("weights: a matrix stored as a 1x1 kernel is read, one stored as a 3x1 kernel is not",
          "[weights]") {
  const ScratchFolder scratch;
  auto map = values();
  const at::Tensor weight = map["fc.weight"];
  map["fc.weight"] = weight.view({2, 3, 1, 1});
  lightlora::save_safetensors(scratch.file("w.safetensors"), map);
  Net net;
  sd::load_weights(*net, scratch.file("w.safetensors"));
  CHECK(torch::equal(net->fc->weight, weight));
  map["fc.weight"] = at::zeros({2, 3, 3, 1});
  lightlora::save_safetensors(scratch.file("w.safetensors"), map);
  CHECK_THAT(error_of(*net, scratch.file("w.safetensors")),
             ContainsSubstring("expected shape [2, 3], got [2, 3, 3, 1]"));
  CHECK(torch::equal(net->fc->weight, weight));
}

TEST_CASE("weights: a buffer of positions is passed over", "[weights]") {
  const ScratchFolder scratch;
  auto map = values();
  map["embeddings.position_ids"] = at::arange(4);
  lightlora::save_safetensors(scratch.file("w.safetensors"), map);
  Net net;
  REQUIRE(error_of(*net, scratch.file("w.safetensors")) == "no error");
}

TEST_CASE("weights: several files are read through their index", "[weights]") {
  const ScratchFolder scratch;
  const auto map = values();
  lightlora::save_safetensors(scratch.file("m-1.safetensors"),
                              {{"fc.weight", map.at("fc.weight")}, {"fc.bias", map.at("fc.bias")}});
  lightlora::save_safetensors(
      scratch.file("m-2.safetensors"),
      {{"norm.weight", map.at("norm.weight")}, {"norm.bias", map.at("norm.bias")}});
  const auto index = scratch.file("model.safetensors.index.json");
  touch(index, R"({"metadata": {"total_size": 52}, "weight_map": {"fc.weight": "m-1.safetensors",
      "fc.bias": "m-1.safetensors", "norm.weight": "m-2.safetensors",
      "norm.bias": "m-2.safetensors"}})");
  REQUIRE(sd::find_weights(scratch.path().string(), "model") == index);
  Net net;
  sd::load_weights(*net, index);
  for (const auto& item : net->named_parameters()) {
    REQUIRE(at::equal(item.value(), map.at(item.key())));
  }
  std::filesystem::remove(scratch.file("m-2.safetensors"));
  REQUIRE_THAT(error_of(*net, index),
               ContainsSubstring("m-2.safetensors': expected a file of weights"));
  touch(index, R"({"weight_map": {"fc.weight": "../m-1.safetensors"}})");
  REQUIRE_THAT(error_of(*net, index), ContainsSubstring("expected the name of a file beside"));
  touch(index, "{}");
  REQUIRE_THAT(error_of(*net, index), ContainsSubstring("expected a weight_map"));
}

TEST_CASE("weights: find_weights takes the full file first and explains what else is there",
          "[weights]") {
  const ScratchFolder scratch;
  const auto folder = scratch.path().string();
  REQUIRE_THAT(find_error(folder + "/none"), ContainsSubstring("expected a folder with weights"));
  REQUIRE_THAT(find_error(folder), ContainsSubstring("got no weights"));
  touch(scratch.file("pytorch_model.bin"));
  REQUIRE(find_error(folder) == scratch.file("pytorch_model.bin"));
  touch(scratch.file("model.fp16.safetensors"));
  REQUIRE(find_error(folder) == scratch.file("model.fp16.safetensors"));
  touch(scratch.file("model.safetensors"));
  REQUIRE(find_error(folder) == scratch.file("model.safetensors"));
}

TEST_CASE("weights: uninitialized modules draw nothing, and only while asked", "[weights]") {
  torch::manual_seed(5);
  const auto expected = at::rand({4});
  torch::manual_seed(5);
  {
    const sd::UninitializedModules uninitialized(at::kBFloat16);
    const torch::nn::Linear linear(64, 64);
    const torch::nn::Conv2d conv(torch::nn::Conv2dOptions(8, 8, 3));
    const torch::nn::Embedding embedding(8, 8);
    REQUIRE(linear->weight.scalar_type() == at::kBFloat16);
    REQUIRE(conv->weight.scalar_type() == at::kBFloat16);
    REQUIRE(embedding->weight.scalar_type() == at::kBFloat16);
    REQUIRE(linear->weight.requires_grad());
  }
  REQUIRE(at::equal(at::rand({4}), expected));
  const torch::nn::Linear after(8, 8);
  REQUIRE(after->weight.scalar_type() == at::kFloat);
  REQUIRE(after->weight.abs().sum().item<float>() > 0);
  REQUIRE_THROWS_WITH(sd::UninitializedModules(at::kLong),
                      ContainsSubstring("expected a floating dtype"));
}
