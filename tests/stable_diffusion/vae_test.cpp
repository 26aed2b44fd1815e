// SPDX-License-Identifier: Apache-2.0
// The autoencoder against diffusers' AutoencoderKL. tests/parity/make_models.py made the numbers,
// in fp64 from weights rounded to fp16.
#include "models/vae.h"

#include <ATen/CPUGeneratorImpl.h>
#include <lightlora/file_io.h>

#include <map>
#include <memory>
#include <string>

#include "models/bands.h"
#include "models/weights.h"
#include "paths.h"
#include "support.h"
#include "support/files/json_file.h"

namespace {

// fp32 rounding through one half of the model; seen: 1e-6 at most.
constexpr double kFloatTolerance = 1e-5;
// The same sums in another order in fp64; seen: 1e-15.
constexpr double kDoubleTolerance = 1e-12;

// One model with its numbers; the inputs in the model's dtype.
struct Fixture {
  explicit Fixture(const std::string& name, at::ScalarType dtype = at::kFloat)
      : folder(std::string(LIGHTLORA_TEST_DATA) + "/" + name) {
    const auto path = folder + "/config.json";
    model = sd::AutoencoderKL(sd::AutoencoderKLOptions::from_json(sd::read_json_file(path), path));
    model->to(dtype);
    sd::load_weights(*model, folder + "/diffusion_pytorch_model.safetensors");
    model->eval();
    numbers = lightlora::SafetensorsFile(folder + "/numbers.safetensors").load_all();
    for (auto& [key, value] : numbers) {
      const bool is_input =
          key == "pictures" || key == "latents" || key.find(".input.") != std::string::npos;
      if (is_input) value = value.to(dtype);
    }
  }

  const at::Tensor& operator[](const std::string& key) const { return numbers.at(key); }

  // An inner module on the input that diffusers gave it.
  at::Tensor run_module(const std::string& name) {
    const auto module = model->named_modules()[name];
    const at::Tensor& x = numbers.at(name + ".input.0");
    if (auto* m = module->as<sd::VaeAttention>()) return m->forward(x);
    if (auto* m = module->as<sd::VaeMidBlock>()) return m->forward(x);
    if (auto* m = module->as<sd::VaeBlock>()) return m->forward(x);
    throw std::logic_error("no call for " + name);
  }

