// SPDX-License-Identifier: Apache-2.0
// The UNet against diffusers' UNet2DConditionModel. tests/parity/make_models.py made the numbers,
// in fp64 from weights rounded to fp16.
#include "models/unet.h"

#include <lightlora/file_io.h>
#include <lightlora/lightlora.h>

#include <map>
#include <memory>
#include <string>

#include "models/weights.h"
#include "paths.h"
#include "support.h"
#include "support/files/json_file.h"

namespace {

// fp32 rounding through a whole model; seen: 1.2e-6 at most.
constexpr double kFloatTolerance = 1e-5;
// fp32 rounding through a whole model and back; seen: 9.3e-6 at most.
constexpr double kFloatGradientTolerance = 5e-5;
// The same sums in another order in fp64; seen: 1e-15.
constexpr double kDoubleTolerance = 1e-12;
// fp64 behind cosines in fp32, which other CPUs round otherwise.
constexpr double kTimeTolerance = 1e-6;

// One model with its numbers, everything in one dtype.
struct Fixture {
  explicit Fixture(const std::string& name, at::ScalarType dtype = at::kFloat)
      : folder(std::string(LIGHTLORA_TEST_DATA) + "/" + name) {
    const auto path = folder + "/config.json";
    model = sd::UNet2DConditionModel(
        sd::UNet2DConditionModelOptions::from_json(sd::read_json_file(path), path));
    model->to(dtype);
    sd::load_weights(*model, folder + "/diffusion_pytorch_model.safetensors");
    model->eval();
    for (const auto& [key, value] :
         lightlora::SafetensorsFile(folder + "/numbers.safetensors").load_all()) {
      // References stay in fp64; inputs are exact in every dtype.
      const bool is_input = key == "sample" || key == "context" || key == "weighting" ||
                            key.find(".input.") != std::string::npos;
      numbers[key] = is_input && value.is_floating_point() ? value.to(dtype) : value;
    }
  }

  const at::Tensor& operator[](const std::string& key) const { return numbers.at(key); }

  at::Tensor run() { return model(numbers["sample"], numbers["timesteps"], numbers["context"]); }

  // An inner module on the input that diffusers gave it.
  at::Tensor run_module(const std::string& name) {
    const auto module = model->named_modules()[name];
    const at::Tensor& x = numbers.at(name + ".input.0");
    const auto second = numbers.find(name + ".input.1");
    if (auto* m = module->as<sd::TimestepEmbedding>()) return m->forward(x);
    if (auto* m = module->as<sd::Downsample2D>()) return m->forward(x);
    REQUIRE(second != numbers.end());
    const at::Tensor& y = second->second;
    if (auto* m = module->as<sd::ResnetBlock2D>()) return m->forward(x, at::silu(y));
    if (auto* m = module->as<sd::Transformer2DModel>()) return m->forward(x, y);
    if (auto* m = module->as<sd::BasicTransformerBlock>()) return m->forward(x, y);
    throw std::logic_error("no call for " + name);
  }

  std::string folder;
  sd::UNet2DConditionModel model{nullptr};
  lightlora::TensorMap numbers;
};

const char* const kModels[] = {"unet_sd1", "unet_sd2", "unet_odd"};

nlohmann::json config_with(const std::string& field, const nlohmann::json& value) {
  auto config = sd::read_json_file(std::string(LIGHTLORA_TEST_DATA) + "/unet_sd1/config.json");
  config[field] = value;
  return config;
}

std::string error_of(const nlohmann::json& config) {
  try {
    sd::UNet2DConditionModelOptions::from_json(config, "unet/config.json");
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

}  // namespace

TEST_CASE("unet: outputs equal diffusers' in fp32", "[unet][parity]") {
  const at::NoGradGuard no_grad;
  for (const auto* name : kModels) {
    CAPTURE(name);
    Fixture f(name);
    CHECK(close(f.run(), f["output"], kFloatTolerance));
    CHECK(close(f.model(f["sample"], at::tensor(0), f["context"]), f["output.time_zero"],
                kFloatTolerance));
  }
}

TEST_CASE("unet: outputs equal diffusers' in fp64", "[unet][parity]") {
  const at::NoGradGuard no_grad;
  for (const auto* name : kModels) {
    CAPTURE(name);
    Fixture f(name, at::kDouble);
    CHECK(close(f.run(), f["output"], kTimeTolerance));
    CHECK(close(f.model(f["sample"], at::zeros({2}), f["context"]), f["output.time_zero"],
                kDoubleTolerance));
  }
}

TEST_CASE("unet: each inner module equals diffusers' on diffusers' input", "[unet][parity]") {
  const at::NoGradGuard no_grad;
  for (const auto* name : kModels) {
    Fixture single(name, at::kFloat), twice(name, at::kDouble);
    int modules = 0;
    for (const auto& [key, reference] : single.numbers) {
      const size_t end = key.rfind(".output");
      if (end == std::string::npos || end + 7 != key.size()) continue;
      const std::string module = key.substr(0, end);
      CAPTURE(name, module);
      CHECK(close(single.run_module(module), reference, kFloatTolerance));
      CHECK(close(twice.run_module(module), reference, kDoubleTolerance));
      ++modules;
    }
    CHECK(modules >= 3);
  }
}

TEST_CASE("unet: gradients of sample and text equal diffusers'", "[unet][parity]") {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const auto* name : kModels) {
      CAPTURE(name, dtype);
      Fixture f(name, dtype);
      auto sample = f["sample"].clone().requires_grad_();
      auto context = f["context"].clone().requires_grad_();
      (f.model(sample, f["timesteps"], context) * f["weighting"]).sum().backward();
      const double tolerance = dtype == at::kDouble ? kTimeTolerance : kFloatGradientTolerance;
      CHECK(close(sample.grad(), f["grad.sample"], tolerance));
      CHECK(close(context.grad(), f["grad.context"], tolerance));
    }
  }
}

