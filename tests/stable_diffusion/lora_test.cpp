// SPDX-License-Identifier: Apache-2.0
// LoRA files and learned words in a pipeline: what precision keeps of them, and where chunks end.
#include "pipeline/lora.h"

#include <ATen/record_function.h>
#include <lightlora/files.h>
#include <torch/nn/modules/linear.h>

#include <cstdlib>
#include <fstream>
#include <memory>

#include "paths.h"
#include "support.h"

namespace {

std::string folder() { return std::string(LIGHTLORA_TEST_DATA) + "/pipeline"; }

const char* const kLayer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";

torch::nn::LinearImpl& layer_of(sd::StableDiffusion& pipeline) {
  auto unet = pipeline.unet();
  for (const auto& item : unet->named_modules()) {
    if (item.key() == kLayer) return *item.value()->as<torch::nn::Linear>();
  }
  FAIL("no such layer");
  std::abort();
}

// Writes a LoRA of the layer and returns its delta, 1/300 of the weight's size.
at::Tensor write_small_lora(const std::string& path, const at::Tensor& weight) {
  torch::manual_seed(5);
  const at::Tensor full = weight.to(at::kFloat);
  at::Tensor down = torch::randn({4, full.size(1)}), up = torch::randn({full.size(0), 4});
  up *= full.norm() / up.mm(down).norm() / 300;
  const lightlora::LayerState state{"classic",
                                    {kLayer, full.size(1), full.size(0), {}},
                                    lightlora::LoRAOptions(4),
                                    1,
                                    {{"down", down}, {"up", up}},
                                    {}};
  lightlora::save({{"unet", {state}}}, path);
  return up.mm(down);
}

// Operators that get a text of this many values as an input, while it lives.
class ReadersOfText {
 public:
  explicit ReadersOfText(int64_t values) {
    wanted = values;
    count = 0;
    handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(observe).needsInputs(true));
  }
  ~ReadersOfText() { at::removeCallback(handle_); }
  ReadersOfText(const ReadersOfText&) = delete;
  ReadersOfText& operator=(const ReadersOfText&) = delete;

  int64_t number() const { return count; }

 private:
  static std::unique_ptr<at::ObserverContext> observe(const at::RecordFunction& function) {
    // Keys and values may be of the text's size themselves; only projections read the text.
    if (std::string(function.name()) != "aten::linear") return nullptr;
    for (const auto& input : function.inputs()) {
      if (input.isTensor() && input.toTensor().defined() && input.toTensor().numel() == wanted) {
        ++count;
      }
    }
    return nullptr;
  }

  inline static thread_local int64_t wanted = 0, count = 0;
  at::CallbackHandle handle_ = 0;
};

}  // namespace

TEST_CASE("keys and values of a text are computed once for all steps, beside a LoRA too",
          "[lora]") {
  const torch::NoGradGuard no_grad;
  const ScratchFolder scratch;
  const auto path = scratch.file("lora.safetensors");
  sd::StableDiffusion pipeline(folder(),
                               sd::StableDiffusionOptions().dtype(at::kBFloat16).load_vae(false));
  const std::string name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k";
  const at::Tensor weight = pipeline.unet()->named_parameters()[name + ".weight"];
  const int64_t in = weight.size(1), out = weight.size(0);
  torch::manual_seed(3);
  const lightlora::LayerState state{
      "classic",
      {name, in, out, {}},
      lightlora::LoRAOptions(4),
      1,
      {{"down", torch::randn({4, in})}, {"up", torch::randn({out, 4})}},
      {}};
  lightlora::save({{"unet", {state}}}, path);
  const int64_t text = pipeline.encode_prompt({"a"}).states.numel();
  const auto draw = [&](int64_t steps) {
    const auto options =
        sd::SampleOptions().prompt("a").guidance_scale(1).num_inference_steps(steps).decode(false);
    return pipeline.sample(options).latents;
  };
  const auto readers = [&](int64_t steps) {
    const ReadersOfText here(text);
    draw(steps);
    return here.number();
  };
  const auto alone = readers(2);
  CHECK(alone > 0);
  CHECK(readers(5) == alone);
  const at::Tensor plain = draw(3);
  sd::AppliedLoRAs loras(pipeline, {{path}});
  const auto beside = readers(2);
  CHECK(beside >= alone);
  CHECK(readers(5) == beside);
  // Other weights are seen, and the first ones again.
  const at::Tensor once = draw(3);
  CHECK_FALSE(at::equal(once, plain));
  loras.set_weight(2);
  CHECK_FALSE(at::equal(draw(3), once));
  loras.set_weight(1);
  CHECK(at::equal(draw(3), once));
}

