// SPDX-License-Identifier: Apache-2.0
// The text encoder against transformers' CLIPTextModel. tests/parity/make_text.py made the numbers,
// in fp64 from weights rounded to fp16.
#include "models/clip.h"

#include <lightlora/file_io.h>

#include <nlohmann/json.hpp>

#include "models/weights.h"
#include "paths.h"
#include "support.h"
#include "support/files/json_file.h"

namespace {

// fp32 rounding through a whole model; seen: 2.1e-7.
constexpr double kFloatTolerance = 1e-5;
// The same sums in another order; seen: 3.8e-16.
constexpr double kDoubleTolerance = 1e-12;

struct Fixture {
  explicit Fixture(const std::string& name, at::ScalarType dtype)
      : folder(std::string(LIGHTLORA_TEST_DATA) + "/" + name) {
    const auto path = folder + "/config.json";
    model = sd::CLIPTextModel(sd::CLIPTextModelOptions::from_json(sd::read_json_file(path), path));
    model->to(dtype);
    sd::load_weights(*model, folder + "/model.safetensors", sd::CLIPTextModelImpl::parameter_name);
    model->eval();
    numbers = lightlora::SafetensorsFile(folder + "/numbers.safetensors").load_all();
  }

  const at::Tensor& operator[](const std::string& key) const { return numbers.at(key); }

  std::string folder;
  sd::CLIPTextModel model{nullptr};
  lightlora::TensorMap numbers;
};

nlohmann::json config_with(const std::string& field, const nlohmann::json& value) {
  auto config = sd::read_json_file(std::string(LIGHTLORA_TEST_DATA) + "/clip_sd1/config.json");
  config[field] = value;
  return config;
}

const char* const kModels[] = {"clip_sd1", "clip_sd2"};

}  // namespace

TEST_CASE("clip: hidden and pooled states equal transformers'", "[clip][parity]") {
  const at::NoGradGuard no_grad;
  for (const auto* name : kModels) {
    for (const auto dtype : {at::kFloat, at::kDouble}) {
      Fixture fixture(name, dtype);
      const double tolerance = dtype == at::kFloat ? kFloatTolerance : kDoubleTolerance;
      const auto& ids = fixture["ids"];
      const auto hidden = fixture.model(ids);
      INFO(name << " " << dtype);
      REQUIRE(hidden.scalar_type() == dtype);
      REQUIRE(close(hidden, fixture["last_hidden_state"], tolerance));
      REQUIRE(close(fixture.model->pooled(ids, hidden), fixture["pooled"], tolerance));
      const auto part = ids.narrow(0, 0, 1).narrow(1, 0, 4);
      REQUIRE(close(fixture.model(part), fixture["short"], tolerance));
    }
  }
}

TEST_CASE("clip: clip_skip equals diffusers', through the final layer norm", "[clip][parity]") {
  const at::NoGradGuard no_grad;
  for (const auto* name : kModels) {
    Fixture fixture(name, at::kFloat);
    const int64_t layers = fixture.model->options.num_hidden_layers();
    for (int64_t skip = 1; skip <= layers; ++skip) {
      const auto key = "clip_skip_" + std::to_string(skip);
      REQUIRE(
          close(fixture.model->hidden_state(fixture["ids"], skip), fixture[key], kFloatTolerance));
    }
    REQUIRE_THROWS_WITH(fixture.model->hidden_state(fixture["ids"], layers + 1),
                        ContainsSubstring("--clip_skip: expected a number from 0 to"));
  }
}

TEST_CASE("clip: half precision stays near", "[clip]") {
  const at::NoGradGuard no_grad;
  for (const auto* name : kModels) {
    for (const auto dtype : {at::kBFloat16, at::kHalf}) {
      Fixture fixture(name, dtype);
      const auto hidden = fixture.model(fixture["ids"]);
      REQUIRE(hidden.scalar_type() == dtype);
      // 8 or 11 bits through a few layers; seen: 7.7e-3 and 7e-4.
      REQUIRE(close(hidden, fixture["last_hidden_state"], dtype == at::kHalf ? 3e-3 : 3e-2));
    }
  }
}