TEST_CASE("unet: packed weights and grouped projections change rounding only", "[unet][parity]") {
  for (const auto* name : kModels) {
    CAPTURE(name);
    Fixture f(name);
    for (auto& parameter : f.model->parameters()) parameter.set_requires_grad(false);
    f.model->packed = lightlora::pack_weights(*f.model);
    f.model->use_winograd();
    REQUIRE(f.model->packed.size() > 20);
    for (const bool grouped : {false, true}) {
      if (grouped) f.model->group_projections();
      {
        const at::NoGradGuard no_grad;
        CHECK(close(f.run(), f["output"], kFloatTolerance));
      }
      auto sample = f["sample"].clone().requires_grad_();
      auto context = f["context"].clone().requires_grad_();
      (f.model(sample, f["timesteps"], context) * f["weighting"]).sum().backward();
      CHECK(close(sample.grad(), f["grad.sample"], kFloatGradientTolerance));
      CHECK(close(context.grad(), f["grad.context"], kFloatGradientTolerance));
    }
  }
}

TEST_CASE("unet: a pass with gradients gives what one without gives", "[unet]") {
  // In-place shortcuts are taken only without gradients; the arithmetic is the same.
  for (const auto* name : kModels) {
    CAPTURE(name);
    Fixture f(name, at::kDouble);
    const auto with_gradients = f.run();
    REQUIRE(with_gradients.requires_grad());
    const at::NoGradGuard no_grad;
    CHECK(close(f.run(), with_gradients, kDoubleTolerance));
  }
}

TEST_CASE("unet: inputs are not written to", "[unet]") {
  const at::NoGradGuard no_grad;
  for (const auto* name : kModels) {
    Fixture f(name);
    const auto sample = f["sample"].clone(), context = f["context"].clone();
    f.run();
    CHECK(sample.equal(f["sample"]));
    CHECK(context.equal(f["context"]));
  }
}

TEST_CASE("unet: channels last passes through and gives the same", "[unet]") {
  const at::NoGradGuard no_grad;
  for (const auto* name : kModels) {
    CAPTURE(name);
    Fixture f(name);
    sd::to_channels_last(*f.model);
    CHECK(f.model->conv_in->weight.is_contiguous(at::MemoryFormat::ChannelsLast));
    const auto sample = f["sample"].contiguous(at::MemoryFormat::ChannelsLast);
    const auto output = f.model(sample, f["timesteps"], f["context"]);
    CHECK(output.is_contiguous(at::MemoryFormat::ChannelsLast));
    CHECK(close(output, f["output"], kFloatTolerance));
  }
}

TEST_CASE("unet: a transformer keeps the memory format of its input", "[unet]") {
  const at::NoGradGuard no_grad;
  for (const bool linear : {false, true}) {
    CAPTURE(linear);
    sd::Transformer2DModel layer(
        sd::Transformer2DModelOptions(/*channels=*/16, /*heads=*/2, /*cross_attention_dim=*/6)
            .groups(4)
            .use_linear_projection(linear));
    const auto x = at::randn({2, 16, 3, 5}), context = at::randn({2, 7, 6});
    CHECK(layer(x, context).is_contiguous());
    const auto channels_last = x.contiguous(at::MemoryFormat::ChannelsLast);
    CHECK(layer(channels_last, context).is_contiguous(at::MemoryFormat::ChannelsLast));
  }
}

