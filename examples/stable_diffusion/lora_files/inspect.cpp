// SPDX-License-Identifier: Apache-2.0
#include "lora_files/inspect.h"

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "lora_files/doctor.h"
#include "lora_files/key_names.h"
#include "lora_files/ranges.h"
#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/cli/message.h"

namespace lora_files {
namespace {

using lightlora::AdapterState;
using lightlora::LayerState;

double alpha_of(const LayerState& layer) {
  return layer.scale * static_cast<double>(layer.options.rank());
}

std::string method_of(const LayerState& layer) {
  return layer.options.dora() ? layer.variant + " with DoRA" : layer.variant;
}

int64_t values_of(const LayerState& layer) {
  int64_t sum = 0;
  for (const auto& item : layer.trained) sum += item.second.numel();
  return sum;
}

std::string list_text(const std::set<std::string>& values) {
  return cli::printable(fmt::format("{}", fmt::join(values, ", ")));
}

// One layer of a file that is read by its names alone.
struct NamedLayer {
  std::string model;
  std::set<std::string> methods;
  std::optional<int64_t> rank;
  std::optional<double> alpha;
  int64_t values = 0;

  void add(const TensorName& name, const lightlora::TensorInfo& info) {
    model = name.model;
    if (!name.method.empty()) methods.insert(name.method);
    if (name.part == "alpha") return;
    values += c10::multiply_integers(info.shape);
    const bool inner = name.part == "down" || name.part == "hada_w1_b" || name.part == "lokr_w2_b";
    if (inner && !info.shape.empty()) rank = info.shape[0];
  }
};

// What several layers have in common.
struct Summary {
  int64_t layers = 0, values = 0;
  std::set<std::string> methods;
  std::set<int64_t> ranks;
  std::set<double> alphas, scales;

  void add(const LayerState& layer) {
    ++layers;
    values += values_of(layer);
    methods.insert(method_of(layer));
    ranks.insert(layer.options.rank());
    alphas.insert(alpha_of(layer));
    scales.insert(layer.scale);
  }
  void add(const NamedLayer& layer) {
    ++layers;
    values += layer.values;
    methods.insert(layer.methods.begin(), layer.methods.end());
    if (layer.rank) ranks.insert(*layer.rank);
    if (layer.alpha) alphas.insert(*layer.alpha);
    if (layer.rank && *layer.rank > 0 && layer.alpha) {
      scales.insert(*layer.alpha / static_cast<double>(*layer.rank));
    }
  }
};

using Kinds = std::map<std::string, std::map<std::string, Summary>>;  // by component and kind

// The part of a layer's name behind the numbers that count blocks: "attn1.to_q".
std::string kind_of(const std::string& name) {
  for (const char* container :
       {"transformer_blocks.", "layers.", "resnets.", "attentions.", "samplers."}) {
    const auto at = name.rfind(container);
    if (at == std::string::npos) continue;
    const auto dot = name.find('.', at + std::string(container).size());
    if (dot != std::string::npos) return name.substr(dot + 1);
  }
  return name;
}

void print_row(const std::string& name, const std::string& value) {
  fmt::print("{:<11} {}\n", name, cli::printable(value));
}

void print_component(const std::string& name, const Summary& sum) {
  print_row(name.empty() ? "(unnamed)" : cli::printable(name),
            fmt::format("{} layers, {}, rank {}, alpha {}, scale {}, {} values", sum.layers,
                        list_text(sum.methods), range_text(sum.ranks), range_text(sum.alphas),
                        range_text(sum.scales), cli::format_count(sum.values)));
}

void print_metadata(const lightlora::Metadata& metadata) {
  std::set<std::string> keys;
  for (const auto& item : metadata) keys.insert(item.first);
  print_row("metadata", keys.empty() ? "none" : list_text(keys));
}

void print_table(const Kinds& components) {
  std::vector<std::vector<std::string>> rows{
      {"component", "kind", "layers", "method", "rank", "alpha", "values"}};
  for (const auto& [component, kinds] : components) {
    for (const auto& [kind, sum] : kinds) {
      rows.push_back({component.empty() ? "(unnamed)" : cli::printable(component),
                      cli::printable(kind), fmt::to_string(sum.layers), list_text(sum.methods),
                      range_text(sum.ranks), range_text(sum.alphas),
                      cli::format_count(sum.values)});
    }
  }
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += fmt::format("{:<{}}", row[i], widths[i] + 2);
    }
    fmt::print("{}\n", line.substr(0, line.find_last_not_of(' ') + 1));
  }
}

// A layer's name with a star for the number of its block.
std::string starred(const std::string& name) {
  const auto separates = [](char c) { return c == '.' || c == '_'; };
  for (std::size_t at = 1; at < name.size(); ++at) {
    if (!separates(name[at - 1])) continue;
    const auto end = std::min(name.find_first_not_of("0123456789", at), name.size());
    if (end > at && (end == name.size() || separates(name[end]))) {
      return name.substr(0, at) + "*" + name.substr(end);
    }
  }
  return name;
}

// A file by its names alone.
struct NamedFile {
  std::map<std::string, NamedLayer> layers;
  std::set<std::string> dtypes, ignored;
  lightlora::Metadata metadata;
  std::size_t tensors = 0;
  int64_t bytes = 0;
};

