// SPDX-License-Identifier: Apache-2.0
// TAESD's decoder against diffusers' AutoencoderTiny. tests/parity/make_models.py made the numbers, in
// fp64 from weights rounded to fp16.
#include "models/tiny_decoder.h"

#include <lightlora/file_io.h>

#include <fstream>
#include <string>
#include <vector>

#include "paths.h"
#include "pipeline/pipeline.h"
#include "support.h"

namespace {

std::string tiny_folder(const std::string& name) {
  return std::string(LIGHTLORA_TEST_DATA) + "/" + name;
}

lightlora::TensorMap tiny_weights(const std::string& name) {
  return lightlora::SafetensorsFile(tiny_folder(name) + "/diffusion_pytorch_model.safetensors")
      .load_all();
}

// The authors' names: no "decoder.layers.", and numbers that begin with the layer for tanh.
lightlora::TensorMap authors_names(const lightlora::TensorMap& tensors, const std::string& prefix) {
  lightlora::TensorMap result;
  const std::string before = "decoder.layers.";
  for (const auto& [name, value] : tensors) {
    if (name.rfind(before, 0) != 0) continue;
    const auto rest = name.substr(before.size());
    const auto dot = rest.find('.');
    result[prefix + std::to_string(std::stoi(rest.substr(0, dot)) + 1) + rest.substr(dot)] = value;
  }
  return result;
}

std::string message_of(const std::string& path) {
  try {
    sd::read_tiny_decoder(path);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

}  // namespace

TEST_CASE("tiny decoder: equals diffusers' AutoencoderTiny", "[vae]") {
  for (const std::string name : {"taesd", "taesd_two_levels"}) {
    CAPTURE(name);
    const auto numbers =
        lightlora::SafetensorsFile(tiny_folder(name) + "/numbers.safetensors").load_all();
    auto decoder = sd::read_tiny_decoder(tiny_folder(name));
    CHECK(decoder->options.width() == 8);
    CHECK(decoder->options.latent_channels() == 4);
    CHECK(decoder->options.upsampling() == (name == "taesd" ? 8 : 2));
    const auto expected = numbers.at("decoded") / 2 + 0.5;  // diffusers' pictures are in [-1, 1]
    const auto latents = numbers.at("latents");
    // fp32 rounding through the model.
    CHECK(close(decoder->forward(latents.to(at::kFloat)), expected, 1e-5));
    decoder->to(at::kDouble);
    CHECK(close(decoder->forward(latents), expected, 1e-12));
  }
}

TEST_CASE("tiny decoder: the authors' names mean the same tensors", "[vae]") {
  const ScratchFolder scratch;
  const auto latents = at::randn({1, 4, 3, 2});
  const auto expected = sd::read_tiny_decoder(tiny_folder("taesd"))->forward(latents);
  for (const std::string prefix : {"", "decoder.", "taesd_decoder."}) {
    CAPTURE(prefix);
    const auto file = scratch.file("taesd_decoder.safetensors");
    lightlora::save_safetensors(file, authors_names(tiny_weights("taesd"), prefix));
    auto decoder = sd::read_tiny_decoder(file);
    CHECK(decoder->options.blocks() == std::vector<int64_t>{1, 2, 0, 1});
    CHECK(decoder->forward(latents).equal(expected));
  }
}

TEST_CASE("tiny decoder: other files are named in one line", "[vae]") {
  const ScratchFolder scratch;
  const auto file = scratch.file("x.safetensors");
  const std::string expected = "expected a decoder of TAESD, got a file without its convolutions";
  lightlora::save_safetensors(file, {{"encoder.layers.0.weight", at::zeros({8, 3, 3, 3})},
                                     {"decoder.conv_in.weight", at::zeros({8, 4, 3, 3})}});
  CHECK_THAT(message_of(file), ContainsSubstring(file) && ContainsSubstring(expected));
  CHECK_THAT(message_of(tiny_folder("vae_normal")), ContainsSubstring(expected));
  CHECK_THAT(message_of(scratch.file("none")), ContainsSubstring("got none"));
  auto tensors = authors_names(tiny_weights("taesd"), "");
  tensors.erase("1.bias");
  lightlora::save_safetensors(file, tensors);
  CHECK_THAT(message_of(file), ContainsSubstring("layers.0.bias"));
}

TEST_CASE("tiny decoder: a configuration that means something else is refused", "[vae]") {
  const ScratchFolder scratch;
  std::filesystem::copy(tiny_folder("taesd"), scratch.path(),
                        std::filesystem::copy_options::recursive);
  const auto write = [&](const std::string& text) {
    std::ofstream(scratch.file("config.json")) << text;
  };
  write("{\"act_fn\": \"mish\"}");
  CHECK_THAT(message_of(scratch.path().string()),
             ContainsSubstring("expected act_fn to be \"relu\", got \"mish\""));
  write("{\"scaling_factor\": 0}");
  CHECK_THAT(message_of(scratch.path().string()), ContainsSubstring("scaling_factor"));
  write("{\"scaling_factor\": 2}");
  const auto latents = at::randn({1, 4, 3, 2});
  CHECK(sd::read_tiny_decoder(scratch.path().string())
            ->forward(latents)
            .equal(sd::read_tiny_decoder(tiny_folder("taesd"))->forward(latents / 2)));
}

TEST_CASE("tiny decoder: the pipeline decodes with it", "[vae]") {
  const auto options = sd::StableDiffusionOptions().load_unet(false).load_text_encoder(false);
  for (const std::string model : {"pipeline", "pipeline_xl"}) {
    CAPTURE(model);
    auto small = options;
    small.load_vae(false).taesd(tiny_folder("taesd_two_levels"));
    sd::StableDiffusion pipeline(tiny_folder(model), small);
    const auto latents = at::randn({2, 4, 5, 3});
    auto decoder = sd::read_tiny_decoder(tiny_folder("taesd_two_levels"));
    const auto pictures = pipeline.decode(latents);
    CHECK(pictures.sizes().vec() == std::vector<int64_t>{2, 3, 10, 6});
    CHECK(close(pictures, decoder->forward(latents).clamp(0, 1), 1e-6));
    small.taesd(tiny_folder("taesd"));
    CHECK_THROWS_WITH(sd::StableDiffusion(tiny_folder(model), small),
                      ContainsSubstring("expected a decoder of 4 channels and 2 pixels"));
  }
}