TEST_CASE("unet: bf16 stays near fp32", "[unet]") {
  const at::NoGradGuard no_grad;
  for (const auto* name : kModels) {
    CAPTURE(name);
    Fixture f(name, at::kBFloat16);
    const auto output = f.run();
    CHECK(output.scalar_type() == at::kBFloat16);
    CHECK(close(output, f["output"], 5e-2));  // 8 bits of mantissa through the model; seen: 1.6e-2
  }
}

TEST_CASE("unet: one timestep counts for all samples", "[unet]") {
  const at::NoGradGuard no_grad;
  Fixture f("unet_sd1");
  const auto each = f.model(f["sample"], at::tensor({37, 37}), f["context"]);
  CHECK(each.equal(f.model(f["sample"], at::tensor(37), f["context"])));
  CHECK(each.equal(f.model(f["sample"], at::tensor({37.0f}), f["context"])));
}

TEST_CASE("unet: a clone computes the same and is independent", "[unet]") {
  const at::NoGradGuard no_grad;
  Fixture f("unet_sd2");
  const auto before = f.run();
  auto copy = std::dynamic_pointer_cast<sd::UNet2DConditionModelImpl>(f.model->clone());
  for (auto& parameter : f.model->parameters()) parameter.zero_();
  CHECK(copy->forward(f["sample"], f["timesteps"], f["context"]).equal(before));
}

TEST_CASE("unet: dropout acts in training only", "[unet]") {
  const at::NoGradGuard no_grad;
  Fixture f("unet_sd1");
  sd::UNet2DConditionModel dropping(sd::UNet2DConditionModelOptions(f.model->options).dropout(0.5));
  sd::load_weights(*dropping, f.folder + "/diffusion_pytorch_model.safetensors");
  dropping->train();
  const auto noisy = dropping(f["sample"], f["timesteps"], f["context"]);
  CHECK(relative_error(noisy, f["output"]) > 1e-2);
  dropping->eval();
  CHECK(close(dropping(f["sample"], f["timesteps"], f["context"]), f["output"], kFloatTolerance));
}

TEST_CASE("unet: attention keeps its projected context for reuse", "[unet]") {
  const at::NoGradGuard no_grad;
  sd::Attention layer(sd::AttentionOptions(/*query_dim=*/12, /*context_dim=*/8, /*heads=*/3,
                                           /*dim_head=*/4));
  const auto x = at::randn({2, 5, 12}), context = at::randn({2, 7, 8});
  const auto projected = layer->project(context);
  CHECK(layer->attend(x, projected).equal(layer(x, context)));
}

TEST_CASE("unet: a context that is kept follows the adapters that are active", "[unet]") {
  const at::NoGradGuard no_grad;
  sd::Attention layer(sd::AttentionOptions(/*query_dim=*/12, /*context_dim=*/8, /*heads=*/3,
                                           /*dim_head=*/4));
  layer->eval();
  const auto x = at::randn({2, 5, 12}), context = at::randn({2, 7, 8});
  const auto plain = layer(x, context);
  const auto lora = lightlora::patch<lightlora::ClassicLoRA>(*layer, 2, {"to_k", "to_v"});
  lora->eval();
  for (auto& value : lora->parameters()) value.normal_();
  const auto expected = [&] { return layer->attend(x, layer->project(context)); };
  at::Tensor adapted;
  {
    const auto active = lora->activate();
    adapted = layer(x, context);
    CHECK(close(adapted, expected(), kFloatTolerance));
    CHECK(layer(x, context).equal(adapted));
    lora->parameters().front().mul_(2);  // a change of values in between
    CHECK_FALSE(layer(x, context).equal(adapted));
    CHECK(close(layer(x, context), expected(), kFloatTolerance));
  }
  CHECK(layer(x, context).equal(plain));
  lora->set_active({{"default", 0.5}});
  const auto active = lora->activate();
  CHECK(close(layer(x, context), expected(), kFloatTolerance));
}

TEST_CASE("unet: upcast attention computes half precision in fp32", "[unet]") {
  const auto q = at::randn({2, 5, 12}), k = at::randn({2, 7, 12}), v = at::randn({2, 7, 12});
  const auto half = [](const at::Tensor& x) { return x.to(at::kBFloat16); };
  const auto wide = [&](const at::Tensor& x) { return half(x).to(at::kFloat); };
  const auto upcast = sd::attention(half(q), half(k), half(v), /*heads=*/3, /*upcast=*/true);
  CHECK(upcast.scalar_type() == at::kBFloat16);
  CHECK(upcast.equal(half(sd::attention(wide(q), wide(k), wide(v), 3, /*upcast=*/false))));
}