NamedFile read_names(const std::string& path, bool allow_trailing_bytes) {
  const auto weights = weights_in(path);
  const auto file = lightlora::open_tensors(
      weights, lightlora::SafetensorsOptions().allow_trailing_bytes(allow_trailing_bytes));
  NamedFile named;
  named.metadata = file->metadata();
  named.tensors = file->tensors().size();
  named.bytes = static_cast<int64_t>(std::filesystem::file_size(weights));
  for (const auto& info : file->tensors()) {
    const auto name = parse_name(info.name);
    if (!name) {
      named.ignored.insert(info.name);
      continue;
    }
    named.dtypes.insert(info.dtype_name);
    auto& layer = named.layers[name->layer];
    layer.add(*name, info);
    if (name->part == "alpha" && c10::multiply_integers(info.shape) == 1) {
      layer.alpha = file->load(info.name).to(at::kDouble).item<double>();
    }
  }
  return named;
}

// A folder has none.
std::string hash_of(const std::string& path) {
  return std::filesystem::is_regular_file(path) ? lightlora::file_hash(path) : "";
}

void print_as_json(const nlohmann::ordered_json& json) {
  fmt::print("{}\n",
             json.dump(2, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace));
}

void print_names_json(const std::string& path, const std::vector<std::string>& families,
                      const NamedFile& named) {
  nlohmann::ordered_json json{{"file", path},
                              {"families", families},
                              {"bytes", named.bytes},
                              {"tensors", named.tensors},
                              {"dtypes", named.dtypes}};
  if (const auto hash = hash_of(path); !hash.empty()) json["sha256"] = hash;
  json["metadata"] = named.metadata;
  json["ignored"] = named.ignored;
  json["components"] = nlohmann::ordered_json::object();
  for (const auto& [name, layer] : named.layers) {
    nlohmann::ordered_json row{{"layer", name}, {"methods", layer.methods}};
    row["rank"] = layer.rank ? nlohmann::ordered_json(*layer.rank) : nlohmann::ordered_json();
    row["alpha"] = layer.alpha ? nlohmann::ordered_json(*layer.alpha) : nlohmann::ordered_json();
    row["values"] = layer.values;
    json["components"][layer.model].push_back(std::move(row));
  }
  print_as_json(json);
}

}  // namespace

void print_contents(const std::string& path, const lightlora::AdapterFile& contents) {
  print_row("file", path);
  print_row("dialect", list_text(contents.dialects));
  print_row("size",
            fmt::format("{} in {} tensors", cli::format_bytes(contents.bytes), contents.tensors));
  print_row("dtype", list_text(contents.dtypes));
  if (const auto hash = hash_of(path); !hash.empty()) print_row("sha256", hash);
  for (const auto& [name, state] : contents.components) {
    if (state.empty()) continue;
    Summary sum;
    for (const auto& layer : state) sum.add(layer);
    print_component(name, sum);
  }
  if (!contents.embeddings.empty()) print_row("embeddings", list_text(contents.embeddings));
  if (!contents.ignored.empty()) {
    print_row("ignored",
              fmt::format("{} tensors: {}", contents.ignored.size(),
                          list_text({contents.ignored.begin(), contents.ignored.end()})));
  }
  print_metadata(contents.metadata);
  fmt::print("\n");
  Kinds kinds;
  for (const auto& [name, state] : contents.components) {
    for (const auto& layer : state) kinds[name][kind_of(layer.layer.name)].add(layer);
  }
  print_table(kinds);
}

void print_json(const std::string& path, const lightlora::AdapterFile& contents) {
  nlohmann::ordered_json json{{"file", path},
                              {"dialects", contents.dialects},
                              {"bytes", contents.bytes},
                              {"tensors", contents.tensors},
                              {"dtypes", contents.dtypes}};
  if (const auto hash = hash_of(path); !hash.empty()) json["sha256"] = hash;
  json["metadata"] = contents.metadata;
  json["embeddings"] = contents.embeddings;
  json["ignored"] = contents.ignored;
  json["components"] = nlohmann::ordered_json::object();
  for (const auto& [name, state] : contents.components) {
    auto& layers = json["components"][name] = nlohmann::ordered_json::array();
    for (const auto& layer : state) {
      layers.push_back({{"layer", layer.layer.name},
                        {"variant", layer.variant},
                        {"dora", layer.options.dora()},
                        {"in", layer.layer.in},
                        {"out", layer.layer.out},
                        {"kernel", layer.layer.kernel},
                        {"rank", layer.options.rank()},
                        {"alpha", alpha_of(layer)},
                        {"scale", layer.scale},
                        {"values", values_of(layer)}});
    }
  }
  print_as_json(json);
}

bool print_names(const std::string& path, const std::vector<std::string>& families,
                 bool allow_trailing_bytes, bool json) {
  const auto named = read_names(path, allow_trailing_bytes);
  if (named.layers.empty()) return false;
  if (json) {
    print_names_json(path, families, named);
    return true;
  }
  print_row("file", path);
  print_row("for", fmt::format("{}", fmt::join(families, " or ")));
  print_row("size", fmt::format("{} in {} tensors", cli::format_bytes(named.bytes), named.tensors));
  print_row("dtype", list_text(named.dtypes));
  if (const auto hash = hash_of(path); !hash.empty()) print_row("sha256", hash);
  std::map<std::string, Summary> models;
  Kinds kinds;
  for (const auto& [name, layer] : named.layers) {
    models[layer.model].add(layer);
    kinds[layer.model][starred(name)].add(layer);
  }
  for (const auto& [model, sum] : models) print_component(model, sum);
  if (!named.ignored.empty()) {
    print_row("ignored",
              fmt::format("{} tensors: {}", named.ignored.size(), list_text(named.ignored)));
  }
  print_metadata(named.metadata);
  fmt::print("\n");
  print_table(kinds);
  return true;
}

}  // namespace lora_files
