// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/lightlora.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lora_files {

/// The strength of each layer, which PEFT and diffusers keep beside the tensors.
class PeftScales {
 public:
  /// What belongs to a file: `adapter_config.json` in its folder, if it has PEFT's names, or the
  /// `lora_adapter_metadata` in it; none if there is neither.
  /// Errors: c10::Error naming it for one that is no such configuration
  static std::optional<PeftScales> beside(const lightlora::TensorFile& file);

  /// Alpha by the rank, or by its root. `component` is diffusers' prefix.
  /// Errors: c10::Error if alpha is zero or not finite
  double scale(const std::string& component, const std::string& layer, int64_t rank) const;

 private:
  using Patterns = std::vector<std::pair<lightlora::Pattern, double>>;
  struct Model {
    std::string prefix;  // of its fields
    std::optional<double> alpha;
    bool rslora = false;
    Patterns alphas;
  };

  void read(const nlohmann::json& json, const std::string& prefix);
  Patterns patterns(const nlohmann::json& json, const std::string& field) const;

  std::string source_;
  bool of_folder_ = false;  // PEFT's: one model, whose fields have no prefix
  std::vector<Model> models_;
};

/// The method that PEFT's configuration names; nothing where it does not say, and LoRA is meant.
/// Errors: c10::Error for a file that is no JSON object
std::string peft_type_in(const std::string& config);

}  // namespace lora_files
