// SPDX-License-Identifier: Apache-2.0
#include "models/config.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <utility>

#include "support/cli/fmt.h"
#include "support/files/limits.h"

namespace sd {

namespace {

// The largest value of a field: layers are made before weights are read, so a text of a few bytes
// must not be able to ask for any number of them.
int64_t most_of(const std::string& field) {
  static const std::map<std::string, int64_t> bounds{
      {"layers_per_block", limits::kBlockLayers},
      {"transformer_layers_per_block", limits::kBlockLayers},
      {"reverse_transformer_layers_per_block", limits::kBlockLayers},
      {"num_hidden_layers", limits::kTextLayers},
      {"vocab_size", limits::kVocabulary},
      {"max_position_embeddings", limits::kPositions},
      {"conv_in_kernel", limits::kKernel},
      {"conv_out_kernel", limits::kKernel},
      {"sample_size", limits::kSampleSize}};
  const auto found = bounds.find(field);
  return found == bounds.end() ? limits::kChannels : found->second;
}

bool is_list_of(const nlohmann::json& value, bool (*good)(const nlohmann::json&)) {
  return value.is_array() && !value.empty() &&
         value.size() <= static_cast<size_t>(limits::kLevels) &&
         std::all_of(value.begin(), value.end(), good);
}

}  // namespace

ConfigReader::ConfigReader(const nlohmann::json& config, std::string source)
    : config_(config), source_(std::move(source)) {}

const nlohmann::json* ConfigReader::find(const std::string& field) const {
  const auto found = config_.find(field);
  return found == config_.end() ? nullptr : &*found;
}

void ConfigReader::fail(const std::string& field, const std::string& expected) const {
  const nlohmann::json* value = find(field);
  TORCH_CHECK_VALUE(false, "'", source_, "': expected ", field, " to be ", expected, ", got ",
                    value ? value->dump() : "nothing");
  std::abort();  // not reached: the check above throws
}

int64_t ConfigReader::integer(const std::string& field, int64_t otherwise) const {
  const nlohmann::json* value = find(field);
  if (!value) return otherwise;
  if (!value->is_number_integer()) fail(field, "an integer");
  return value->get<int64_t>();
}

int64_t ConfigReader::positive(const std::string& field, int64_t otherwise) const {
  const int64_t value = integer(field, otherwise);
  if (value < 1 || value > most_of(field)) {
    fail(field, fmt::format("a positive integer up to {}", most_of(field)));
  }
  return value;
}

double ConfigReader::number(const std::string& field, double otherwise) const {
  const nlohmann::json* value = find(field);
  if (!value) return otherwise;
  if (!value->is_number()) fail(field, "a number");
  return value->get<double>();
}

bool ConfigReader::flag(const std::string& field, bool otherwise) const {
  const nlohmann::json* value = find(field);
  if (!value) return otherwise;
  if (!value->is_boolean()) fail(field, "true or false");
  return value->get<bool>();
}

std::optional<int64_t> ConfigReader::optional_positive(const std::string& field) const {
  const nlohmann::json* value = find(field);
  if (!value || value->is_null()) return std::nullopt;
  return positive(field, 1);
}

std::vector<std::string> ConfigReader::texts(const std::string& field,
                                             const std::vector<std::string>& otherwise) const {
  const nlohmann::json* value = find(field);
  if (!value) return otherwise;
  const auto is_text = [](const nlohmann::json& item) { return item.is_string(); };
  if (!is_list_of(*value, is_text)) {
    fail(field, fmt::format("a list of 1 to {} names", limits::kLevels));
  }
  return value->get<std::vector<std::string>>();
}

std::vector<int64_t> ConfigReader::positives(const std::string& field,
                                             const std::vector<int64_t>& otherwise) const {
  const nlohmann::json* value = find(field);
  if (!value) return otherwise;
  const auto good = [](const nlohmann::json& item) {
    return item.is_number_integer() && item.get<int64_t>() > 0;
  };
  const bool single = good(*value);
  const auto values = single                     ? std::vector<int64_t>{value->get<int64_t>()}
                      : is_list_of(*value, good) ? value->get<std::vector<int64_t>>()
                                                 : std::vector<int64_t>{};
  if (values.empty() || *std::max_element(values.begin(), values.end()) > most_of(field)) {
    fail(field, fmt::format("a positive integer up to {} or a list of up to {}", most_of(field),
                            limits::kLevels));
  }
  return values;
}

std::vector<std::vector<int64_t>> ConfigReader::positive_lists(
    const std::string& field, const std::vector<std::vector<int64_t>>& otherwise) const {
  const nlohmann::json* value = find(field);
  if (!value || value->is_null()) return otherwise;
  const int64_t most = most_of(field);
  const auto good = [&](const nlohmann::json& item) {
    return item.is_number_integer() && item.get<int64_t>() > 0 && item.get<int64_t>() <= most;
  };
  const auto good_list = [&](const nlohmann::json& item) {
    return item.is_array() && !item.empty() &&
           item.size() <= static_cast<size_t>(limits::kBlockLayers) &&
           std::all_of(item.begin(), item.end(), good);
  };
  if (good(*value)) return {{value->get<int64_t>()}};
  const auto good_level = [&](const nlohmann::json& item) { return good(item) || good_list(item); };
  if (!value->is_array() || value->empty() ||
      value->size() > static_cast<size_t>(limits::kLevels) ||
      !std::all_of(value->begin(), value->end(), good_level)) {
    fail(field,
         fmt::format("a positive integer up to {}, or a list of them or of lists of them", most));
  }
  std::vector<std::vector<int64_t>> lists;
  for (const auto& item : *value) {
    lists.push_back(item.is_array() ? item.get<std::vector<int64_t>>()
                                    : std::vector<int64_t>{item.get<int64_t>()});
  }
  return lists;
}

std::vector<bool> ConfigReader::flags(const std::string& field,
                                      const std::vector<bool>& otherwise) const {
  const nlohmann::json* value = find(field);
  if (!value) return otherwise;
  const auto good = [](const nlohmann::json& item) { return item.is_boolean(); };
  if (good(*value)) return {value->get<bool>()};
  if (!is_list_of(*value, good)) {
    fail(field, "true, false or a list of them");
  }
  return value->get<std::vector<bool>>();
}

void ConfigReader::supports(const std::string& field,
                            const std::vector<nlohmann::json>& values) const {
  const nlohmann::json* value = find(field);
  if (!value || std::find(values.begin(), values.end(), *value) != values.end()) return;
  std::string known;
  for (const auto& item : values) known += (known.empty() ? "" : " or ") + item.dump();
  fail(field, known + " (others are not supported)");
}

}  // namespace sd