TEST_CASE("half-precision weights keep what they are, and a LoRA keeps its precision beside them",
          "[lora]") {
  const torch::NoGradGuard no_grad;
  const ScratchFolder scratch;
  const auto path = scratch.file("lora.safetensors");
  sd::StableDiffusion pipeline(folder(),
                               sd::StableDiffusionOptions().dtype(at::kBFloat16).load_vae(false));
  auto& layer = layer_of(pipeline);
  const at::Tensor before = layer.weight.clone();
  const at::Tensor delta = write_small_lora(path, before);
  const at::Tensor x = torch::randn({30000, before.size(1)}).to(at::kBFloat16);
  const at::Tensor plain = layer.forward(x).to(at::kFloat);
  at::Tensor adapted, doubled;
  {
    sd::AppliedLoRAs loras(pipeline, {{path}});
    CHECK(at::equal(layer.weight, before));
    adapted = layer.forward(x).to(at::kFloat);
    loras.set_weight(2);
    doubled = layer.forward(x).to(at::kFloat);
    loras.while_merged([&] { CHECK_FALSE(at::equal(layer.weight, before)); });
    CHECK(at::equal(layer.weight, before));
  }
  CHECK(at::equal(layer.forward(x).to(at::kFloat), plain));
  // What is added is exact to the outputs' own rounding, as in PEFT: merged into the weights first it
  // would be wrong by 2.9e-3.
  const auto beside = [&](double share) {
    return (plain + share * at::linear(x.to(at::kFloat), delta)).to(at::kBFloat16).to(at::kFloat);
  };
  CHECK(close(adapted, beside(1), 3e-4));
  CHECK(close(doubled, beside(2), 3e-4));
}

TEST_CASE("fp32 weights take a LoRA in, and give it back", "[lora]") {
  const torch::NoGradGuard no_grad;
  const ScratchFolder scratch;
  const auto path = scratch.file("lora.safetensors");
  sd::StableDiffusion pipeline(folder(), sd::StableDiffusionOptions().load_vae(false));
  auto& layer = layer_of(pipeline);
  const at::Tensor before = layer.weight.clone();
  const at::Tensor delta = write_small_lora(path, before);
  sd::AppliedLoRAs loras(pipeline, {{path, 0.5}}, std::nullopt, /*changes=*/true);
  CHECK(close(layer.weight - before, 0.5 * delta, 1e-4));  // a difference of fp32 weights
  const at::Tensor merged = layer.weight.clone();
  loras.set_weight(0);
  CHECK(at::equal(layer.weight, before));
  loras.set_weight(0.5);
  CHECK(at::equal(layer.weight, merged));
}

TEST_CASE("fp32 weights become what a LoRA makes of them where nothing changes it later",
          "[lora]") {
  const torch::NoGradGuard no_grad;
  const ScratchFolder scratch;
  const auto path = scratch.file("lora.safetensors");
  sd::StableDiffusion pipeline(folder(), sd::StableDiffusionOptions().load_vae(false));
  auto& layer = layer_of(pipeline);
  const at::Tensor before = layer.weight.clone();
  const at::Tensor delta = write_small_lora(path, before);
  sd::AppliedLoRAs loras(pipeline, {{path, 0.5}});
  CHECK(close(layer.weight - before, 0.5 * delta, 1e-4));
  loras.while_merged([&] { CHECK(close(layer.weight - before, 0.5 * delta, 1e-4)); });
  CHECK_THROWS_WITH(loras.set_weight(0), ContainsSubstring("a part of the model"));
}

