// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <utility>

#include "lora_files/choose_family.h"
#include "lora_files/key_names.h"
#include "lora_files/peft_scales.h"
#include "lora_files/translate.h"
#include "support/cli/fmt.h"
#include "support/cli/message.h"

namespace lora_files {
namespace {

namespace fs = std::filesystem;

// The largest models have some thousands.
constexpr size_t kMostTensors = 100'000;

// One file and the component that its folder names; empty: its names do.
struct Source {
  fs::path path;
  std::string component;
};

std::vector<Source> sources_of(const std::string& path) {
  if (!fs::is_directory(path)) return {{path, ""}};
  for (const char* name : {"adapter_model.safetensors", "pytorch_lora_weights.safetensors"}) {
    if (fs::exists(fs::path(path) / name)) return {{fs::path(path) / name, ""}};
  }
  std::vector<Source> sources;
  for (const char* component :
       {"transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "text_conditioner"}) {
    const auto file = fs::path(path) / component / "adapter_model.safetensors";
    if (fs::exists(file)) sources.push_back({file, component});
  }
  return sources;
}

// A tensor of an adapter, and the layers that it can be of.
struct Entry {
  size_t source = 0;
  std::string key;  // in the file
  std::vector<int64_t> shape;
  TensorName name;
  std::vector<NamedPlace> places;
};

std::string layer_with_component(const Source& source, const std::string& layer) {
  const std::string peft = "base_model.model.";
  if (source.component.empty() || layer.rfind(peft, 0) != 0) return layer;
  return source.component + "." + layer.substr(peft.size());
}

// Nothing for what is no adapter's.
std::optional<Entry> entry_of(const Source& source, size_t index,
                              const lightlora::TensorInfo& info) {
  const std::string& key = info.name;
  Entry entry{index, key, info.shape, {}, {}};
  if (auto name = parse_name(key)) {
    entry.name = std::move(*name);
    entry.places = places_of(layer_with_component(source, entry.name.layer));
    return entry;
  }
  // Weights of norms, whole, as BFL's own files have beside their LoRA.
  entry.name.name = entry.name.layer = key;
  entry.name.part = "set_weight";
  entry.name.method = "whole weights";
  entry.places = places_of(layer_with_component(source, key));
  if (entry.places.empty()) return std::nullopt;
  return entry;
}

// LoRA or what else the tensors of a layer make up.
std::string method_of(const LayerValues& values, const std::string& said) {
  if (values.has("down")) return values.has("magnitude") ? "DoRA" : "LoRA";
  if (values.has("hada_w1_a")) return "LoHa";
  if (values.has("lokr_w1") || values.has("lokr_w1_a")) return "LoKr";
  return said;
}

class Reader {
 public:
  Reader(std::string path, const ReadTransformer& options)
      : path_(std::move(path)), options_(options) {}

  std::optional<TransformerFile> read() {
    sources_ = sources_of(path_);
    for (size_t i = 0; i < sources_.size(); ++i) {
      files_.push_back(lightlora::open_tensors(
          sources_[i].path.string(),
          lightlora::SafetensorsOptions().allow_trailing_bytes(options_.allow_trailing_bytes)));
      if (files_[i]->tensors().size() > kMostTensors) return std::nullopt;
      list(i);
    }
    std::vector<Candidate> candidates;
    for (const auto& entry : entries_) {
      candidates.push_back({entry.places, entry.name.layer, entry.name.part, entry.shape});
    }
    const auto family = choose_family(path_, candidates, options_);
    if (!family) return std::nullopt;
    family_ = *family;
    file_.family = &families()[static_cast<size_t>(family_)];
    for (auto& entry : entries_) take(entry);
    check_unknown();
    finish();
    return std::move(file_);
  }

 private:
  void list(size_t source) {
    for (const auto& info : files_[source]->tensors()) {
      ++file_.tensors;
      auto entry = entry_of(sources_[source], source, info);
      if (entry) {
        entries_.push_back(std::move(*entry));
      } else {
        unknown_.push_back(info.name);
      }
    }
  }

  void take(const Entry& entry) {
    const auto found =
        std::find_if(entry.places.begin(), entry.places.end(),
                     [&](const NamedPlace& place) { return place.family == family_; });
    if (found == entry.places.end()) return unknown_.push_back(entry.key);
    const at::Tensor tensor = files_[entry.source]->load(entry.key);
    Layer& layer = layers_[found->place];
    TORCH_CHECK(layer.values.where.empty() || layer.original == found->original, layer.values.where,
                "expected it once, got it under two spellings");
    layer.source = entry.source;
    layer.original = found->original;
    layer.peft = entry.name.naming == lora_files::Naming::peft;
    if (layer.values.where.empty()) {
      layer.values.where =
          fmt::format("'{}': layer '{}': ", path_, cli::printable(entry.name.layer));
    }
    // Biases are one thing under two endings.
    const std::string part = entry.name.part == "diff_b" ? "bias" : entry.name.part;
    layer.scaled_bias |= entry.name.part == "bias";
    if (part != "bias" && part != "alpha") layer.said = entry.name.method;
    if (layer.said.empty()) layer.said = part == "bias" ? "biases" : "";
    TORCH_CHECK(tensor.is_floating_point() || (part == "alpha" && tensor.numel() == 1),
                layer.values.where, "expected floating-point values as '",
                cli::printable(entry.key), "', got ", tensor.scalar_type());
    const bool fresh = layer.values.parts.emplace(part, tensor.to(at::kFloat)).second;
    TORCH_CHECK(fresh, layer.values.where, "expected '", part, "' once, got a second one as '",
                cli::printable(entry.key), "'; hint: the file holds one layer under two spellings");
  }

  void check_unknown() {
    if (unknown_.empty()) return;
    if (options_.ignore_unmatched) {
      file_.ignored = std::move(unknown_);
      return;
    }
    TORCH_CHECK(false, "'", path_, "': expected the layers of ", file_.family->name, ", got ",
                unknown_.size(), " of ", file_.tensors, " tensors that are none's, such as '",
                cli::printable(unknown_.front()), "'; hint: --ignore_unmatched passes over them");
  }

  void finish() {
    std::vector<std::optional<PeftScales>> scales;
    for (const auto& file : files_) scales.push_back(PeftScales::beside(*file));
    for (auto& [place, layer] : layers_) {
      LayerValues& values = layer.values;
      values.method = method_of(values, layer.said);
      const auto& config = scales[layer.source];
      TORCH_CHECK(config || !layer.peft || layer.original, values.where,
                  "expected PEFT's adapter_config.json beside the file, got none; hint: it holds ",
                  "lora_alpha, without which the strength of the adapters is not known");
      set_scale(values, config, place);
      check(values);
      if (layer.scaled_bias) values.parts["bias"] = values.parts["bias"] * values.scale;
      put(place, layer);
    }
  }

  void set_scale(LayerValues& values, const std::optional<PeftScales>& config,
                 const Place& place) const {
    const auto alpha = values.parts.find("alpha");
    const int64_t rank = values.rank();
    if (alpha == values.parts.end()) {
      if (config && rank > 0) {
        const auto& component = file_.family->components[static_cast<size_t>(place.component)];
        values.scale =
            config->scale(component.diffusers, diffusers_name(*file_.family, place), rank);
      }
      return;
    }
    if (rank == 0 && values.method != "LoKr") return;  // a limit of rotations, not a strength
    TORCH_CHECK(alpha->second.numel() == 1, values.where,
                "expected one number as alpha, got sizes ", alpha->second.sizes());
    const double value = alpha->second.item<double>();
    TORCH_CHECK(std::isfinite(value) && value != 0, values.where,
                "expected an alpha other than zero, got ", value,
                "; hint: programs disagree on what 0 means, so set it to the rank");
    if (rank > 0) values.scale = value / static_cast<double>(rank);
    values.parts.erase(alpha);
  }

  struct Layer {
    LayerValues values;
    std::string said;  // the method, by the endings
    size_t source = 0;
    bool original = false, peft = false, scaled_bias = false;
  };

  void put(const Place& place, Layer& layer) {
    const LayerKind& kind = kind_at(*file_.family, place);
    if (layer.original && turns(kind, layer.values)) {
      layer.values = with_halves_swapped(std::move(layer.values));
    }
    if (!kind.alias) return insert(place, std::move(layer.values));
    // Names of one program alone, for parts of layers that all others have in one.
    const size_t parts = kind.diffusers.size();
    const auto each = layer.values.out() / static_cast<int64_t>(parts);
    auto values = split(layer.values, std::vector<int64_t>(parts, each));
    for (size_t i = 0; i < parts; ++i) {
      Place alias = place;
      alias.part = kind.is_fused() ? static_cast<int>(i) : Place::kWhole;
      const auto real =
          find_diffusers(*file_.family, place.component, diffusers_name(*file_.family, alias));
      if (real && values[i]) insert(*real, std::move(*values[i]));
    }
  }

  void insert(const Place& place, LayerValues values) {
    const std::string where = values.where;
    TORCH_CHECK(file_.layers.emplace(place, std::move(values)).second, where,
                "expected it once, got it under two spellings");
  }

  std::string path_;
  const ReadTransformer& options_;
  std::vector<Source> sources_;
  std::vector<std::unique_ptr<lightlora::TensorFile>> files_;
  std::vector<Entry> entries_;
  std::vector<std::string> unknown_;
  std::map<Place, Layer> layers_;
  TransformerFile file_;
  int family_ = 0;
};

}  // namespace

std::optional<TransformerFile> read_transformer(const std::string& path,
                                                const ReadTransformer& options) {
  return Reader(path, options).read();
}

}  // namespace lora_files
