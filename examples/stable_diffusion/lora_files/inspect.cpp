// SPDX-License-Identifier: Apache-2.0
#include "lora_files/inspect.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

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
};

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

void print_table(const lightlora::Components& components) {
  std::vector<std::vector<std::string>> rows{
      {"component", "kind", "layers", "method", "rank", "alpha", "values"}};
  for (const auto& [component, state] : components) {
    std::map<std::string, Summary> kinds;
    for (const auto& layer : state) kinds[kind_of(layer.layer.name)].add(layer);
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

// A folder has none.
std::string hash_of(const std::string& path) {
  return std::filesystem::is_regular_file(path) ? lightlora::file_hash(path) : "";
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
    print_row(name.empty() ? "(unnamed)" : cli::printable(name),
              fmt::format("{} layers, {}, rank {}, alpha {}, scale {}, {} values", sum.layers,
                          list_text(sum.methods), range_text(sum.ranks), range_text(sum.alphas),
                          range_text(sum.scales), cli::format_count(sum.values)));
  }
  if (!contents.embeddings.empty()) print_row("embeddings", list_text(contents.embeddings));
  if (!contents.ignored.empty()) {
    print_row("ignored",
              fmt::format("{} tensors: {}", contents.ignored.size(),
                          list_text({contents.ignored.begin(), contents.ignored.end()})));
  }
  std::set<std::string> keys;
  for (const auto& item : contents.metadata) keys.insert(item.first);
  print_row("metadata", keys.empty() ? "none" : list_text(keys));
  fmt::print("\n");
  print_table(contents.components);
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
  fmt::print("{}\n",
             json.dump(2, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace));
}

}  // namespace lora_files