TEST_CASE("unet: fields that are left out have diffusers' defaults", "[unet]") {
  const auto options = sd::UNet2DConditionModelOptions::from_json(nlohmann::json::object());
  CHECK(options.block_out_channels() == std::vector<int64_t>{320, 640, 1280, 1280});
  CHECK(options.cross_attention_dim() == std::vector<int64_t>{1280});
  CHECK(options.attention_head_dim() == std::vector<int64_t>{8});
  CHECK(options.layers_per_block() == std::vector<int64_t>{2});
  CHECK(options.sample_size().empty());
  CHECK_FALSE(options.use_linear_projection());
}

TEST_CASE("unet: the published short configurations make models of the published size", "[unet]") {
  const auto sd1 = nlohmann::json::parse(R"({
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": false, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
                         "DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
    "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
                       "CrossAttnUpBlock2D"]})");
  auto sd2 = sd1;
  sd2.merge_patch({{"attention_head_dim", {5, 10, 20, 20}},
                   {"cross_attention_dim", 1024},
                   {"sample_size", 96},
                   {"use_linear_projection", true},
                   {"upcast_attention", true}});
  const auto size = [](const nlohmann::json& config) {
    const sd::UninitializedModules reserved_only(at::kHalf);
    sd::UNet2DConditionModel model(sd::UNet2DConditionModelOptions::from_json(config));
    int64_t count = 0;
    for (const auto& parameter : model->parameters()) count += parameter.numel();
    return count;
  };
  CHECK(size(sd1) == 859520964);  // diffusers' own count
  CHECK(size(sd2) == 865910724);
}

TEST_CASE("unet: unsupported configurations name field and value", "[unet]") {
  const auto check = [](const std::string& field, const nlohmann::json& value,
                        const std::string& shown) {
    CAPTURE(field, shown);
    const auto error = error_of(config_with(field, value));
    CHECK_THAT(error, ContainsSubstring("'unet/config.json': expected " + field + " to be "));
    CHECK_THAT(error, ContainsSubstring("got " + shown));
  };
  check("down_block_types", {"CrossAttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"},
        "AttnDownBlock2D; hint: only the UNets of Stable Diffusion 1.x, 2.x and XL are");
  check("up_block_types", {"UpBlock2D", "CrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D"},
        "SimpleCrossAttnUpBlock2D");
  check("transformer_layers_per_block", {{1, 2}, {1, 2}, {1, 2}}, "[[1,2],[1,2],[1,2]]");
  const std::multimap<std::string, nlohmann::json> unsupported = {
      {"mid_block_type", "UNetMidBlock2DSimpleCrossAttn"},
      {"dual_cross_attention", true},
      {"num_attention_heads", 8},
      {"class_embed_type", "timestep"},
      {"addition_embed_type", "text_image"},
      {"encoder_hid_dim", 640},
      {"time_embedding_type", "fourier"},
      {"resnet_time_scale_shift", "scale_shift"},
      {"act_fn", "mish"},
      {"_class_name", "UNet2DModel"},
      {"norm_num_groups", nullptr},
      {"in_channels", "four"},
      {"in_channels", 0},
      {"upcast_attention", 1},
  };
  for (const auto& [field, value] : unsupported) check(field, value, value.dump());
}

TEST_CASE("unet: lists that do not fit the levels are errors", "[unet]") {
  CHECK_THAT(error_of(config_with("block_out_channels", {16, 24})),
             ContainsSubstring("expected down_block_types to have 2 entries"));
  CHECK_THAT(error_of(config_with("attention_head_dim", {4, 4})),
             ContainsSubstring("expected attention_head_dim to have 1 or 3 entries"));
  CHECK_THAT(error_of(config_with("norm_num_groups", 5)),
             ContainsSubstring("multiples of norm_num_groups (5), got 16"));
  CHECK_THAT(error_of(config_with("attention_head_dim", 20)),
             ContainsSubstring("at most the level's 16 channels, got 20"));
}

TEST_CASE("unet: inputs of another model are errors that show the shapes", "[unet]") {
  Fixture f("unet_sd1");
  CHECK_THROWS_WITH(f.model(f["sample"].narrow(1, 0, 3), f["timesteps"], f["context"]),
                    ContainsSubstring("expected a sample (B, 4, H, W), got [2, 3, 8, 8]"));
  CHECK_THROWS_WITH(
      f.model(f["sample"], f["timesteps"], f["context"].narrow(2, 0, 20)),
      ContainsSubstring(
          "expected encoder_hidden_states (2, T, 24) or (2, 11, T, 24), got [2, 7, 20]"));
  CHECK_THROWS_WITH(f.model(f["sample"], at::zeros({3}), f["context"]),
                    ContainsSubstring("one for each of 2 samples, got [3]"));
}
