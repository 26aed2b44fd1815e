// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <lightlora/detail/formats/json.h>
#include <lightlora/detail/formats/layer_methods.h>
#include <lightlora/detail/formats/limits.h>
#include <lightlora/detail/formats/lora_keys.h>
#include <lightlora/detail/formats/peft_config.h>
#include <lightlora/file_io.h>
#include <lightlora/variants/variants.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <utility>

namespace lightlora::detail {

using PeftConfigs = std::map<std::string, PeftConfig>;  // by component

// The tensors that a file has for one layer.
struct LayerTensors {
  std::map<std::string, at::Tensor> factors;
  std::optional<double> alpha;
  std::string type;  // of the layer, if a name tells it
};

/// Collects the tensors of one file layer by layer and makes adapters of them.
class DialectReader {
 public:
  /// `component` overrides what the names say, for folders that are named after it.
  DialectReader(const TensorFile& file, std::string component, bool ignore_unmatched)
      : file_(file), component_(std::move(component)), budget_(stored_bytes(file)) {
    for (const auto& info : file_.tensors()) add(info);
    if (ignore_unmatched) ignore_leftovers();
    check_leftovers();
  }

  /// `configs` give scales to the layers whose component they are for.
  Components components(const PeftConfigs& configs) {
    Components result;
    for (const auto& [key, tensors] : layers_) {
      if (is_pruned(tensors)) continue;
      const auto config = configs.find(key.first);
      result[key.first].push_back(layer_state(config == configs.end() ? nullptr : &config->second,
                                              key.first, key.second, tensors));
      rename_projection(key.first, result[key.first].back());
    }
    return result;
  }
  const std::set<std::string>& dialects() const { return dialects_; }
  const std::set<std::string>& embeddings() const { return embeddings_; }
  const std::vector<std::string>& ignored() const { return ignored_; }

 private:
  // A layer of which PEFT's AdaLoRA has left no rank.
  static bool is_pruned(const LayerTensors& tensors) {
    const auto found = tensors.factors.find("lora_E");
    return found != tensors.factors.end() && found->second.numel() == 0;
  }

  static uint64_t stored_bytes(const TensorFile& file) {
    uint64_t bytes = 0;
    for (const auto& info : file.tensors()) bytes += info.end - info.begin;
    return bytes;
  }

  void add(const TensorInfo& info) {
    if (const auto embedding = bundled_embedding(info.name); !embedding.empty()) {
      embeddings_.insert(embedding);
      return;
    }
    auto key = parse_lora_key(info.name);
    if (!key) return unknown_.push_back(info.name);
    if (key->passed_over) return ignored_.push_back(info.name);
    if (!key->algorithm.empty()) return unsupported_[key->algorithm].push_back(info.name);
    if (key->redundant) return;
    if (!component_.empty()) {
      if (is_text_component(component_)) key->layer = text_layer(key->layer);
      key->component = component_;
    }
    name_vector(*key, info.shape.size() == 1);
    dialects_.insert(key->dialect);
    note_spelling(*key, info.name);
    LayerTensors& layer = layers_[{key->component, key->layer}];
    if (!key->type.empty()) layer.type = key->type;
    const bool fresh =
        key->role == "alpha" ? !layer.alpha.has_value() : layer.factors.count(key->role) == 0;
    TORCH_CHECK(fresh, where(key->layer), "expected '", key->role, "' once, got a second one as ",
                shown(info.name), "; hint: the file holds one layer under two spellings");
    if (key->role == "alpha") {
      layer.alpha = alpha_of(info.name, key->layer);
    } else {
      layer.factors[key->role] = factor_of(info.name, *key);
    }
  }

  // What is trained of a norm or a bias gets the path that it has in the model.
  static void name_vector(LoRAKey& key, bool one_dimension) {
    const bool norm = is_norm_name(key.layer);
    const bool weight = key.role == "w_norm" || (key.role == "diff" && norm && one_dimension);
    if (!weight && !is_of_vector(key.role)) return;
    key.type = norm || key.role != "diff_b" ? "Norm" : "Bias";
    key.layer += weight ? ".weight" : ".bias";
    key.role = "vector";
  }

  // PEFT calls the input projections of a MultiheadAttention by the attention's own name, and the
  // output projection `<attention>.base_layer.out_proj`. It adds the latter's delta twice (its
  // merge, which the forward pass consists of, does so up to 0.21.2 at least).
  void rename_projection(const std::string& component, LayerState& state) const {
    const std::string output = ".base_layer.out_proj";
    LayerInfo& layer = state.layer;
    if (ends_with(layer.name, output)) {
      layer.name.resize(layer.name.size() - output.size());
      layer.part = "out_proj";
      if (const auto up = state.trained.find("up"); up != state.trained.end()) {
        up->second = up->second * kPeftOutputProjection;
      }
    } else if (layers_.count({component, layer.name + output}) > 0) {
      layer.part = "in_proj";
    } else {
      return;
    }
    layer.name += "." + layer.part;
    layer.type = "MultiheadAttention";
  }

