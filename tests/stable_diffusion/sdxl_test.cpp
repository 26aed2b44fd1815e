// SPDX-License-Identifier: Apache-2.0
// The parts of SDXL against diffusers and transformers. tests/parity/make_sdxl.py made the numbers,
// those of modules in fp64 from weights rounded to fp16, those of the pipeline in fp32.
#include <lightlora/file_io.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "models/weights.h"
#include "paths.h"
#include "pipeline/embeddings.h"
#include "pipeline/pipeline.h"
#include "support.h"
#include "support/files/json_file.h"

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// fp32 rounding through a whole model, and there and back.
constexpr double kFloatTolerance = 1e-5, kGradientTolerance = 5e-5;

std::string data(const std::string& name) { return std::string(LIGHTLORA_TEST_DATA) + "/" + name; }

lightlora::TensorMap numbers_of(const std::string& folder) {
  return lightlora::SafetensorsFile(data(folder) + "/numbers.safetensors").load_all();
}

struct Unet {
  explicit Unet(const std::string& name) : numbers(numbers_of(name)) {
    const auto path = data(name) + "/config.json";
    model = sd::UNet2DConditionModel(
        sd::UNet2DConditionModelOptions::from_json(sd::read_json_file(path), path));
    sd::load_weights(*model, data(name) + "/diffusion_pytorch_model.safetensors");
    model->eval();
  }
  at::Tensor input(const std::string& key) const { return numbers.at(key).to(at::kFloat); }

  lightlora::TensorMap numbers;
  sd::UNet2DConditionModel model{nullptr};
};

// A copy of the small pipeline that a test can change.
struct Copy {
  Copy() { fs::copy(data("pipeline_xl"), scratch.path(), fs::copy_options::recursive); }
  void change(const std::string& file, const std::string& field, const json& value) const {
    auto values = sd::read_json_file(scratch.file(file));
    values[field] = value;
    std::ofstream(scratch.file(file)) << values.dump();
  }
  std::string error() const {
    try {
      sd::StableDiffusion loaded(scratch.path().string());
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "no error";
  }
  ScratchFolder scratch;
};

// As tests/parity/make_sdxl.py has it.
at::Tensor scattered(int64_t number, at::IntArrayRef shape) {
  constexpr int64_t kMask = 0xFFFFFFFF;
  auto x = (at::arange(c10::multiply_integers(shape), at::kLong) * 2654435761 + number * 40503)
               .bitwise_and(kMask);
  x = x.bitwise_xor(x.bitwise_right_shift(15));
  x = (x * 2246822519).bitwise_and(kMask);
  x = x.bitwise_xor(x.bitwise_right_shift(13));
  return (x.bitwise_and(0xFFFF).to(at::kDouble) / 65536 - 0.5).view(shape);
}

// The warnings of this thread while it lives.
class Warnings : public c10::WarningHandler {
 public:
  Warnings() : before_(c10::WarningUtils::get_warning_handler()) {
    c10::WarningUtils::set_warning_handler(this);
  }
  Warnings(const Warnings&) = delete;
  Warnings& operator=(const Warnings&) = delete;
  ~Warnings() override { c10::WarningUtils::set_warning_handler(before_); }
  void process(const c10::Warning& warning) override { text_ += warning.msg() + "\n"; }
  const std::string& text() const { return text_; }

 private:
  c10::WarningHandler* before_;
  std::string text_;
};

sd::StableDiffusion& pipeline() {
  static sd::StableDiffusion loaded(data("pipeline_xl"));
  return loaded;
}

sd::SampleOptions quick() {
  return sd::SampleOptions().prompt("a cat").num_inference_steps(2).decode(false);
}

}  // namespace

