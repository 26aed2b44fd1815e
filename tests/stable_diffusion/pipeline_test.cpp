// SPDX-License-Identifier: Apache-2.0
// The whole pipeline against diffusers' StableDiffusionPipeline on small random models.
// tests/parity/make_pipeline.py made the folder and the numbers, in fp32.
#include "pipeline/pipeline.h"

#include <ATen/CPUGeneratorImpl.h>
#include <lightlora/file_io.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "paths.h"
#include "support.h"
#include "support/files/json_file.h"

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// One pass through one model in fp32; seen: 3.8e-7 at most.
constexpr double kModuleTolerance = 1e-5;
// Several guided steps, each through the whole model; seen: 1.4e-6 at most.
constexpr double kRunTolerance = 1e-4;

std::string folder() { return std::string(LIGHTLORA_TEST_DATA) + "/pipeline"; }

const at::Tensor& number(const std::string& key) {
  static const auto numbers =
      lightlora::SafetensorsFile(folder() + "/numbers.safetensors").load_all();
  return numbers.at(key);
}

sd::StableDiffusion& pipeline() {
  static sd::StableDiffusion loaded(folder());
  return loaded;
}

void check(const std::string& key, sd::StableDiffusion& model, const sd::SampleOptions& options) {
  INFO(key);
  const auto result = model.sample(options);
  REQUIRE(close(result.latents, number(key + ".latents"), kRunTolerance));
  REQUIRE(close(result.pictures, number(key + ".pictures"), kRunTolerance));
}

void write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

// A copy of the folder that a test can spoil.
struct Copy {
  Copy() { fs::copy(folder(), scratch.path(), fs::copy_options::recursive); }

  void change(const std::string& file, const std::string& field, const json& value) const {
    auto values = sd::read_json_file(scratch.file(file));
    values[field] = value;
    write(scratch.file(file), values.dump());
  }
  std::string error() const {
    try {
      sd::StableDiffusion loaded(scratch.path().string());
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "no error";
  }
  // The folder is refused in one line that says this.
  void expect(const std::string& text) const {
    const std::string found = error();
    REQUIRE_THAT(found, ContainsSubstring(text));
    REQUIRE(found.find('\n') == std::string::npos);
  }

  ScratchFolder scratch;
};

sd::SampleOptions quick() {
  return sd::SampleOptions().prompt("a cat").num_inference_steps(2).decode(false);
}

}  // namespace

TEST_CASE("pipeline: guided DDIM runs equal diffusers'", "[pipeline][parity]") {
  using Options = sd::SampleOptions;
  check("plain", pipeline(),
        Options().prompt("a red apple on a blue background").num_inference_steps(6).seed(1));
  check("negative", pipeline(),
        Options()
            .prompt("a Cat, ÉCLAIR 🍎")
            .negative_prompt("blurry")
            .num_inference_steps(5)
            .guidance_scale(4.0)
            .num_images_per_prompt(3)
            .height(24)
            .width(16)
            .seed((uint64_t{1} << 40) + 5));
  check("unguided", pipeline(),
        Options().prompt("a dog").num_inference_steps(4).guidance_scale(1.0).seed(3));
  check("given", pipeline(),
        Options().prompt("a dog").num_inference_steps(4).initial_latents(number("given.initial")));
  check("clip_skip", pipeline(),
        Options().prompt("a cat").num_inference_steps(3).seed(6).clip_skip(1));
}

TEST_CASE("pipeline: the scheduler's file and name count", "[pipeline][parity]") {
  const Copy copy;
  const auto configs =
      sd::read_json_file(std::string(LIGHTLORA_TEST_DATA) + "/schedulers.json")["configs"];
  const auto options = sd::SampleOptions().prompt("a cat");
  const auto use = [&](const std::string& key) {
    write(copy.scratch.file("scheduler/scheduler_config.json"), configs[key].dump());
    return sd::StableDiffusion(copy.scratch.path().string());
  };
  auto zero_snr = use("zero_snr");
  check("eta", zero_snr, sd::SampleOptions(options).num_inference_steps(4).seed(4).eta(0.5));
  auto euler = use("euler_file");
  check("euler", euler,
        sd::SampleOptions(options).num_inference_steps(5).seed(5).scheduler("euler"));
}

