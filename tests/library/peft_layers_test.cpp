// SPDX-License-Identifier: Apache-2.0
// Every kind of layer in PEFT's own names. tests/parity/make_peft_layers.py made the adapter.
#include <lightlora/lightlora.h>

#include "models.h"
#include "paths.h"

using namespace lightlora_tests;
using namespace lightlora;

namespace {

const std::string kData = std::string(LIGHTLORA_TEST_DATA) + "/peft_layers";

struct EveryLayerImpl : torch::nn::Module {
  EveryLayerImpl() {
    emb = register_module("emb",
                          torch::nn::Embedding(torch::nn::EmbeddingOptions(11, 6).padding_idx(0)));
    attn = register_module("attn", torch::nn::MultiheadAttention(6, 2));
    fc = register_module("fc", torch::nn::Linear(6, 5));
    conv1 = register_module("conv1", torch::nn::Conv1d(5, 4, 3));
    conv2 = register_module("conv2", torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 3, {2, 3})));
  }
  Tensor forward(const Tensor& ids) {
    Tensor x = emb(ids);
    x = std::get<0>(attn(x, x, x));
    x = conv1(fc(x).permute({1, 2, 0}));
    return conv2(x.unsqueeze(1));
  }
  torch::nn::Embedding emb{nullptr};
  torch::nn::MultiheadAttention attn{nullptr};
  torch::nn::Linear fc{nullptr};
  torch::nn::Conv1d conv1{nullptr};
  torch::nn::Conv2d conv2{nullptr};
};
TORCH_MODULE(EveryLayer);

EveryLayer model_of_peft(const TensorMap& numbers) {
  EveryLayer model;
  torch::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) {
    item.value().copy_(numbers.at("weight." + item.key()));
  }
  return model;
}

const std::vector<std::string> kLayers{"emb", "attn.in_proj", "attn.out_proj",
                                       "fc",  "conv1",        "conv2"};

TensorMap adapter_of(const std::string& folder) {
  return SafetensorsFile(folder + "/adapter_model.safetensors").load_all();
}

void check_equal(const TensorMap& written, const TensorMap& expected) {
  REQUIRE(written.size() == expected.size());
  for (const auto& [name, value] : expected) {
    INFO(name);
    REQUIRE(written.count(name));
    CHECK(torch::equal(written.at(name), value));
  }
}

}  // namespace

TEST_CASE("an adapter of PEFT computes what PEFT computes, in every kind of layer", "[peft]") {
  const auto numbers = SafetensorsFile(kData + "/model.safetensors").load_all();
  auto model = model_of_peft(numbers);
  const auto ids = numbers.at("ids");
  REQUIRE(close(model(ids), numbers.at("base"), 1e-5));
  const auto lora = patch(*model, read_state(kData + "/adapter"));
  const torch::NoGradGuard no_grad;
  // fp32 on both sides; seen: 3e-7.
  CHECK(close(lora(model, ids), numbers.at("output"), 1e-5));
}

TEST_CASE("what is written for PEFT has PEFT's own names and values, by way of a native file too",
          "[peft]") {
  const auto numbers = SafetensorsFile(kData + "/model.safetensors").load_all();
  auto model = model_of_peft(numbers);
  const auto lora = patch<ClassicLoRA>(*model, LoRAOptions(3), kLayers);
  load(lora, kData + "/adapter");
  const ScratchFolder folder;
  save(lora, folder.file("peft"), Format::peft);
  const auto expected = adapter_of(kData + "/adapter");
  check_equal(adapter_of(folder.file("peft")), expected);
  save(lora, folder.file("native"));
  save(read_adapters(folder.file("native")).components, folder.file("again"), Format::peft);
  check_equal(adapter_of(folder.file("again")), expected);
}

TEST_CASE("PEFT adapts both projections of an attention: the missing one adds nothing", "[peft]") {
  torch::manual_seed(3);
  EveryLayer model;
  for (const char* target : {"attn.in_proj", "attn.out_proj"}) {
    auto copy = EveryLayer(std::make_shared<EveryLayerImpl>());
    const auto lora = patch<ClassicLoRA>(*copy, LoRAOptions(2), {target});
    randomise(lora);
    const ScratchFolder folder;
    save(lora, folder.file("peft"), Format::peft);
    const auto written = adapter_of(folder.file("peft"));
    CHECK(written.size() == 4);
    CHECK(written.at("base_model.model.attn.lora_B.weight").sizes() == at::IntArrayRef({18, 2}));
    CHECK(written.at("base_model.model.attn.base_layer.out_proj.lora_B.weight").sizes() ==
          at::IntArrayRef({6, 2}));
  }
}