TEST_CASE("sdxl: a UNet that is told texts and sizes equals diffusers', with its gradients",
          "[sdxl][parity]") {
  for (const auto* name : {"unet_xl", "unet_xl_lists"}) {
    CAPTURE(name);
    Unet f(name);
    const auto sample = f.input("sample").requires_grad_();
    const auto context = f.input("context").requires_grad_();
    const auto pooled = f.input("text_embeds").requires_grad_();
    const auto output =
        f.model(sample, f.numbers.at("timesteps"), context,
                sd::AddedConditions{pooled, f.numbers.at("time_ids").to(at::kFloat)});
    CHECK(close(output, f.numbers.at("output"), kFloatTolerance));
    (output * f.input("weighting")).sum().backward();
    CHECK(close(sample.grad(), f.numbers.at("grad.sample"), kGradientTolerance));
    CHECK(close(context.grad(), f.numbers.at("grad.context"), kGradientTolerance));
    CHECK(close(pooled.grad(), f.numbers.at("grad.text_embeds"), kGradientTolerance));
  }
}

TEST_CASE("sdxl: the inner modules of its UNet equal diffusers'", "[sdxl][parity]") {
  const at::NoGradGuard no_grad;
  Unet f("unet_xl");
  const auto added = f.model->named_modules()["add_embedding"]->as<sd::TimestepEmbedding>();
  CHECK(close(added->forward(f.input("add_embedding.input.0")),
              f.numbers.at("add_embedding.output"), kFloatTolerance));
  for (const std::string name : {"down_blocks.2.attentions.1", "mid_block.attentions.0"}) {
    const auto module = f.model->named_modules()[name]->as<sd::Transformer2DModel>();
    CHECK(close(module->forward(f.input(name + ".input.0"), f.input(name + ".input.1")),
                f.numbers.at(name + ".output"), kFloatTolerance));
  }
}

TEST_CASE("sdxl: a transformer block of full width equals diffusers', with its gradient",
          "[sdxl][parity]") {
  sd::BasicTransformerBlock block{nullptr};
  {
    const sd::UninitializedModules uninitialized(at::kFloat);
    block = sd::BasicTransformerBlock(sd::Transformer2DModelOptions(1280, 20, 2048));
  }
  {
    const at::NoGradGuard no_grad;
    std::map<std::string, at::Tensor> parameters;
    for (const auto& item : block->named_parameters()) parameters[item.key()] = item.value();
    int64_t number = 0;
    for (auto& [name, parameter] : parameters) {
      auto value = scattered(number++, parameter.sizes());
      if (value.dim() > 1) {
        value = value * std::sqrt(12.0 / static_cast<double>(value.size(1)));
      } else {
        const bool scales = name.rfind("norm", 0) == 0 && name.find("weight") != name.npos;
        value = value * 0.2 + (scales ? 1.0 : 0.0);
      }
      parameter.copy_(value);
    }
  }
  const auto x = scattered(100, {1, 16, 1280}).to(at::kFloat).requires_grad_();
  const auto output = block(x, scattered(101, {1, 7, 2048}).to(at::kFloat));
  output.square().sum().backward();
  const auto part = [](const at::Tensor& t) {
    return t.detach()[0].slice(0, 0, c10::nullopt, 3).slice(1, 0, c10::nullopt, 7);
  };
  const auto numbers = numbers_of("block_xl");
  CHECK(close(part(output), numbers.at("output"), kFloatTolerance));
  CHECK(close(part(x.grad()), numbers.at("grad.x"), kGradientTolerance));
}