  // Two namings of one UNet's blocks: diffusers drops the layers of one of them without a word, so a
  // file that has both means something else there than here.
  void note_spelling(const LoRAKey& key, const std::string& name) {
    if (key.component != "unet" || std::string_view(key.dialect) != "kohya") return;
    auto& example = key.original ? original_ : renamed_;
    if (example.empty()) example = name;
    TORCH_CHECK(original_.empty() || renamed_.empty(), "'", file_.path(),
                "': expected one naming of the UNet's blocks, got both the original one (",
                shown(original_), ") and diffusers' (", shown(renamed_),
                "); hint: diffusers would drop the former; join the two parts with the tool that ",
                "made them");
  }

  void ignore_leftovers() {
    const auto unknown = std::exchange(unknown_, {});
    ignored_.insert(ignored_.end(), unknown.begin(), unknown.end());
    for (const auto& [algorithm, keys] : std::exchange(unsupported_, {})) {
      ignored_.insert(ignored_.end(), keys.begin(), keys.end());
    }
  }

  void check_leftovers() const {
    for (const auto& [algorithm, keys] : unsupported_) {
      TORCH_CHECK(false, "'", file_.path(), "': expected LoRA, LoHa or LoKr tensors, got ",
                  algorithm, ", which is not supported, in ", keys.size(), " of ",
                  file_.tensors().size(), " tensors (first ", shown(keys.front()),
                  "); hint: merge it with the tool that made it, and extract a LoRA");
    }
    if (unknown_.empty()) {
      TORCH_CHECK(!layers_.empty(), "'", file_.path(),
                  "': expected LoRA tensors, got none of use among ", file_.tensors().size());
      return;
    }
    std::string names;
    for (std::size_t i = 0; i < std::min<std::size_t>(unknown_.size(), 3); ++i) {
      names += (i > 0 ? ", " : "") + shown(unknown_[i]);
    }
    TORCH_CHECK(false, "'", file_.path(), "': expected the names of a LoRA, got ", unknown_.size(),
                " of ", file_.tensors().size(), " that match no layer: ", names,
                unknown_.size() > 3 ? ", ..." : "", "; hint: ",
                looks_like_embedding() ? "it looks like a learned embedding, not a LoRA"
                                       : likely_cause(unknown_));
  }

  // One tensor of vectors as wide as CLIP's, under the name of its word.
  bool looks_like_embedding() const {
    if (file_.tensors().size() != 1 || !layers_.empty()) return false;
    const auto& info = file_.tensors().front();
    const int64_t width = info.shape.empty() ? 0 : info.shape.back();
    const bool wide = width == 768 || width == 1024 || width == 1280;
    const bool word = info.name.front() == '<' || info.name.find('.') == info.name.npos;
    return word && (wide || info.name.front() == '<') && info.shape.size() <= 3;
  }

  LayerState layer_state(const PeftConfig* config, const std::string& component,
                         const std::string& name, const LayerTensors& tensors) {
    auto [state, divisor] =
        LayerAssembler(where(name), component, name, tensors.factors, budget_).assemble();
    if (!tensors.type.empty()) state.layer.type = tensors.type;
    state.layer.lookup = tensors.type == "Embedding";
    TORCH_CHECK(config == nullptr || config->dora() == state.options.dora(), where(name),
                "expected DoRA magnitudes exactly if the configuration says use_dora, got ",
                state.options.dora() ? "some without it" : "none");
    if (config != nullptr && state.variant == "oft") set_oft(*config, name, state);
    if (state.layer.is_vector()) return state;
    if (state.variant == "diag_oft" || state.variant == "boft") {
      set_constraint(tensors.alpha, name, state);
      return state;
    }
    TORCH_CHECK(!tensors.alpha || *tensors.alpha != 0, where(name),
                "expected an alpha other than zero, ",
                "got 0; hint: programs disagree on what 0 means, so set it to the rank or the "
                "wanted value");
    if (const auto scale = scale_of(config, name, tensors, divisor)) {
      state.scale = *scale;
      state.options.network_alpha(*scale * static_cast<double>(state.options.rank()));
    }
    return state;
  }

  // Which rotation the angles mean stands in the configuration alone.
  void set_oft(const PeftConfig& config, const std::string& name, LayerState& state) const {
    const int64_t terms = config.oft_terms();
    TORCH_CHECK(terms >= 0 && terms <= 1000, where(name), "expected 0 to 1000 terms of the series ",
                "for a rotation, got ", terms, " from ", config.source());
    OwnOptions& own = state.options.own();
    if (config.oft_block_size() > 0) own["block_size"] = std::to_string(config.oft_block_size());
    own["neumann_terms"] = std::to_string(terms);
    if (terms == 0) state.trained["q"] = -state.trained["q"];  // PEFT turns the other way then
    own = find_variant("oft").canonical(own, name);
  }