TEST_CASE("a layer that a format has no names for is refused", "[peft]") {
  struct Others : torch::nn::Module {
    Others() {
      register_module("bag", torch::nn::EmbeddingBag(5, 4));
      register_module("up", torch::nn::ConvTranspose1d(4, 4, 2));
      register_module("pair", torch::nn::Bilinear(4, 4, 4));
      register_module("rnn", torch::nn::LSTM(4, 4));
      register_module("groups", torch::nn::Conv1d(torch::nn::Conv1dOptions(4, 4, 3).groups(2)));
      register_module("keys", torch::nn::MultiheadAttention(
                                  torch::nn::MultiheadAttentionOptions(4, 2).kdim(6).vdim(6)));
      register_module("emb", torch::nn::Embedding(5, 4));
      register_module("attn", torch::nn::MultiheadAttention(4, 2));
    }
  };
  const ScratchFolder folder;
  const auto write = [&](const std::string& target, Format format) {
    Others model;
    const auto lora = patch<ClassicLoRA>(model, LoRAOptions(2), {target});
    save(lora, folder.file("native"));
    save(read_adapters(folder.file("native")).components, folder.file("out"), format);
  };
  for (const char* target :
       {"bag", "up", "pair", "rnn.weight_ih_l0", "groups", "keys.q_proj", "emb", "attn.in_proj"}) {
    INFO(target);
    const bool known = std::string(target) == "emb" || std::string(target) == "attn.in_proj";
    if (!known)
      CHECK_THROWS_WITH(write(target, Format::peft), ContainsSubstring("'" + std::string(target)));
    CHECK_THROWS_WITH(write(target, Format::diffusers), ContainsSubstring("no names for"));
  }
  Others model;
  const auto lora = patch<ClassicLoRA>(model, LoRAOptions(2).dora(true), {"emb"});
  CHECK_THROWS_WITH(save(lora, folder.file("dora"), Format::peft),
                    ContainsSubstring("DoRA cannot be combined with Embedding"));
}

TEST_CASE("PEFT adds nothing to an embedding's padding row, whatever was trained there", "[peft]") {
  const auto ids = torch::tensor({{2, 0, 4}, {0, 3, 1}});
  for (const std::string variant : {"classic", "light", "loha", "shira", "full"}) {
    INFO(variant);
    torch::manual_seed(4);
    torch::nn::Sequential model(
        torch::nn::Embedding(torch::nn::EmbeddingOptions(5, 4).padding_idx(-3)));
    const auto lora = patch(*model, variant, LoRAOptions(2), Targets{"0"});
    randomise(lora);
    const torch::NoGradGuard no_grad;
    const Tensor expected = lora(model, ids);
    const ScratchFolder folder;
    save(lora, folder.file("peft"), Format::peft);
    save(lora, folder.file("native"));
    save(read_adapters(folder.file("native")).components, folder.file("again"), Format::peft);
    lora->remove();
    // A file that does not say what row it is gets it from the model that it is put into.
    auto stranger = read_state(folder.file("native"));
    stranger[0].layer.padding_row = -1;
    const auto same = patch(*model, stranger);
    save(same, folder.file("model's"), Format::peft);
    same->remove();
    const Tensor base = model->forward(ids);
    for (const char* file : {"peft", "again", "model's"}) {
      INFO(file);
      const auto written = adapter_of(folder.file(file));
      const Tensor down = written.at("base_model.model.0.lora_embedding_A");
      const Tensor up = written.at("base_model.model.0.lora_embedding_B");
      // PEFT's own sum, of alpha = rank.
      const Tensor added = torch::embedding(down.t(), ids).matmul(up.t());
      CHECK(added.abs().max().item<double>() > 1e-3);
      CHECK(close(base + added, expected, 1e-5));
    }
  }
}