TEST_CASE("sdxl: an autoencoder that overflows in fp16 decodes in fp32, with a notice", "[sdxl]") {
  const Copy copy;
  // Large values before the last normalisation, which makes them ordinary again.
  const auto path = copy.scratch.file("vae/diffusion_pytorch_model.safetensors");
  auto weights = lightlora::SafetensorsFile(path).load_all();
  auto& large = weights.at("decoder.up_blocks.1.resnets.1.conv2.weight");
  large = (large.to(at::kFloat) * (3e4 / large.to(at::kFloat).abs().max())).to(at::kHalf);
  lightlora::save_safetensors(path, weights);
  const auto options = sd::StableDiffusionOptions().load_unet(false).load_text_encoder(false);
  const auto latents = torch::randn({1, 4, 8, 8});
  sd::StableDiffusion wide(copy.scratch.path().string(), options);
  const auto expected = wide.decode(latents);
  REQUIRE(expected.isfinite().all().item<bool>());
  auto half = options;
  half.dtype(at::kHalf);
  // Its configuration says force_upcast: fp32 from the start.
  sd::StableDiffusion upcast(copy.scratch.path().string(), half);
  CHECK(upcast.vae()->parameters().front().scalar_type() == at::kFloat);
  CHECK(at::equal(upcast.decode(latents), expected));
  sd::StableDiffusion narrow(copy.scratch.path().string(), half.vae_dtype(at::kHalf));
  CHECK(narrow.vae()->parameters().front().scalar_type() == at::kHalf);
  const Warnings warnings;
  const auto pictures = narrow.decode(latents);
  CHECK(at::equal(pictures, expected));
  CHECK_THAT(warnings.text(), ContainsSubstring("the autoencoder overflows in fp16"));
  CHECK(narrow.vae()->parameters().front().scalar_type() == at::kFloat);
}

TEST_CASE("sdxl: a UNet refuses conditions that it does not know, and to be without those it needs",
          "[sdxl]") {
  Unet f("unet_xl");
  const auto call = [&](const sd::AddedConditions& added) {
    f.model(f.input("sample"), f.numbers.at("timesteps"), f.input("context"), added);
  };
  CHECK_THROWS_WITH(call({}), ContainsSubstring("expected added conditions (text_embeds and "));
  CHECK_THROWS_WITH(call({f.input("text_embeds"), at::zeros({2, 5})}),
                    ContainsSubstring("that make 68 columns (8 for each number), got [2, 20]"));
}