TEST_CASE("clip: a token does not see those behind it", "[clip]") {
  const at::NoGradGuard no_grad;
  Fixture fixture("clip_sd1", at::kDouble);
  auto ids = fixture["ids"].narrow(0, 1, 1).clone();
  const auto before = fixture.model(ids);
  ids[0][8] = 5;
  const auto after = fixture.model(ids);
  REQUIRE(at::equal(before.narrow(1, 0, 8), after.narrow(1, 0, 8)));
  REQUIRE_FALSE(at::allclose(before.narrow(1, 8, 1), after.narrow(1, 8, 1)));
}

TEST_CASE("clip: every parameter gets a gradient", "[clip]") {
  Fixture fixture("clip_sd1", at::kFloat);
  fixture.model(fixture["ids"]).pow(2).sum().backward();
  for (const auto& item : fixture.model->named_parameters()) {
    INFO(item.key());
    REQUIRE(item.value().grad().defined());
    // A bias added to all keys alike cancels in the softmax.
    if (item.key().find("k_proj.bias") == std::string::npos) {
      REQUIRE(item.value().grad().norm().item<double>() > 0);
    }
  }
}

TEST_CASE("clip: room for new tokens keeps the old ones", "[clip]") {
  const at::NoGradGuard no_grad;
  Fixture fixture("clip_sd1", at::kFloat);
  const auto before = fixture.model(fixture["ids"]);
  fixture.model->resize_token_embeddings(93);
  REQUIRE(at::equal(fixture.model(fixture["ids"]), before));
  const auto rows =
      fixture.model->named_parameters()["text_model.embeddings.token_embedding.weight"];
  REQUIRE(rows.size(0) == 93);
  rows[92] = rows[3];
  auto ids = fixture["ids"].clone();
  ids.masked_fill_(ids == 3, 92);
  REQUIRE(at::equal(fixture.model(ids), before));
  REQUIRE_THROWS_WITH(fixture.model->resize_token_embeddings(50),
                      ContainsSubstring("expected a vocabulary of at least 93, got 50"));
}

TEST_CASE("clip: too many tokens are refused with both numbers", "[clip]") {
  Fixture fixture("clip_sd1", at::kFloat);
  REQUIRE_THROWS_WITH(fixture.model(at::zeros({1, 13}, at::kLong)),
                      ContainsSubstring("expected at most 12 tokens, got 13"));
}

TEST_CASE("clip: a configuration that does not fit names its field", "[clip]") {
  const auto read = [](const std::string& field, const nlohmann::json& value) {
    return sd::CLIPTextModelOptions::from_json(config_with(field, value));
  };
  REQUIRE_THROWS_WITH(read("hidden_act", "relu"), ContainsSubstring("hidden_act"));
  REQUIRE_THROWS_WITH(read("num_attention_heads", 5),
                      ContainsSubstring("hidden_size to be a multiple of num_attention_heads 5"));
  REQUIRE_THROWS_WITH(read("num_hidden_layers", 0), ContainsSubstring("num_hidden_layers"));
  const auto defaults = sd::CLIPTextModelOptions::from_json(nlohmann::json::object());
  REQUIRE(defaults.hidden_size() == 512);
  REQUIRE(defaults.hidden_act() == sd::CLIPActivation::quick_gelu);
}

TEST_CASE("clip: a copy computes the same and is independent", "[clip]") {
  const at::NoGradGuard no_grad;
  Fixture fixture("clip_sd2", at::kFloat);
  const auto copy = std::dynamic_pointer_cast<sd::CLIPTextModelImpl>(fixture.model->clone());
  REQUIRE(copy);
  const auto before = fixture.model(fixture["ids"]);
  REQUIRE(at::equal(copy->forward(fixture["ids"]), before));
  for (auto& parameter : copy->parameters()) parameter.zero_();
  REQUIRE(at::equal(fixture.model(fixture["ids"]), before));
}