TEST_CASE("pipeline: prompts, pictures and latents are encoded as diffusers does",
          "[pipeline][parity]") {
  const at::NoGradGuard no_grad;
  REQUIRE(
      close(pipeline().encode_prompt({"a cat", ""}).states, number("embeds"), kModuleTolerance));
  const auto generator = at::detail::createCPUGenerator(8);
  const auto latents = pipeline().encode_image(number("encode.pixels"), generator);
  REQUIRE(close(latents, number("encode.latents"), kModuleTolerance));
  REQUIRE(close(pipeline().decode(number("encode.latents")), number("decode.pictures"),
                kModuleTolerance));
}

TEST_CASE("pipeline: a seed gives the same picture twice and another seed another one",
          "[pipeline]") {
  const auto first = pipeline().sample(quick().seed(1)).latents;
  REQUIRE(at::equal(pipeline().sample(quick().seed(1)).latents, first));
  REQUIRE_FALSE(at::allclose(pipeline().sample(quick().seed(2)).latents, first));
}

TEST_CASE("pipeline: progress is reported before the first and after each step", "[pipeline]") {
  std::vector<std::pair<int64_t, int64_t>> calls;
  auto options = quick().num_inference_steps(3);
  options.callback([&](int64_t done, int64_t total) { calls.emplace_back(done, total); });
  const auto result = pipeline().sample(options);
  REQUIRE(calls == std::vector<std::pair<int64_t, int64_t>>{{0, 3}, {1, 3}, {2, 3}, {3, 3}});
  REQUIRE_FALSE(result.pictures.defined());
}

TEST_CASE("pipeline: other dtypes stay near and keep the autoencoder in fp32", "[pipeline]") {
  const auto options = quick().initial_latents(number("given.initial")).guidance_scale(2.0);
  const auto exact = pipeline().sample(options).latents;
  for (const auto dtype : {at::kBFloat16, at::kHalf, at::kDouble}) {
    sd::StableDiffusion model(folder(), sd::StableDiffusionOptions().dtype(dtype));
    REQUIRE(model.unet()->parameters().front().scalar_type() == dtype);
    REQUIRE(model.text_encoder()->parameters().front().scalar_type() == dtype);
    const bool half = dtype != at::kDouble;
    REQUIRE(model.vae()->parameters().front().scalar_type() == (half ? at::kFloat : at::kDouble));
    const auto latents = model.sample(options).latents;
    REQUIRE(latents.scalar_type() == (half ? at::kFloat : at::kDouble));
    // Two steps in 8, 11 and 53 bits; seen: 8.1e-3, 9.3e-4 and 4e-7.
    REQUIRE(close(latents, exact, dtype == at::kBFloat16 ? 5e-2 : half ? 1e-2 : 1e-5));
  }
}

TEST_CASE("pipeline: the base model is frozen and in evaluation mode", "[pipeline]") {
  const auto unet = pipeline().unet();
  REQUIRE_FALSE(unet->is_training());
  for (const auto& parameter : unet->parameters()) REQUIRE_FALSE(parameter.requires_grad());
}

TEST_CASE("pipeline: parts that are not asked for are not read", "[pipeline]") {
  const Copy copy;
  fs::remove(copy.scratch.file("vae/diffusion_pytorch_model.safetensors"));
  sd::StableDiffusion model(copy.scratch.path().string(),
                            sd::StableDiffusionOptions().load_vae(false));
  REQUIRE(model.sample(quick()).latents.defined());
  REQUIRE(model.vae_scale_factor() == 2);
  REQUIRE(model.default_size() == std::vector<int64_t>{16, 16});
  REQUIRE_THROWS_WITH(model.decode(at::zeros({1, 4, 8, 8})),
                      ContainsSubstring("expected the vae to be loaded"));
}