TEST_CASE("a LoRA for another family says so before it says what does not fit", "[lora][sdxl]") {
  const ScratchFolder scratch;
  const auto written = [&](const std::string& component, const std::string& name, int64_t width) {
    const lightlora::LayerState state{
        "classic",
        {name, width, 16, {}},
        lightlora::LoRAOptions(2),
        1,
        {{"down", torch::randn({2, width})}, {"up", torch::randn({16, 2})}},
        {}};
    const auto path = scratch.file("lora.safetensors");
    lightlora::save({{component, {state}}}, path, lightlora::Format::kohya);
    return path;
  };
  const auto options = sd::StableDiffusionOptions().load_vae(false);
  sd::StableDiffusion small(folder(), options), xl(folder() + "_xl", options);
  const auto error = [](sd::StableDiffusion& model, const std::string& path) -> std::string {
    try {
      sd::AppliedLoRAs loras(model, {{path}});
    } catch (const c10::Error& failure) {
      return failure.what_without_backtrace();
    }
    return "no error";
  };
  const std::string cross = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k";
  const auto check = [](const std::string& text, const std::string& model,
                        const std::string& file) {
    CHECK_THAT(text, ContainsSubstring("expected a LoRA for " + model + ", which"));
    CHECK_THAT(text, ContainsSubstring("got one for " + file +
                                       "; hint: a LoRA draws with models of the family"));
  };
  check(error(xl, written("unet", cross, 768)), "SDXL", "Stable Diffusion 1.x");
  check(error(xl, written("unet", cross, 1024)), "SDXL", "Stable Diffusion 2.x");
  check(error(small, written("unet", cross, 2048)), "a smaller model", "SDXL");
  // By its second encoder alone, whose layers have the names of the first one's.
  const std::string text = "text_model.encoder.layers.0.self_attn.q_proj";
  check(error(small, written("text_encoder_2", text, 24)), "a smaller model", "SDXL");
}

TEST_CASE("a file whose name ends like a weight is a file", "[lora]") {
  const ScratchFolder scratch;
  const std::string odd = scratch.file("style:0.5");
  CHECK(sd::parse_lora(odd).weight == 0.5);
  std::ofstream(odd) << "x";
  CHECK(sd::parse_lora(odd).path == odd);
  CHECK(sd::parse_lora(odd).weight == 1);
  CHECK(sd::parse_lora(odd + ":0.25").path == odd);
}

TEST_CASE("a word of several vectors is not cut at a chunk's end", "[prompt]") {
  sd::StableDiffusion pipeline(folder(),
                               sd::StableDiffusionOptions().load_vae(false).load_unet(false));
  auto& tokenizer = pipeline.tokenizer();
  const auto ids = tokenizer.add_token("<toy>", 4);
  const auto room = static_cast<size_t>(tokenizer.model_max_length() - 2);
  const auto word = tokenizer.tokenize("a").at(0);
  std::string text;
  for (size_t i = 0; i + 2 < room; ++i) text += "a ";  // two tokens are left
  const auto chunks = sd::prompt_chunks(tokenizer, text + "<toy> a", sd::PromptSyntax::plain);
  REQUIRE(chunks.size() == 2);
  CHECK(chunks[0].ids[room - 2] == word);
  CHECK(chunks[0].ids[room - 1] != ids[0]);
  CHECK(std::vector<int64_t>(chunks[1].ids.begin() + 1, chunks[1].ids.begin() + 5) == ids);
  CHECK(chunks[1].ids[5] == word);
}

TEST_CASE("long captions are read in chunks whose ends are taken off, as sd-scripts trains on them",
          "[prompt]") {
  const torch::NoGradGuard no_grad;
  sd::StableDiffusion pipeline(folder(),
                               sd::StableDiffusionOptions().load_vae(false).load_unet(false));
  const auto& tokenizer = pipeline.tokenizer();
  const int64_t length = tokenizer.model_max_length();
  std::string text;
  for (int64_t i = 0; i < length + 3; ++i) text += i % 2 == 0 ? "a " : "cat ";
  const auto states = pipeline.encode_prompt({text, "a cat"}, /*clip_skip=*/0, /*chunks=*/2).states;
  REQUIRE(states.size(0) == 2);
  REQUIRE(states.size(1) == 2 * (length - 2) + 2);
  const auto chunks = tokenizer.encode_chunks(text);
  const std::vector<sd::PromptChunk> own{{chunks[0], std::vector<double>(chunks[0].size(), 1)},
                                         {chunks[1], std::vector<double>(chunks[1].size(), 1)}};
  const auto each = pipeline.encode_chunks({own}).states;
  const auto whole = each.view({2, length, -1});
  CHECK(close(states[0].slice(0, 0, length - 1), whole[0].slice(0, 0, length - 1), 1e-5));
  CHECK(close(states[0].slice(0, length - 1), whole[1].slice(0, 1), 1e-5));
  CHECK(at::equal(pipeline.token_ids({text})[0][0], torch::tensor(tokenizer.encode(text))));
}
