// SPDX-License-Identifier: Apache-2.0
#include "lora_files/choose_family.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "support/cli/fmt.h"
#include "support/files/json_file.h"

namespace lora_files {
namespace {

namespace fs = std::filesystem;

const Family& family_at(int index) { return families()[static_cast<size_t>(index)]; }

bool is_text_encoder(const NamedPlace& found) {
  const auto& component =
      family_at(found.family).components[static_cast<size_t>(found.place.component)];
  return component.diffusers.rfind("text_encoder", 0) == 0;
}

// Families with the most names; none if these are text encoders' alone, or too few.
std::set<int> by_names(const std::vector<Candidate>& tensors) {
  std::map<int, size_t> counts;
  bool main = false;
  for (const auto& tensor : tensors) {
    std::set<int> of;
    for (const auto& place : tensor.places) {
      of.insert(place.family);
      main = main || !is_text_encoder(place);
    }
    for (const int family : of) ++counts[family];
  }
  size_t most = 0;
  for (const auto& item : counts) most = std::max(most, item.second);
  std::set<int> found;
  if (!main || 2 * most < tensors.size()) return found;
  for (const auto& [family, count] : counts) {
    if (count == most) found.insert(family);
  }
  return found;
}

struct Sizes {
  int64_t in = 0, out = 0;
};

// Those that a part tells.
Sizes sizes_told(const Candidate& tensor, const std::string& in, const std::string& out,
                 const std::string& both) {
  constexpr int64_t kMost = 1'000'000;
  const int64_t rows = std::min(tensor.shape[0], kMost), columns = std::min(tensor.shape[1], kMost);
  const bool whole = tensor.part == both;
  return {whole || tensor.part == in ? columns : 0, whole || tensor.part == out ? rows : 0};
}

std::map<std::string, Sizes> sizes_of(const std::vector<Candidate>& tensors) {
  std::map<std::string, Sizes> sizes;
  std::map<std::string, std::array<Sizes, 2>> products;  // the factors of a LoKr
  const auto keep = [](Sizes& kept, const Sizes& told) {
    if (told.in > 0) kept.in = told.in;
    if (told.out > 0) kept.out = told.out;
  };
  for (const auto& tensor : tensors) {
    if (tensor.shape.size() < 2) continue;
    keep(sizes[tensor.layer], sizes_told(tensor, "down", "up", "diff"));
    keep(sizes[tensor.layer], sizes_told(tensor, "hada_w1_b", "hada_w1_a", ""));
    auto& [first, second] = products[tensor.layer];
    keep(first, sizes_told(tensor, "lokr_w1_b", "lokr_w1_a", "lokr_w1"));
    keep(second, sizes_told(tensor, "lokr_w2_b", "lokr_w2_a", "lokr_w2"));
  }
  for (const auto& [layer, factors] : products) {
    const auto& [first, second] = factors;
    keep(sizes[layer], {first.in * second.in, first.out * second.out});
  }
  return sizes;
}

using Fits = std::function<bool(const Family&, const NamedPlace&, const Sizes&)>;

// Those of which no layer contradicts; all of them if each is contradicted.
std::set<int> by_sizes(const std::set<int>& families, const std::vector<Candidate>& tensors,
                       const Fits& fits) {
  if (families.size() < 2) return families;
  const auto sizes = sizes_of(tensors);
  std::set<int> left = families;
  for (const auto& tensor : tensors) {
    const auto found = sizes.find(tensor.layer);
    if (found == sizes.end()) continue;
    for (const auto& place : tensor.places) {
      if (!fits(family_at(place.family), place, found->second)) left.erase(place.family);
    }
  }
  return left.empty() ? families : left;
}

bool has_ratio(const Family& family, const NamedPlace& place, const Sizes& sizes) {
  const auto& kind = kind_at(family, place.place);
  const bool whole = place.place.part == Place::kWhole;
  if (!whole || kind.ratio == 0 || sizes.in == 0 || sizes.out == 0) return true;
  return static_cast<double>(sizes.out) == kind.ratio * static_cast<double>(sizes.in);
}

bool has_width(const Family& family, const NamedPlace& place, const Sizes& sizes) {
  if (place.place.component != 0 || sizes.in == 0) return true;
  const std::string name = diffusers_name(family, place.place);
  const auto ends = [&](const std::string& end) {
    return name.size() > end.size() && name.substr(name.size() - end.size()) == end;
  };
  if (!ends("to_q") && !ends("add_q_proj")) return true;
  return std::count(family.widths.begin(), family.widths.end(), sizes.in) > 0;
}

// The configuration of the transformer: a file, or in a folder of it or of the whole pipeline.
fs::path config_in(const std::string& path) {
  if (!fs::is_directory(path)) return path;
  const auto inner = fs::path(path) / "transformer" / "config.json";
  return fs::exists(inner) ? inner : fs::path(path) / "config.json";
}

int by_config(const std::string& path, const std::set<int>& found, const std::string& config) {
  const auto file = config_in(config).string();
  const auto json = sd::read_json_file(file);
  const auto name = json.find("_class_name");
  const std::string value =
      name != json.end() && name->is_string() ? name->get<std::string>() : "none";
  for (size_t i = 0; i < families().size(); ++i) {
    const auto& classes = families()[i].classes;
    if (std::count(classes.begin(), classes.end(), value) == 0) continue;
    TORCH_CHECK(found.count(static_cast<int>(i)) > 0, "'", path, "': expected layers of ",
                families()[i].name, ", as --model_config says, got names of another family");
    return static_cast<int>(i);
  }
  TORCH_CHECK(false, "'", file, "': expected _class_name of a transformer such as ",
              families()[0].classes[0], ", got '", value, "'");
}

// What decides where a tensor goes. The name is enough where it stays on its side; where it changes
// sides, what it is part of, or consists of, and whether its halves turn.
std::string outcome(const std::string& format, int family, const Candidate& tensor) {
  for (const auto& found : tensor.places) {
    if (found.family != family) continue;
    const auto& own = family_at(family);
    const auto spelling = spelling_of(format, own);
    const auto& kind = kind_at(own, found.place);
    const auto name = spelled(spelling, own, found.place);
    if (found.original == spelling.original || (!kind.is_fused() && kind.rows == Rows::same)) {
      return name;
    }
    return fmt::format("{} {} {} {}", name, fmt::join(kind.diffusers, ","),
                       static_cast<int>(kind.rows), found.place.part);
  }
  return "";
}

}  // namespace

std::optional<int> choose_family(const std::string& path, const std::vector<Candidate>& tensors,
                                 const ReadTransformer& options) {
  auto found = by_names(tensors);
  if (found.empty()) return std::nullopt;
  if (!options.model_config.empty()) return by_config(path, found, options.model_config);
  found = by_sizes(found, tensors, has_ratio);
  found = by_sizes(found, tensors, has_width);
  const std::string format =
      options.format.empty() || options.format == "bfl" ? "diffusers" : options.format;
  const int first = *found.begin();
  const bool alike = std::all_of(tensors.begin(), tensors.end(), [&](const Candidate& tensor) {
    return std::all_of(found.begin(), found.end(), [&](int family) {
      return outcome(format, family, tensor) == outcome(format, first, tensor);
    });
  });
  if (alike) return first;
  std::vector<std::string> names;
  for (const int family : found) names.push_back(family_at(family).name);
  TORCH_CHECK(false, "'", path, "': expected layers that one family alone has, got such of ",
              fmt::format("{}", fmt::join(names, " or ")),
              "; hint: --model_config names the model's folder or its transformer's config.json");
}

}  // namespace lora_files