TEST_CASE("sdxl: full-size configurations have diffusers' numbers of parameters", "[sdxl]") {
  const sd::UninitializedModules reserved_only(at::kHalf);
  const auto count = [](const torch::nn::Module& module) {
    int64_t sum = 0;
    for (const auto& parameter : module.parameters()) sum += parameter.numel();
    return sum;
  };
  const json unet{
      {"block_out_channels", {320, 640, 1280}},
      {"down_block_types", {"DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"}},
      {"up_block_types", {"CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}},
      {"transformer_layers_per_block", {1, 2, 10}},
      {"attention_head_dim", {5, 10, 20}},
      {"cross_attention_dim", 2048},
      {"use_linear_projection", true},
      {"addition_embed_type", "text_time"},
      {"addition_time_embed_dim", 256},
      {"projection_class_embeddings_input_dim", 2816},
      {"sample_size", 128}};
  sd::UNet2DConditionModel model(sd::UNet2DConditionModelOptions::from_json(unet));
  CHECK(count(*model) == 2567463684);
  CHECK(model->attention_names().size() == 11);
  sd::CLIPTextModel encoder(sd::CLIPTextModelOptions()
                                .hidden_size(1280)
                                .intermediate_size(5120)
                                .num_hidden_layers(32)
                                .num_attention_heads(20)
                                .projection_dim(1280));
  CHECK(count(*encoder) == 694659840);
}

TEST_CASE("sdxl: the second text encoder's states and pooled output equal transformers'",
          "[sdxl][parity]") {
  const at::NoGradGuard no_grad;
  const auto path = data("clip_xl") + "/config.json";
  auto options = sd::CLIPTextModelOptions::from_json(sd::read_json_file(path), path);
  sd::CLIPTextModel model(options.projection_dim(20));
  sd::load_weights(*model, data("clip_xl") + "/model.safetensors",
                   sd::CLIPTextModelImpl::parameter_name);
  auto numbers = numbers_of("clip_xl");
  for (int64_t skip = 0; skip < 4; ++skip) {
    const auto result = model->penultimate(numbers["ids"], skip);
    CHECK(close(result.states, numbers["penultimate_" + std::to_string(skip)], kFloatTolerance));
    CHECK(close(result.pooled, numbers["text_embeds"], kFloatTolerance));
  }
  CHECK_THROWS_WITH(model->penultimate(numbers["ids"], 4),
                    ContainsSubstring("--clip_skip: expected a number from 0 to 3, got 4"));
}

TEST_CASE("sdxl: both encoders' states stand side by side as in diffusers, each behind its padding",
          "[sdxl][parity]") {
  const at::NoGradGuard no_grad;
  auto numbers = numbers_of("pipeline_xl");
  const auto embeds = pipeline().encode_prompt({"a cat", "a red apple!"});
  CHECK(close(embeds.states, numbers["embeds"], kFloatTolerance));
  CHECK(close(embeds.pooled, numbers["pooled"], kFloatTolerance));
  CHECK(pipeline().tokenizer(1).pad_id() == 0);
  CHECK(pipeline().tokenizer(0).pad_id() == pipeline().tokenizer(0).eos_id());
}

TEST_CASE("sdxl: the folder says what the model is", "[sdxl]") {
  CHECK(pipeline().is_sdxl());
  CHECK(pipeline().text_encoders() == 2);
  CHECK(pipeline().default_scheduler() == "euler");
  const sd::StableDiffusion other(data("pipeline"));
  CHECK_FALSE(other.is_sdxl());
  CHECK(other.default_scheduler() == "ddim");
}

TEST_CASE("sdxl: half-precision names and sharded files are found", "[sdxl]") {
  const Copy copy;
  const auto expected = pipeline().sample(quick()).latents;
  for (const std::string part : {"unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model",
                                 "text_encoder/model", "text_encoder_2/model"}) {
    fs::rename(copy.scratch.file(part + ".safetensors"),
               copy.scratch.file(part + ".fp16.safetensors"));
  }
  // The larger encoder in two files, as transformers names them with a variant.
  const auto path = copy.scratch.file("text_encoder_2/model.fp16.safetensors");
  lightlora::TensorMap first, second;
  json weights;
  for (const auto& [name, value] : lightlora::SafetensorsFile(path).load_all()) {
    const bool begins = first.size() < 9;
    (begins ? first : second)[name] = value;
    weights[name] =
        begins ? "model.fp16-00001-of-00002.safetensors" : "model.fp16-00002-of-00002.safetensors";
  }
  fs::remove(path);
  lightlora::save_safetensors(
      copy.scratch.file("text_encoder_2/model.fp16-00001-of-00002.safetensors"), first);
  lightlora::save_safetensors(
      copy.scratch.file("text_encoder_2/model.fp16-00002-of-00002.safetensors"), second);
  std::ofstream(copy.scratch.file("text_encoder_2/model.safetensors.index.fp16.json"))
      << json{{"weight_map", weights}}.dump();
  sd::StableDiffusion model(copy.scratch.path().string());
  CHECK(at::equal(model.sample(quick()).latents, expected));
}

TEST_CASE("sdxl: models of other kinds are refused by name with a reason", "[sdxl]") {
  const Copy copy;
  REQUIRE(copy.error() == "no error");
  SECTION("a refiner") {
    copy.change("model_index.json", "requires_aesthetics_score", true);
    CHECK_THAT(copy.error(), ContainsSubstring("got an SDXL refiner"));
  }
  SECTION("a refiner that does not say so") {
    copy.change("model_index.json", "text_encoder", {nullptr, nullptr});
    CHECK_THAT(copy.error(), ContainsSubstring("got an SDXL refiner"));
  }
  SECTION("five numbers") {
    copy.change("unet/config.json", "projection_class_embeddings_input_dim", 60);
    CHECK_THAT(copy.error(), ContainsSubstring("got 60; hint: a refiner"));
  }
  SECTION("another preconditioning") {
    copy.change("scheduler/scheduler_config.json", "_class_name", "EDMDPMSolverMultistepScheduler");
    CHECK_THAT(copy.error(), ContainsSubstring("scaled in another way (EDM)"));
  }
  SECTION("straight paths") {
    copy.change("scheduler/scheduler_config.json", "_class_name",
                "FlowMatchEulerDiscreteScheduler");
    CHECK_THAT(copy.error(), ContainsSubstring("flow matching"));
  }
  SECTION("straight paths with another solver") {
    copy.change("scheduler/scheduler_config.json", "use_flow_sigmas", true);
    CHECK_THAT(copy.error(), ContainsSubstring("flow matching"));
  }
  SECTION("a second encoder without a projection") {
    copy.change("model_index.json", "text_encoder_2", {"transformers", "CLIPTextModel"});
    CHECK_THAT(copy.error(), ContainsSubstring("to be CLIPTextModelWithProjection, got"));
  }
  SECTION("a UNet of another model") {
    copy.change("unet/config.json", "cross_attention_dim", 24);
    CHECK_THAT(copy.error(), ContainsSubstring("got 40 of both together; hint:"));
  }
}

TEST_CASE("sdxl: no negative prompt means zeros only if the index says so", "[sdxl]") {
  const Copy copy;
  copy.change("model_index.json", "force_zeros_for_empty_prompt", false);
  sd::StableDiffusion model(copy.scratch.path().string());
  const auto empty = pipeline().sample(quick().negative_prompt("")).latents;
  CHECK(at::equal(model.sample(quick()).latents, empty));
  CHECK_FALSE(at::allclose(pipeline().sample(quick()).latents, empty));
}

TEST_CASE("sdxl: sizes are for SDXL alone", "[sdxl]") {
  sd::StableDiffusion other(data("pipeline"));
  sd::SizeConditions size;
  size.original_size = {8, 8};
  CHECK_THROWS_WITH(other.sample(quick().size(size)),
                    ContainsSubstring("only SDXL is told about sizes"));
  size.original_size = {8};
  CHECK_THROWS_WITH(pipeline().sample(quick().size(size)),
                    ContainsSubstring("--original_size: expected two numbers, got 1"));
}

TEST_CASE("sdxl: a learned word has vectors for both encoders", "[sdxl]") {
  sd::StableDiffusion model(data("pipeline_xl"));
  const at::NoGradGuard no_grad;
  lightlora::LearnedEmbedding word{"<toy>", at::randn({2, 24})};
  CHECK_THROWS_WITH(sd::add_embedding(model, word),
                    ContainsSubstring("expected vectors for both text encoders, got vectors for"));
  word.vectors_2 = at::randn({2, 16});
  const ScratchFolder scratch;
  lightlora::save_embedding(scratch.file("word.safetensors"), word);
  const auto read = lightlora::load_embeddings(scratch.file("word.safetensors"));
  REQUIRE(read.size() == 1);
  CHECK(read[0].token == "<toy>");
  CHECK(at::equal(read[0].vectors_2, word.vectors_2));
  const auto before = model.encode_prompt({"a toy"});
  sd::add_embedding(model, read[0]);
  const auto embeds = model.encode_prompt({"a <toy>"});
  CHECK_FALSE(at::allclose(embeds.states.narrow(-1, 0, 24), before.states.narrow(-1, 0, 24)));
  CHECK_FALSE(at::allclose(embeds.states.narrow(-1, 24, 16), before.states.narrow(-1, 24, 16)));
  CHECK_FALSE(at::allclose(embeds.pooled, before.pooled));
  sd::StableDiffusion small(data("pipeline"));
  CHECK_THROWS_WITH(sd::add_embedding(small, word), ContainsSubstring("got vectors for two"));
}