TEST_CASE("pipeline: an incomplete folder gives one line that names what is missing",
          "[pipeline]") {
  const Copy copy;
  const auto& scratch = copy.scratch;
  REQUIRE(copy.error() == "no error");
  SECTION("no index") {
    fs::remove(scratch.file("model_index.json"));
    copy.expect("got one without model_index.json; hint:");
  }
  for (const std::string part : {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}) {
    SECTION("no " + part) {
      fs::remove_all(scratch.file(part));
      copy.expect("/" + part + "': expected a folder, got none; hint:");
    }
  }
  SECTION("no configuration") {
    fs::remove(scratch.file("unet/config.json"));
    copy.expect("unet/config.json': expected a JSON file, got none; hint:");
  }
  SECTION("no weights") {
    fs::remove(scratch.file("unet/diffusion_pytorch_model.safetensors"));
    copy.expect("unet': expected diffusion_pytorch_model.safetensors, got no weights; hint:");
  }
  SECTION("cut off weights") {
    fs::resize_file(scratch.file("unet/diffusion_pytorch_model.safetensors"), 20000);
    copy.expect("unet/diffusion_pytorch_model.safetensors");
  }
}

TEST_CASE("pipeline: a folder whose parts do not fit gives one line that names what is wrong",
          "[pipeline]") {
  const Copy copy;
  SECTION("another kind of model") {
    copy.change("model_index.json", "transformer", {"diffusers", "SD3Transformer2DModel"});
    copy.expect("expected Stable Diffusion 1.x, 2.x or XL, got \"StableDiffusionPipeline\"");
  }
  SECTION("another kind of part") {
    copy.change("model_index.json", "vae", {"diffusers", "AutoencoderTiny"});
    copy.expect("expected vae to be AutoencoderKL, got \"AutoencoderTiny\"; hint:");
  }
  SECTION("a text encoder of another width") {
    copy.change("text_encoder/config.json", "hidden_size", 48);
    copy.expect(
        "expected a text encoder of width 24 (the unet's cross_attention_dim), got 48; hint:");
  }
  SECTION("an inpainting model") {
    copy.change("unet/config.json", "in_channels", 9);
    copy.expect("got 9 in and 4 out; hint: inpainting");
  }
  SECTION("weights of another size") {
    copy.change("text_encoder/config.json", "intermediate_size", 32);
    copy.expect("expected shape [32], got [48]; hint:");
  }
}

TEST_CASE("pipeline: a token that the text encoder does not know is refused", "[pipeline]") {
  sd::StableDiffusion model(folder(),
                            sd::StableDiffusionOptions().load_vae(false).load_unet(false));
  model.tokenizer().add_token("<toy>");
  REQUIRE_THROWS_WITH(model.encode_prompt({"a <toy>"}),
                      ContainsSubstring("expected ids below 1462 (the text encoder's vocab_size), "
                                        "got 1462; hint:"));
  model.text_encoder()->resize_token_embeddings(1463);
  REQUIRE(model.encode_prompt({"a <toy>"}).states.size(0) == 1);
}

TEST_CASE("pipeline: a path that is no model is refused", "[pipeline]") {
  REQUIRE_THROWS_WITH(sd::StableDiffusion(folder() + "/none"),
                      ContainsSubstring("got nothing there; hint:"));
  REQUIRE_THROWS_WITH(sd::StableDiffusion(folder() + "/model_index.json"),
                      ContainsSubstring("got a JSON file"));
  REQUIRE_THROWS_WITH(
      sd::StableDiffusion(folder() + "/unet/diffusion_pytorch_model.safetensors"),
      ContainsSubstring("got a part of a folder in diffusers layout; hint: name the folder"));
}

TEST_CASE("pipeline: a wrong size, number or name is refused", "[pipeline]") {
  const auto sample = [](const sd::SampleOptions& options) { pipeline().sample(options); };
  REQUIRE_THROWS_WITH(sample(quick().height(15)),
                      ContainsSubstring("expected positive multiples of 2, got 15 and 16"));
  REQUIRE_THROWS_WITH(sample(quick().num_images_per_prompt(0)),
                      ContainsSubstring("--num_images_per_prompt: expected at least 1, got 0"));
  REQUIRE_THROWS_WITH(sample(quick().initial_latents(at::zeros({1, 3, 8, 8}))),
                      ContainsSubstring("expected shape (n, 4, h, w), got [1, 3, 8, 8]"));
  REQUIRE_THROWS_WITH(sample(quick().height(20).initial_latents(at::zeros({1, 4, 8, 8}))),
                      ContainsSubstring("expected 16 and 16 as the initial latents"));
  REQUIRE_THROWS_WITH(sample(quick().scheduler("dimm")), ContainsSubstring("got 'dimm'"));
}