  std::string folder;
  sd::AutoencoderKL model{nullptr};
  lightlora::TensorMap numbers;
};

const char* const kModels[] = {"vae_normal", "vae_other"};

const std::map<at::ScalarType, double> kTolerances = {{at::kFloat, kFloatTolerance},
                                                      {at::kDouble, kDoubleTolerance}};

nlohmann::json config_with(const std::string& field, const nlohmann::json& value) {
  auto config = sd::read_json_file(std::string(LIGHTLORA_TEST_DATA) + "/vae_normal/config.json");
  config[field] = value;
  return config;
}

std::string error_of(const nlohmann::json& config) {
  try {
    sd::AutoencoderKLOptions::from_json(config, "vae/config.json");
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

}  // namespace

TEST_CASE("vae: encoded pictures equal diffusers'", "[vae][parity]") {
  const at::NoGradGuard no_grad;
  for (const auto& [dtype, tolerance] : kTolerances) {
    for (const auto* name : kModels) {
      CAPTURE(name, dtype);
      Fixture f(name, dtype);
      const auto posterior = f.model->encode(f["pictures"]);
      CHECK(close(posterior.mean(), f["mean"], tolerance));
      CHECK(close(posterior.logvar(), f["logvar"], tolerance));
      CHECK(close(posterior.std(), f["std"], tolerance));
    }
  }
}

TEST_CASE("vae: decoded latents equal diffusers'", "[vae][parity]") {
  const at::NoGradGuard no_grad;
  for (const auto& [dtype, tolerance] : kTolerances) {
    for (const auto* name : kModels) {
      CAPTURE(name, dtype);
      Fixture f(name, dtype);
      CHECK(close(f.model->decode(f["latents"]), f["decoded"], tolerance));
    }
  }
}

TEST_CASE("vae: each inner module equals diffusers' on diffusers' input", "[vae][parity]") {
  const at::NoGradGuard no_grad;
  for (const auto& [dtype, tolerance] : kTolerances) {
    int modules = 0;
    for (const auto* name : kModels) {
      Fixture f(name, dtype);
      for (const auto& [key, reference] : f.numbers) {
        const size_t end = key.rfind(".output");
        if (end == std::string::npos) continue;
        const std::string module = key.substr(0, end);
        CAPTURE(name, module, dtype);
        CHECK(close(f.run_module(module), reference, tolerance));
        ++modules;
      }
    }
    CHECK(modules == 3);
  }
}

TEST_CASE("vae: a map in bands of rows gives what the whole gives", "[vae]") {
  const at::NoGradGuard no_grad;
  torch::manual_seed(1);
  auto norm = sd::make_group_norm(/*groups=*/3, /*channels=*/12, /*eps=*/1e-6);
  auto conv = sd::make_conv(12, 7, /*kernel=*/3), shortcut = sd::make_conv(12, 7, /*kernel=*/1);
  norm->weight.normal_();
  norm->bias.normal_();
  for (const auto& [dtype, tolerance] : kTolerances) {
    norm->to(dtype), conv->to(dtype), shortcut->to(dtype);
    // A mean that is large beside the deviation, which also differs from band to band.
    const auto x =
        torch::randn({2, 12, 13, 6}, dtype) * torch::arange(1, 14).view({1, 1, 13, 1}) + 5;
    const auto normed = conv(sd::norm_silu(norm, x));
    for (const int64_t rows : {1, 3, 12, 13, 40}) {
      CAPTURE(dtype, rows);
      const auto banded = sd::norm_silu_conv(norm, conv, x, rows);
      CHECK(close(banded, normed, tolerance));
      CHECK(close(sd::add_shortcut(banded, shortcut, x, rows), normed + shortcut(x), tolerance));
      CHECK(close(sd::enlarge_conv(conv, x, rows), conv(at::upsample_nearest2d(x, {26, 12})),
                  tolerance));
    }
  }
}

TEST_CASE("vae: large maps alone go in bands, and none with gradients", "[vae]") {
  const auto map = [](int64_t side) { return at::empty({1, 256, side, side}, at::kMeta); };
  CHECK(sd::rows_of_band(map(1024), 256) == 0);
  const at::NoGradGuard no_grad;
  CHECK(sd::rows_of_band(map(512), 256) == 0);
  CHECK(sd::rows_of_band(map(512), 512) == 64);
  CHECK(sd::rows_of_band(map(1024), 128) == 64);
}

TEST_CASE("vae: channels last passes through and gives the same", "[vae]") {
  const at::NoGradGuard no_grad;
  const auto channels_last = at::MemoryFormat::ChannelsLast;
  for (const auto* name : kModels) {
    CAPTURE(name);
    Fixture f(name);
    sd::to_channels_last(*f.model);
    const auto decoded = f.model->decode(f["latents"].contiguous(channels_last));
    CHECK(decoded.is_contiguous(channels_last));
    CHECK(close(decoded, f["decoded"], kFloatTolerance));
    const auto posterior = f.model->encode(f["pictures"].contiguous(channels_last));
    CHECK(close(posterior.mean(), f["mean"], kFloatTolerance));
  }
}

TEST_CASE("vae: bf16 stays near fp32", "[vae]") {
  const at::NoGradGuard no_grad;
  for (const auto* name : kModels) {
    CAPTURE(name);
    Fixture f(name, at::kBFloat16);
    const auto decoded = f.model->decode(f["latents"]);
    CHECK(decoded.scalar_type() == at::kBFloat16);
    CHECK(close(decoded, f["decoded"], 5e-2));  // 8 bits of mantissa through the model; seen: 1e-2
  }
}

TEST_CASE("vae: gradients flow from the decoded picture to the latents", "[vae]") {
  for (const auto* name : kModels) {
    CAPTURE(name);
    Fixture f(name, at::kDouble);
    auto latents = f["latents"].clone().requires_grad_();
    f.model->decode(latents).square().sum().backward();
    // The slope along one direction, by central differences of step 1e-5: error of order 1e-10.
    const at::NoGradGuard no_grad;
    const auto direction = at::randn_like(latents);
    const auto loss_at = [&](double step) {
      return f.model->decode(latents + step * direction).square().sum();
    };
    const auto slope = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5;
    CHECK(close((latents.grad() * direction).sum(), slope, 1e-6));
  }
}

TEST_CASE("vae: a pass with gradients gives what one without gives", "[vae]") {
  for (const auto* name : kModels) {
    Fixture f(name, at::kDouble);
    const auto with_gradients = f.model->forward(f["pictures"]);
    REQUIRE(with_gradients.requires_grad());
    const at::NoGradGuard no_grad;
    CHECK(close(f.model->forward(f["pictures"]), with_gradients, kDoubleTolerance));
  }
}

TEST_CASE("vae: samples follow the mean, the deviation and the generator", "[vae]") {
  const auto moments = at::cat({at::full({1, 2, 3, 3}, 5.0), at::full({1, 2, 3, 3}, -1.0)}, 1);
  const sd::DiagonalGaussianDistribution posterior(moments);
  CHECK(posterior.mode().equal(at::full({1, 2, 3, 3}, 5.0)));
  const auto noise = at::randn({1, 2, 3, 3});
  CHECK(posterior.sample(noise).allclose(5.0 + std::exp(-0.5) * noise));
  const auto draw = [&](uint64_t seed) {
    return posterior.sample(at::make_generator<at::CPUGeneratorImpl>(seed));
  };
  CHECK(draw(1).equal(draw(1)));
  CHECK_FALSE(draw(1).equal(draw(2)));
  const auto unit = at::randn({1, 2, 3, 3}, at::make_generator<at::CPUGeneratorImpl>(uint64_t{1}));
  CHECK(draw(1).equal(posterior.sample(unit)));
  CHECK_THROWS_WITH(posterior.sample(at::zeros({1, 2, 3})),
                    ContainsSubstring("expected noise of shape [1, 2, 3, 3], got [1, 2, 3]"));
}

TEST_CASE("vae: the logarithm of the variance stays in [-30, 20]", "[vae]") {
  const auto moments =
      at::cat({at::zeros({1, 1, 1, 2}), at::tensor({-99.0, 99.0}).view({1, 1, 1, 2})},
              /*dim=*/1);
  const sd::DiagonalGaussianDistribution posterior(moments);
  CHECK(posterior.logvar().flatten().equal(at::tensor({-30.0, 20.0}).to(moments.scalar_type())));
}

TEST_CASE("vae: a clone computes the same and is independent", "[vae]") {
  const at::NoGradGuard no_grad;
  Fixture f("vae_normal");
  const auto before = f.model->forward(f["pictures"]);
  auto copy = std::dynamic_pointer_cast<sd::AutoencoderKLImpl>(f.model->clone());
  for (auto& parameter : f.model->parameters()) parameter.zero_();
  CHECK(copy->forward(f["pictures"]).equal(before));
}

TEST_CASE("vae: old names of the attention's weights become today's", "[vae]") {
  const std::string attention = "encoder.mid_block.attentions.0.";
  const std::map<std::string, std::string> names = {
      {"query.weight", "to_q.weight"},        {"key.bias", "to_k.bias"},
      {"value.weight", "to_v.weight"},        {"proj_attn.weight", "to_out.0.weight"},
      {"proj_attn.bias", "to_out.0.bias"},    {"group_norm.weight", "group_norm.weight"},
      {"to_out.0.weight", "to_out.0.weight"}, {"to_q.bias", "to_q.bias"}};
  for (const auto& [old_name, name] : names) {
    CHECK(sd::vae_legacy_name(attention + old_name) == attention + name);
  }
  CHECK(sd::vae_legacy_name("decoder.key.weight") == "decoder.key.weight");
}

TEST_CASE("vae: a file with the old names loads", "[vae]") {
  const at::NoGradGuard no_grad;
  Fixture f("vae_normal");
  lightlora::TensorMap old;
  for (const auto& item : f.model->named_parameters()) {
    std::string name = item.key();
    const bool attention = name.find(".attentions.") != std::string::npos;
    for (const auto& [today, before] :
         std::map<std::string, std::string>{{".to_q.", ".query."},
                                            {".to_k.", ".key."},
                                            {".to_v.", ".value."},
                                            {".to_out.0.", ".proj_attn."}}) {
      const size_t at = name.find(today);
      if (attention && at != std::string::npos) name.replace(at, today.size(), before);
    }
    old[name] = item.value().detach().clone();
  }
  REQUIRE(old.count("decoder.mid_block.attentions.0.proj_attn.weight") == 1);
  const ScratchFolder scratch;
  const auto file = scratch.file("old.safetensors");
  lightlora::save_safetensors(file, old);
  sd::AutoencoderKL fresh(f.model->options);
  sd::load_weights(*fresh, file, sd::vae_legacy_name);
  CHECK(close(fresh->forward(f["pictures"]), f.model->forward(f["pictures"]), 0));
}

TEST_CASE("vae: fields that are left out have diffusers' defaults", "[vae]") {
  const auto options = sd::AutoencoderKLOptions::from_json(nlohmann::json::object());
  CHECK(options.scaling_factor() == 0.18215);
  CHECK(options.block_out_channels() == std::vector<int64_t>{64});
  CHECK(options.layers_per_block() == 1);
  CHECK(options.norm_num_groups() == 32);
  CHECK(options.latent_channels() == 4);
  CHECK(options.force_upcast());
  CHECK(options.use_quant_conv());
  CHECK(options.downsampling() == 1);
}

TEST_CASE("vae: unsupported configurations name field and value", "[vae]") {
  const auto check = [](const std::string& field, const nlohmann::json& value,
                        const std::string& shown) {
    CAPTURE(field, shown);
    const auto error = error_of(config_with(field, value));
    CHECK_THAT(error, ContainsSubstring("'vae/config.json': expected " + field + " to "));
    CHECK_THAT(error, ContainsSubstring("got " + shown));
  };
  check("down_block_types", {"DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"},
        "AttnDownEncoderBlock2D");
  check("up_block_types", {"UpDecoderBlock2D"}, "1");
  check("act_fn", "gelu", "\"gelu\"");
  check("latents_mean", {0.5}, "[0.5]");
  check("shift_factor", 0.1159, "0.1159");
  check("scaling_factor", 0, "0");
  check("_class_name", "AutoencoderTiny", "\"AutoencoderTiny\"");
  CHECK_THAT(error_of(config_with("norm_num_groups", 3)),
             ContainsSubstring("multiples of norm_num_groups (3), got 8"));
}

TEST_CASE("vae: inputs that do not fit are errors that show the shapes", "[vae]") {
  Fixture f("vae_normal");
  CHECK_THROWS_WITH(
      f.model->encode(at::zeros({1, 3, 3, 8})),
      ContainsSubstring(
          "expected pictures (B, 3, H, W) of at least 4 by 4 pixels, got [1, 3, 3, 8]"));
  CHECK_THROWS_WITH(f.model->decode(at::zeros({1, 3, 8, 8})),
                    ContainsSubstring("expected latents (B, 4, h, w), got [1, 3, 8, 8]"));
}