  // LyCORIS calls the bound of its rotations alpha.
  void set_constraint(const std::optional<double>& alpha, const std::string& name,
                      LayerState& state) const {
    TORCH_CHECK(alpha.value_or(0) >= 0, where(name), "expected a bound of at least 0 as the alpha ",
                "of rotations, got ", alpha.value_or(0));
    OwnOptions& own = state.options.own();
    own["constraint"] = exact_text(alpha.value_or(0));
    own = find_variant(state.variant).canonical(own, name);
  }

  // alpha of the file comes before a configuration; neither means scale 1.
  std::optional<double> scale_of(const PeftConfig* config, const std::string& name,
                                 const LayerTensors& tensors, int64_t rank) const {
    std::optional<double> scale;
    if (tensors.alpha && rank > 0) scale = *tensors.alpha / static_cast<double>(rank);
    if (config == nullptr) return scale;
    const double configured = config->scale(name, rank);
    TORCH_CHECK(!scale || std::abs(*scale - configured) <= 1e-6 * std::abs(configured), where(name),
                "expected one scale, got ", *scale, " from its alpha tensor and ", configured,
                " from ", config->source());
    return configured;
  }

  double alpha_of(const std::string& key, const std::string& layer) const {
    const at::Tensor tensor = file_.load(key);
    TORCH_CHECK(tensor.numel() == 1 && tensor.scalar_type() != at::kBool, where(layer),
                "expected one number as ", shown(key), ", got ", tensor.scalar_type(), " ",
                tensor.sizes());
    const double alpha = tensor.to(at::kDouble).item<double>();
    TORCH_CHECK(std::isfinite(alpha), where(layer), "expected an alpha other than zero, got ",
                alpha);
    return alpha;
  }

  at::Tensor factor_of(const std::string& name, const LoRAKey& key) const {
    const at::Tensor tensor = file_.load(name);
    if (key.role == "on_input" && tensor.numel() == 1) return tensor.to(at::kFloat);
    const bool vectors = key.role == "magnitude" || key.role == "dora_scale" ||
                         key.role == "vector" || key.role == "ia3" || key.role == "rescale";
    const int64_t least = vectors ? 1 : 2;
    TORCH_CHECK(tensor.is_floating_point() && tensor.dim() >= least && tensor.dim() <= 5,
                where(key.layer),
                "expected a matrix or a convolution's kernel of floating-point values as ",
                shown(name), ", got ", tensor.scalar_type(), " ", tensor.sizes());
    return tensor.to(at::kFloat);
  }

  std::string where(const std::string& layer) const {
    return "'" + file_.path() + "': layer " + shown(layer) + ": ";
  }

  const TensorFile& file_;
  std::string component_;
  ValueBudget budget_;
  std::map<std::pair<std::string, std::string>, LayerTensors> layers_;
  std::vector<std::string> unknown_, ignored_;
  std::string original_, renamed_;  // the first name of each spelling
  std::set<std::string> embeddings_;
  std::map<std::string, std::vector<std::string>> unsupported_;
  std::set<std::string> dialects_;
};

inline JsonValue json_of(const std::string& text, const std::string& source) {
  try {
    return parse_json(text);
  } catch (const JsonError& error) {
    TORCH_CHECK(false, "'", source, "': expected JSON, got '", error.what(), "'");
  }
}

// The configurations that come with a file: in its metadata (diffusers) or beside it (PEFT).
inline PeftConfigs configs_of(const TensorFile& file) {
  PeftConfigs configs;
  const auto found = file.metadata().find("lora_adapter_metadata");
  if (found != file.metadata().end()) {
    const std::string source = file.path() + ": lora_adapter_metadata";
    const JsonValue json = json_of(found->second, source);
    TORCH_CHECK(json.type() == JsonType::object, "'", source, "': expected a JSON object");
    for (const char* component : kComponents) {
      const std::string prefix = std::string(component) + ".";
      if (json.find(prefix + "r") == nullptr && json.find(prefix + "lora_alpha") == nullptr)
        continue;
      configs.emplace(component, PeftConfig(json, prefix, source));
    }
  }
  const bool peft = std::any_of(file.tensors().begin(), file.tensors().end(), [](const auto& info) {
    return starts_with(info.name, "base_model.model.");
  });
  if (!peft) return configs;
  const auto beside = std::filesystem::path(file.path()).parent_path() / "adapter_config.json";
  TORCH_CHECK(std::filesystem::exists(beside), "'", file.path(),
              "': expected PEFT's adapter_config.json beside it, got none; hint: it holds "
              "lora_alpha, without which the strength of the adapters is not known");
  const JsonValue json =
      json_of(read_file(beside.string(), kMostConfigurationBytes), beside.string());
  TORCH_CHECK(json.type() == JsonType::object, "'", beside.string(), "': expected a JSON object");
  for (const char* component : kComponents) {
    configs.insert_or_assign(component, PeftConfig(json, "", beside.string()));
  }
  configs.insert_or_assign("", PeftConfig(json, "", beside.string()));
  return configs;
}

}  // namespace lightlora::detail
