// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>
#include <lightlora/detail/formats/json.h>
#include <lightlora/detail/formats/linear_regex.h>
#include <lightlora/detail/formats/safetensors_format.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace lightlora::detail {

/// How often PEFT adds the delta of a MultiheadAttention's output projection.
inline constexpr double kPeftOutputProjection = 2;

/// What PEFT adds to the rank that it divides AdaLoRA's alpha by.
inline constexpr double kPeftAdaLoRA = 1e-5;

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
      const auto* type = field("peft_type");
      const std::string method = type == nullptr ? "LORA" : type->string();
      adalora_ = method == "ADALORA";
      std::size_t steps = 0;
      // AdaLoRA's says which ranks are left, as the tensors do.
      if (const auto* value = field("rank_pattern"); value != nullptr && !adalora_) {
        ranks_ = pattern(*value, source_, steps);
      }
      if (const auto* value = field("alpha_pattern")) alphas_ = pattern(*value, source_, steps);
      if (const auto* value = field("use_dora")) dora_ = value->boolean();
      const auto* init = field("init_lora_weights");
      TORCH_CHECK(
          init == nullptr || init->type() != JsonType::string || !alters_base(init->string()), "'",
          source_, "': expected adapters of the unchanged base model, got those of ",
          "initialisation ", shown(init->string()), "; hint: convert them to plain LoRA with PEFT");
      scales_ = adalora_ || method == "LORA" || method == "LOHA" || method == "LOKR" ||
                method == "GRALORA";
      const bool alone =
          method == "HIRA" || method == "MISS" || method == "OFT" || method == "BOFT";
      TORCH_CHECK(
          scales_ || alone, "'", source_,
          "': expected the PEFT method LORA, ADALORA, LOHA, LOKR, GRALORA, HIRA, MISS, OFT ",
          "or BOFT, got ", shown(method), ", which is not supported");
      read_method(field, method);
    } catch (const JsonError& error) {
      TORCH_CHECK(false, "'", source_, "': expected the fields of PEFT's LoraConfig, got '",
                  error.what(), "'");
    }
  }

  /// OFT: the width of its blocks, or 0 where their number is given; the terms of its series, or 0
  /// where it is exact.
  int64_t oft_block_size() const { return oft_block_size_; }
  int64_t oft_terms() const { return oft_terms_; }

  /// Whether the layers have DoRA magnitudes.
  bool dora() const { return dora_; }

  /// Alpha and scale of a layer whose factors have that rank; 0 if they do not tell it.
  /// Errors: c10::Error if the configuration says another rank
  double scale(const std::string& layer, int64_t rank) const {
    if (!scales_) return 1.0;
    if (adalora_) return adalora_scale(layer);
    const double stated = lookup(ranks_, layer, static_cast<double>(rank_));
    const double divisor = rank > 0 ? static_cast<double>(rank) : stated;
    TORCH_CHECK(stated == divisor && divisor > 0, "'", source_, "': layer ", shown(layer),
                ": expected rank ", rank, " as its tensors have, got ", stated,
                "; hint: the configuration belongs to another file");
    const double alpha = lookup(alphas_, layer, alpha_);
    TORCH_CHECK(std::isfinite(alpha) && alpha != 0, "'", source_, "': layer ", shown(layer),
                ": expected an alpha other than zero, got ", alpha);
    return alpha / (rslora_ ? std::sqrt(divisor) : divisor);
  }

  const std::string& source() const { return source_; }

 private:
  // Of the rank at the start, whatever is left of it; 1e-5 is PEFT's.
  double adalora_scale(const std::string& layer) const {
    const double divisor = static_cast<double>(init_rank_) + kPeftAdaLoRA;
    TORCH_CHECK(init_rank_ > 0 && std::isfinite(alpha_) && alpha_ != 0, "'", source_, "': layer ",
                shown(layer),
                ": expected an init_r of at least 1 and an alpha other than zero, got ", init_rank_,
                " and ", alpha_);
    return alpha_ / divisor;
  }

  // What changes the meaning of a method's tensors.
  template <typename Field>
  void read_method(const Field& field, const std::string& method) {
    const auto refuse_if = [&](const char* name, bool given) {
      TORCH_CHECK(!given, "'", source_, "': expected a method without ", name,
                  ", got one with it, ",
                  "which is not supported; hint: convert it to plain LoRA with PEFT");
    };
    for (const char* name : {"coft", "block_share"}) {
      const auto* value = field(name);
      refuse_if(name, value != nullptr && value->boolean());
    }
    if (const auto* value = field("hybrid_r")) refuse_if("hybrid_r", value->integer() != 0);
    // MiSS' "bat" and "mini" are other computations, not other starts.
    if (const auto* value = field("init_weights"); value != nullptr && method == "MISS") {
      refuse_if("init_weights", value->type() == JsonType::string);
    }
    if (const auto* value = field("init_r")) init_rank_ = value->integer();
    if (const auto* value = field("oft_block_size")) oft_block_size_ = value->integer();
    if (const auto* value = field("num_cayley_neumann_terms")) oft_terms_ = value->integer();
    const auto* series = field("use_cayley_neumann");
    if (series != nullptr && !series->boolean()) oft_terms_ = 0;
  }

  struct Pattern {
    std::map<std::string, double> plain;
    std::vector<std::tuple<std::string, LinearRegex, double>> others;
  };
  // What all expressions of a file cost for each character of each layer's name.
  static constexpr std::size_t kMostPatternSteps = 20'000;

  // Initialisations that subtract the adapter's start from the base weights.
  static bool alters_base(const std::string& init) {
    for (const char* name : {"pissa", "olora", "corda", "loftq", "lora_ga"}) {
      if (init.rfind(name, 0) == 0) return true;
    }
    return false;
  }

  static Pattern pattern(const JsonValue& json, const std::string& source, std::size_t& steps) {
    Pattern result;
    for (const auto& [key, value] : json.object()) {
      // PEFT matches a key as the regular expression (.*\.)?(key)$; nearly all are plain names.
      if (key.find_first_of("*+?[](){}|^$\\") == key.npos) {
        result.plain[key] = value.number();
        continue;
      }
      try {
        result.others.emplace_back(key, LinearRegex("(.*\\.)?(" + key + ")"), value.number());
      } catch (const RegexError& error) {
        TORCH_CHECK(false, "'", source, "': the pattern ", shown(key), ": ", error.what());
      }
      steps += std::get<1>(result.others.back()).steps();
      TORCH_CHECK(steps <= kMostPatternSteps, "'", source, "': expected patterns of at most ",
                  kMostPatternSteps, " steps in all, got more");
    }
    return result;
  }

  // The value of the first key, in the order of their characters, that matches.
  static double lookup(const Pattern& pattern, const std::string& layer, double otherwise) {
    const auto* best = &layer;
    const double* value = nullptr;
    const auto offer = [&](const std::string& key, const double& found) {
      if (value != nullptr && *best < key) return;
      best = &key;
      value = &found;
    };
    for (std::size_t at = 0; at != layer.npos;) {  // the layer's name and its ends behind each dot
      const auto found = pattern.plain.find(layer.substr(at));
      if (found != pattern.plain.end()) offer(found->first, found->second);
      const std::size_t dot = layer.find('.', at);
      at = dot == layer.npos ? layer.npos : dot + 1;
    }
    for (const auto& [key, regex, number] : pattern.others) {
      if (regex.matches(layer)) offer(key, number);
    }
    return value == nullptr ? otherwise : *value;
  }

  std::string source_;
  int64_t rank_ = 8;  // PEFT's own defaults
  double alpha_ = 8;
  int64_t oft_block_size_ = 32, oft_terms_ = 5;
  int64_t init_rank_ = 12;
  bool rslora_ = false, dora_ = false, scales_ = true, adalora_ = false;
  Pattern ranks_, alphas_;
};

}  // namespace lightlora::detail