namespace {

/// One layer, and the option of it that keeps a variant from PEFT; empty if none does.
struct CallCase {
  std::string variant, refused;
  torch::nn::Sequential model;
};

std::vector<CallCase> calls() {
  using torch::nn::Conv1dOptions;
  using torch::nn::Conv2dOptions;
  const auto one = [](const Conv1dOptions& options) {
    return torch::nn::Sequential(torch::nn::Conv1d(options));
  };
  const auto two = [](const Conv2dOptions& options) {
    return torch::nn::Sequential(torch::nn::Conv2d(options));
  };
  const Conv2dOptions plain(6, 8, 3);
  std::vector<CallCase> all;
  for (const char* variant : {"classic", "full", "loha", "lokr", "adalora", "boft"}) {
    const std::string name = variant;
    const bool beside = name == "classic" || name == "full";  // they become LoRA
    const bool boft = name == "boft";
    const auto add = [&](bool refused, const char* option, const Conv2dOptions& options) {
      all.push_back({name, refused ? option : "", two(options)});
    };
    add(true, "padding_mode", Conv2dOptions(plain).padding(1).padding_mode(torch::kCircular));
    add(true, "padding_mode", Conv2dOptions(plain).padding({0, 1}).padding_mode(torch::kReflect));
    add(false, "", Conv2dOptions(plain).padding_mode(torch::kCircular));
    add(beside || boft, "dilation", Conv2dOptions(plain).dilation(2).padding(torch::kSame));
    add(beside || boft, "dilation", Conv2dOptions(plain).dilation({1, 2}));
    add(false, "", Conv2dOptions(6, 8, 1).dilation(2));
    add(boft, "stride", Conv2dOptions(plain).stride({1, 2}));
    add(boft, "padding", Conv2dOptions(plain).padding({1, 0}));
    add(boft, "padding", Conv2dOptions(plain).padding(torch::kSame));
    add(false, "", Conv2dOptions(plain).stride(2).padding(1));
  }
  for (const char* variant : {"classic", "loha"}) {
    all.push_back(
        {variant, "padding_mode",
         one(Conv1dOptions(6, 8, 3).padding(torch::kSame).padding_mode(torch::kReplicate))});
  }
  all.push_back({"classic", "dilation", one(Conv1dOptions(6, 8, 3).dilation(2))});
  all.push_back({"classic", "dilation",
                 torch::nn::Sequential(
                     torch::nn::Conv3d(torch::nn::Conv3dOptions(2, 3, {1, 3, 1}).dilation(2)))});
  all.push_back(
      {"classic", "max_norm",
       torch::nn::Sequential(torch::nn::Embedding(torch::nn::EmbeddingOptions(9, 4).max_norm(1)))});
  return all;
}

}  // namespace

TEST_CASE("a layer whose call PEFT does not repeat is refused for PEFT, and for nobody else",
          "[peft]") {
  for (auto& [variant, refused, model] : calls()) {
    CAPTURE(variant, refused);
    LoRAOptions options(2);
    if (variant == "boft") {
      options.own({{"input_side", "1"}, {"factors", "1"}, {"rescaled", "1"}});
    }
    const auto lora = patch(*model, variant, options, Targets{"0"});
    randomise(lora);
    const ScratchFolder folder;
    save(lora, folder.file("native"));
    auto state = read_state(folder.file("native"));
    for (const bool from_file : {false, true}) {
      const auto write = [&, from_file = from_file, &state = state, &lora = lora] {
        if (from_file) return save({{"", state}}, folder.file("peft"), Format::peft);
        save(lora, folder.file("peft"), Format::peft);
      };
      if (refused.empty()) {
        CHECK_NOTHROW(write());
      } else {
        CHECK_THROWS_WITH(write(), ContainsSubstring("'0': expected a layer that PEFT's") &&
                                       ContainsSubstring("whose " + refused + " it does") &&
                                       ContainsSubstring("write the native format"));
        CHECK_FALSE(std::filesystem::exists(folder.file("peft")));
      }
    }
    lora->remove();
    // A file of another program says nothing of the layer, but the model does.
    const auto known = std::exchange(state[0].layer.uncommon, {});
    const auto again = patch(*model, state);
    CHECK(again->state()[0].layer.uncommon == known);
    again->remove();
  }
}

TEST_CASE("a layer whose path ends as another's keeps its own rank and alpha in PEFT's patterns",
          "[peft]") {
  struct Model : torch::nn::Module {};
  const auto model = std::make_shared<Model>();
  model->register_module("fc", torch::nn::Linear(12, 8));
  torch::nn::Sequential inner;
  inner->push_back("fc", torch::nn::Linear(12, 8));
  model->register_module("blk", inner);
  const ScratchFolder folder;
  for (const std::string variant : {"loha", "lokr"}) {
    INFO(variant);
    const auto lora = patch(*model, variant, LoRAOptions(3),
                            Targets{"fc"}.alpha("blk.fc", 8.0).rank("blk.fc", 2));
    randomise(lora);
    const std::string written = folder.file(variant);
    save(lora, written, Format::peft);
    const auto expected = lora->state(), found = read_state(written);
    REQUIRE(found.size() == 2);
    for (const auto& layer : expected) {
      INFO(layer.layer.name);
      const auto same = std::find_if(found.begin(), found.end(), [&](const LayerState& other) {
        return other.layer.name == layer.layer.name;
      });
      REQUIRE(same != found.end());
      const auto base = torch::zeros({8, 12});
      CHECK(close(make_adapter(*same)->delta(base), make_adapter(layer)->delta(base), 1e-6));
    }
    // What could be the end of another path is anchored.
    const auto text = read_file(written + "/adapter_config.json", 100'000);
    CHECK_THAT(text, ContainsSubstring("\"^fc\""));
    lora->remove();
  }
}
