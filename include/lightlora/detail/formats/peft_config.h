// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>
#include <lightlora/detail/formats/json.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <regex>
#include <string>
#include <utility>

namespace lightlora::detail {

/// The part of PEFT's LoraConfig that decides the scale of each layer; read from
/// `adapter_config.json`, or from the `lora_adapter_metadata` that diffusers writes.
class PeftConfig {
 public:
  /// Reads the fields `<prefix>r`, `<prefix>lora_alpha`, ... of a JSON object.
  /// Errors: c10::Error with `source` for fields of another type and methods not read here
  PeftConfig(const JsonValue& json, const std::string& prefix, std::string source)
      : source_(std::move(source)) {
    try {
      const auto field = [&](const char* name) -> const JsonValue* {
        const JsonValue* value = json.find(prefix + name);
        return value != nullptr && value->is_null() ? nullptr : value;
      };
      if (const auto* value = field("r")) rank_ = value->integer();
      // LoHa's and LoKr's configurations call it alpha.
      for (const char* name : {"lora_alpha", "alpha"}) {
        if (const auto* value = field(name)) alpha_ = value->number();
      }
      if (const auto* value = field("use_rslora")) rslora_ = value->boolean();
      if (const auto* value = field("rank_pattern")) ranks_ = pattern(*value);
      if (const auto* value = field("alpha_pattern")) alphas_ = pattern(*value);
      if (const auto* value = field("use_dora")) dora_ = value->boolean();
      const auto* init = field("init_lora_weights");
      TORCH_CHECK(
          init == nullptr || init->type() != JsonType::string || !alters_base(init->string()), "'",
          source_, "': expected adapters of the unchanged base model, got those of ",
          "initialisation '", init->string(), "'; hint: convert them to plain LoRA with PEFT");
      const auto* type = field("peft_type");
      const std::string method = type == nullptr ? "LORA" : type->string();
      TORCH_CHECK(method == "LORA" || method == "LOHA" || method == "LOKR", "'", source_,
                  "': expected the PEFT method LORA, LOHA or LOKR, got ", method,
                  ", which is not supported");
    } catch (const JsonError& error) {
      TORCH_CHECK(false, "'", source_, "': expected the fields of PEFT's LoraConfig, got '",
                  error.what(), "'");
    }
  }

  /// Whether the layers have DoRA magnitudes.
  bool dora() const { return dora_; }

  /// Alpha and scale of a layer whose factors have that rank; 0 if they do not tell it.
  /// Errors: c10::Error if the configuration says another rank
  double scale(const std::string& layer, int64_t rank) const {
    const double stated = lookup(ranks_, layer, static_cast<double>(rank_));
    const double divisor = rank > 0 ? static_cast<double>(rank) : stated;
    TORCH_CHECK(stated == divisor && divisor > 0, "'", source_, "': layer '", layer,
                "': expected rank ", rank, " as its tensors have, got ", stated,
                "; hint: the configuration belongs to another file");
    const double alpha = lookup(alphas_, layer, alpha_);
    TORCH_CHECK(std::isfinite(alpha) && alpha != 0, "'", source_, "': layer '", layer,
                "': expected an alpha other than zero, got ", alpha);
    return alpha / (rslora_ ? std::sqrt(divisor) : divisor);
  }

  const std::string& source() const { return source_; }

 private:
  using Pattern = std::map<std::string, double>;

  // Initialisations that subtract the adapter's start from the base weights.
  static bool alters_base(const std::string& init) {
    for (const char* name : {"pissa", "olora", "corda", "loftq"}) {
      if (init.rfind(name, 0) == 0) return true;
    }
    return false;
  }

  static Pattern pattern(const JsonValue& json) {
    Pattern result;
    for (const auto& [key, value] : json.object()) result[key] = value.number();
    return result;
  }

  // A file may bring any expression: with libstdc++ none can take exponential time or fill the
  // stack.
  static std::regex::flag_type syntax() {
#ifdef __GLIBCXX__
    return std::regex::ECMAScript | std::regex_constants::__polynomial;
#else
    return std::regex::ECMAScript;
#endif
  }

  // PEFT matches a key as the regular expression (.*\.)?(key)$; nearly all keys are plain names.
  bool matches(const std::string& key, const std::string& layer) const {
    const bool plain = key.find_first_of("*+?[](){}|^$\\") == key.npos;
    if (plain) {
      return layer == key ||
             (layer.size() > key.size() + 1 &&
              layer.compare(layer.size() - key.size() - 1, layer.npos, "." + key) == 0);
    }
    TORCH_CHECK(key.size() <= 1000, "'", source_, "': expected a pattern of at most 1000 ",
                "characters, got ", key.size());
    try {
      return std::regex_match(layer, std::regex("(.*\\.)?(" + key + ")", syntax()));
    } catch (const std::regex_error&) {
      TORCH_CHECK(false, "'", source_, "': expected a regular expression, got '", key, "'");
    }
  }

  double lookup(const Pattern& pattern, const std::string& layer, double otherwise) const {
    for (const auto& [key, value] : pattern) {
      if (matches(key, layer)) return value;
    }
    return otherwise;
  }

  std::string source_;
  int64_t rank_ = 8;  // PEFT's own defaults
  double alpha_ = 8;
  bool rslora_ = false, dora_ = false;
  Pattern ranks_, alphas_;
};

}  // namespace lightlora::detail
