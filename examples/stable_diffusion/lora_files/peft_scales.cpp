// SPDX-License-Identifier: Apache-2.0
#include "lora_files/peft_scales.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "lora_files/families.h"
#include "support/files/json_file.h"

namespace lora_files {
namespace {

constexpr size_t kMostPatterns = 10'000;

std::optional<double> number(const nlohmann::json& json, const std::string& field,
                             const std::string& source) {
  const auto found = json.find(field);
  if (found == json.end() || found->is_null()) return std::nullopt;
  TORCH_CHECK(found->is_number(), "'", source, "': expected a number as ", field, ", got ",
              found->type_name());
  return found->get<double>();
}

// PEFT matches a key as the expression (.*\.)?(key)$; nearly all are plain names, whole if they begin
// with ^.
lightlora::Pattern pattern_of(const std::string& key) {
  const bool whole = !key.empty() && key[0] == '^';
  const std::string name = whole ? key.substr(1) : key;
  const bool plain = name.find_first_of("*+?[](){}|^$\\") == std::string::npos;
  if (!plain) return lightlora::matches("(.*\\.)?(" + key + ")");
  if (!whole) return {name};
  return {name, [name](const std::string& path) { return path == name; }};
}

}  // namespace

std::optional<PeftScales> PeftScales::beside(const lightlora::TensorFile& file) {
  PeftScales scales;
  const bool peft = std::any_of(file.tensors().begin(), file.tensors().end(), [](const auto& info) {
    return info.name.rfind("base_model.model.", 0) == 0;
  });
  const auto config = std::filesystem::path(file.path()).parent_path() / "adapter_config.json";
  if (peft && std::filesystem::exists(config)) {
    scales.source_ = config.string();
    scales.of_folder_ = true;
    scales.read(sd::read_json_file(config.string()), "");
    return scales;
  }
  const auto found = file.metadata().find("lora_adapter_metadata");
  if (found == file.metadata().end()) return std::nullopt;
  scales.source_ = file.path() + ": lora_adapter_metadata";
  const auto json = sd::parse_json(found->second, "'" + scales.source_ + "'");
  TORCH_CHECK(json.is_object(), "'", scales.source_, "': expected a JSON object, got ",
              json.type_name());
  for (const auto& family : families()) {
    for (const auto& component : family.components) scales.read(json, component.diffusers);
  }
  return scales;
}

void PeftScales::read(const nlohmann::json& json, const std::string& prefix) {
  const auto known = std::any_of(models_.begin(), models_.end(),
                                 [&](const Model& model) { return model.prefix == prefix; });
  if (known) return;
  Model model;
  model.prefix = prefix;
  model.alpha = number(json, prefix + "lora_alpha", source_);
  if (!model.alpha) model.alpha = number(json, prefix + "alpha", source_);
  const auto rslora = json.find(prefix + "use_rslora");
  model.rslora = rslora != json.end() && rslora->is_boolean() && rslora->get<bool>();
  model.alphas = patterns(json, prefix + "alpha_pattern");
  models_.push_back(std::move(model));
}

PeftScales::Patterns PeftScales::patterns(const nlohmann::json& json,
                                          const std::string& field) const {
  Patterns result;
  const auto found = json.find(field);
  if (found == json.end() || found->is_null()) return result;
  TORCH_CHECK(found->is_object() && found->size() <= kMostPatterns, "'", source_,
              "': expected an object of at most ", kMostPatterns, " numbers as ", field, ", got ",
              found->type_name());
  for (const auto& [key, value] : found->items()) {
    TORCH_CHECK(value.is_number(), "'", source_, "': expected numbers in ", field, ", got ",
                value.type_name());
    result.emplace_back(pattern_of(key), value.get<double>());
  }
  return result;
}

double PeftScales::scale(const std::string& component, const std::string& layer,
                         int64_t rank) const {
  const auto model = std::find_if(models_.begin(), models_.end(), [&](const Model& candidate) {
    return of_folder_ || candidate.prefix == component;
  });
  if (model == models_.end() || rank <= 0) return 1;
  lightlora::TargetLayer target;
  target.path = layer;
  // Without one in diffusers' metadata the strength is 1; PEFT's own default is 8.
  double alpha = model->alpha.value_or(of_folder_ ? 8 : static_cast<double>(rank));
  for (const auto& [pattern, value] : model->alphas) {
    if (!pattern.selects(target)) continue;
    alpha = value;
    break;
  }
  TORCH_CHECK(std::isfinite(alpha) && alpha != 0, "'", source_, "': layer '", layer,
              "': expected an alpha other than zero, got ", alpha);
  const auto divisor = static_cast<double>(rank);
  return alpha / (model->rslora ? std::sqrt(divisor) : divisor);
}

std::string peft_type_in(const std::string& config) {
  const auto json = sd::read_json_file(config);
  const auto type = json.find("peft_type");
  return type != json.end() && type->is_string() ? type->get<std::string>() : "";
}

}  // namespace lora_files
