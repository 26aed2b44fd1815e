// SPDX-License-Identifier: Apache-2.0
#include "pipeline/single_file_scheduler.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <sstream>
#include <string>

#include "support/files/limits.h"

namespace sd {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPredictionKey = "modelspec.prediction_type";

struct MarkedPrediction {
  bool velocity = false;
  bool zero_snr = false;  // the schedule ends in pure noise
};

// "v", "v_prediction" and "velocity"; "epsilon" and "eps". A third is not known to the others.
std::optional<MarkedPrediction> from_word(const std::string& word) {
  if (word.empty() || (word[0] != 'v' && word[0] != 'e')) return std::nullopt;
  return MarkedPrediction{word[0] == 'v', word.find("zsnr") != std::string::npos};
}

std::optional<MarkedPrediction> from_tensors(const lightlora::TensorFile& file) {
  const auto has = [&](const std::string& name) {
    return file.contains(name) || file.contains("state_dict." + name);
  };
  if (!has("v_pred")) return std::nullopt;
  return MarkedPrediction{true, has("ztsnr")};
}

std::optional<MarkedPrediction> from_metadata(const lightlora::TensorFile& file) {
  for (const char* key : {kPredictionKey, "modelspec.predict_key"}) {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end()) continue;
    if (const auto prediction = from_word(found->second)) return prediction;
  }
  return std::nullopt;
}

// The original code's configuration, in which noise is what is predicted unless it says otherwise.
std::optional<MarkedPrediction> from_yaml(const lightlora::TensorFile& file) {
  const fs::path path = fs::path(file.path()).replace_extension(".yaml");
  if (!fs::exists(path)) return std::nullopt;
  const std::string text = lightlora::read_file(path.string(), limits::kYamlBytes);
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const std::string key = "parameterization:", plain = "abcdefghijklmnopqrstuvwxyz0123456789_";
    const auto begin = line.find_first_not_of(" \t");
    if (begin == std::string::npos || line.compare(begin, key.size(), key) != 0) continue;
    auto word = line.find_first_not_of(" \t", begin + key.size());
    if (word == std::string::npos) continue;
    if (line[word] == '"' || line[word] == '\'') ++word;
    const auto end = std::min(line.find_first_not_of(plain, word), line.size());
    if (end > word) return from_word(line.substr(word, end - word));
  }
  if (text.find("linear_start:") != std::string::npos) return MarkedPrediction{};
  return std::nullopt;
}

std::optional<MarkedPrediction> prediction_of(const lightlora::TensorFile& file) {
  if (const auto marked = from_tensors(file)) return marked;
  if (const auto said = from_metadata(file)) return said;
  return from_yaml(file);
}

}  // namespace

nlohmann::json single_file_scheduler(const lightlora::TensorFile& file, ModelFamily family) {
  nlohmann::json config{{"_class_name", "PNDMScheduler"},
                        {"beta_start", 0.00085},
                        {"beta_end", 0.012},
                        {"beta_schedule", "scaled_linear"},
                        {"num_train_timesteps", 1000},
                        {"steps_offset", 1},
                        {"clip_sample", false},
                        {"set_alpha_to_one", false},
                        {"skip_prk_steps", true},
                        {"prediction_type", "epsilon"}};
  if (family == ModelFamily::sdxl) {
    config["_class_name"] = "EulerDiscreteScheduler";
    config["timestep_spacing"] = "leading";
  }
  const auto prediction = prediction_of(file);
  if (!prediction) {
    const bool velocity = family == ModelFamily::sd2;
    if (velocity) config["prediction_type"] = "v_prediction";
    TORCH_WARN_ONCE("'", file.path(), "': nothing says what its UNet predicts; taken to be ",
                    velocity ? "v (v_prediction)" : "noise (epsilon)", ", as in Stable Diffusion ",
                    velocity                      ? "2.1"
                    : family == ModelFamily::sdxl ? "XL"
                                                  : "1.x",
                    "; hint: for another model name a folder with its ",
                    "scheduler/scheduler_config.json by --model_config");
    return config;
  }
  if (prediction->velocity) config["prediction_type"] = "v_prediction";
  if (prediction->zero_snr) {
    config["rescale_betas_zero_snr"] = true;
    config["timestep_spacing"] = "trailing";  // others leave out the last step, of pure noise
  }
  return config;
}

lightlora::Metadata prediction_metadata(const nlohmann::json& scheduler) {
  const auto found = scheduler.find("prediction_type");
  const auto type = found != scheduler.end() && found->is_string() ? found->get<std::string>()
                                                                   : std::string("epsilon");
  if (type == "epsilon") return {{kPredictionKey, "epsilon"}};
  if (type == "v_prediction") return {{kPredictionKey, "v"}};
  return {};
}

}  // namespace sd
