// SPDX-License-Identifier: Apache-2.0
#include "lora_files/doctor.h"

#include <ATen/ATen.h>
#include <lightlora/lightlora.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "lora_files/peft_scales.h"
#include "lora_files/ranges.h"
#include "lora_files/translate.h"
#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/cli/message.h"

namespace lora_files {
namespace {

namespace fs = std::filesystem;

constexpr double kLargestUsualScale = 32;

// One layer's tensors by their part, and what was seen of their values.
struct Layer {
  std::map<std::string, std::vector<int64_t>> shapes;
  std::map<std::string, bool> zero;
  std::optional<double> alpha;
  std::string model;

  std::optional<int64_t> rank() const {
    const auto down = shapes.find("down");
    if (down == shapes.end() || down->second.empty()) return std::nullopt;
    return down->second[0];
  }
};

struct Examined {
  Contents contents;
  std::map<std::string, Layer> layers;
  lightlora::Metadata metadata;
  std::vector<std::string> unknown, infinite;
};

void look_at(const TensorName& name, const at::Tensor& value, Examined& examined) {
  Layer& layer = examined.layers[name.layer];
  layer.model = name.model;
  layer.shapes[name.part] = value.sizes().vec();
  if (!at::isFloatingType(value.scalar_type())) {
    if (name.part == "alpha" && value.numel() == 1) layer.alpha = value.item<double>();
    return;
  }
  const auto wide = value.to(at::kFloat);
  if (!wide.isfinite().all().item<bool>()) examined.infinite.push_back(name.name);
  layer.zero[name.part] = !wide.any().item<bool>();
  if (name.part == "alpha" && value.numel() == 1) layer.alpha = wide.item<double>();
}

// This library's own files keep all layers of a kind in one tensor: they are taken apart first.
Examined read_native(const std::string& path, const lightlora::ReadOptions& options) {
  Examined examined;
  std::map<std::string, int64_t> widths;
  for (const auto& [component, state] : lightlora::read_adapters(path, options).components) {
    for (const auto& layer : state) {
      const std::string name =
          component.empty() ? layer.layer.name : component + "." + layer.layer.name;
      for (const auto& [part, value] : layer.trained) {
        const TensorName own{name + "." + part, Naming::native, component, name, part,
                             "." + part,        layer.variant};
        examined.contents.names.push_back(own);
        look_at(own, value, examined);
      }
      widths[name] = layer.layer.in;
    }
  }
  examined.contents.families = families_of(examined.contents.names, widths);
  return examined;
}

// LyCORIS' (IA)3 has a tensor whose name could end anything; the other one of its layer tells.
void find_weights_of_ia3(Examined& examined) {
  const std::string ending = ".weight";
  std::vector<std::string> others;
  for (const auto& key : examined.unknown) {
    const auto at = key.size() - std::min(key.size(), ending.size());
    const auto flag = key.substr(at) == ending ? parse_name(key.substr(0, at) + ".on_input")
                                               : std::optional<TensorName>();
    if (!flag || examined.layers.count(flag->layer) == 0) {
      others.push_back(key);
      continue;
    }
    TensorName name = *flag;
    name.name = key;
    name.part = "weight";
    name.ending = ending;
    examined.contents.names.push_back(std::move(name));
  }
  examined.unknown = std::move(others);
}

Examined read(const std::string& path, bool allow_trailing_bytes) {
  Examined examined;
  const auto file = lightlora::open_tensors(
      weights_in(path), lightlora::SafetensorsOptions().allow_trailing_bytes(allow_trailing_bytes));
  examined.metadata = file->metadata();
  const auto format = examined.metadata.find("format");
  if (format != examined.metadata.end() && format->second == "lightlora") {
    auto native =
        read_native(path, lightlora::ReadOptions().allow_trailing_bytes(allow_trailing_bytes));
    native.metadata = examined.metadata;
    return native;
  }
  std::map<std::string, int64_t> widths;
  for (const auto& info : file->tensors()) {
    if (info.name.rfind("bundle_emb.", 0) == 0) {
      examined.contents.bundled = true;
      continue;
    }
    const auto name = parse_name(info.name);
    if (!name) {
      examined.unknown.push_back(info.name);
      continue;
    }
    examined.contents.names.push_back(*name);
    if (info.dtype != at::ScalarType::Undefined) look_at(*name, file->load(info.name), examined);
    if (name->part == "down" && info.shape.size() > 1) widths[name->layer] = info.shape[1];
  }
  find_weights_of_ia3(examined);
  examined.contents.families = families_of(examined.contents.names, widths);
  const auto config = fs::path(weights_in(path)).parent_path() / "adapter_config.json";
  examined.contents.configured = fs::exists(config);
  if (examined.contents.configured) examined.contents.peft_type = peft_type_in(config.string());
  return examined;
}

std::string trainer_of(const lightlora::Metadata& metadata) {
  const auto has = [&](const char* key) { return metadata.count(key) > 0; };
  if (has("format") && metadata.at("format") == "lightlora") return "lightlora";
  if (has("ot_revision") || has("ot_branch")) return "OneTrainer";
  if (has("software") && metadata.at("software").find("ai-toolkit") != std::string::npos) {
    return "ai-toolkit";
  }
  if (has("ss_network_module")) {
    const auto& module = metadata.at("ss_network_module");
    return module.find("lycoris") != std::string::npos ? "sd-scripts with LyCORIS" : "sd-scripts";
  }
  for (const auto& item : metadata) {
    if (item.first.rfind("ss_", 0) == 0) return "sd-scripts";
  }
  if (has("lora_adapter_metadata")) return "diffusers";
  return "";
}

// "3 of them, such as 'a'".
std::string some(const std::vector<std::string>& names) {
  return fmt::format("{}, such as '{}'", names.size(), cli::printable(names.front()));
}

// Says it once for all layers of which it is true.
void find(std::vector<Finding>& findings, const std::vector<std::string>& where,
          const std::string& what, const std::string& mend = "") {
  if (where.empty()) return;
  findings.push_back({fmt::format("{}: {}", what, some(where)), mend});
}

std::vector<std::string> layers_with(const Examined& examined,
                                     const std::function<bool(const Layer&)>& is) {
  std::vector<std::string> names;
  for (const auto& [name, layer] : examined.layers) {
    if (is(layer)) names.push_back(name);
  }
  return names;
}

bool has(const Layer& layer, const char* part) { return layer.shapes.count(part) > 0; }

std::vector<std::string> one_sided(const Examined& examined) {
  const std::vector<std::pair<const char*, const char*>> pairs{{"down", "up"},
                                                               {"hada_w1_a", "hada_w1_b"},
                                                               {"hada_w2_a", "hada_w2_b"},
                                                               {"lokr_w1_a", "lokr_w1_b"},
                                                               {"lokr_w2_a", "lokr_w2_b"}};
  return layers_with(examined, [&](const Layer& layer) {
    return std::any_of(pairs.begin(), pairs.end(), [&](const auto& pair) {
      return has(layer, pair.first) != has(layer, pair.second);
    });
  });
}

bool ranks_differ(const Layer& layer) {
  const auto up = layer.shapes.find("up");
  return layer.rank() && up != layer.shapes.end() && up->second.size() > 1 && !has(layer, "mid") &&
         up->second[1] != *layer.rank();
}

// Nothing of the layer reaches the result.
bool is_dead(const Layer& layer) {
  for (const char* part : {"up", "down", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
                           "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "oft_blocks", "oft_R",
                           "diff", "hira_A", "hira_B", "miss_block", "gralora_B", "lora_E"}) {
    const auto found = layer.zero.find(part);
    if (found != layer.zero.end() && found->second) return true;
  }
  return layer.alpha && *layer.alpha == 0;
}

void find_values(const Examined& examined, std::vector<Finding>& findings) {
  find(findings, examined.infinite, "tensors with values that are not finite",
       "train again, or take an earlier checkpoint: such layers draw black or noise");
  find(findings, one_sided(examined), "layers of which one factor is missing",
       "--ignore_unmatched reads the others");
  find(findings, layers_with(examined, ranks_differ), "layers whose two factors differ in rank");
  const auto dead = layers_with(examined, is_dead);
  if (!dead.empty() && dead.size() == examined.layers.size()) {
    findings.push_back({"no layer does anything: a factor or the alpha of each is zero",
                        "the file was saved before training, or trained without effect"});
  } else {
    find(findings, dead, "layers that do nothing, as a factor or the alpha is zero");
  }
  find(findings,
       layers_with(examined,
                   [](const Layer& layer) { return layer.alpha && !std::isfinite(*layer.alpha); }),
       "alphas that are no numbers");
  find(findings,
       layers_with(examined,
                   [](const Layer& layer) {
                     return layer.alpha && layer.rank() &&
                            std::abs(*layer.alpha) >
                                kLargestUsualScale * static_cast<double>(*layer.rank());
                   }),
       fmt::format("layers whose alpha is more than {:.0f} times the rank", kLargestUsualScale),
       "draw with a small weight first, such as FILE:0.05");
}

void find_names(const Examined& examined, std::vector<Finding>& findings) {
  std::set<Naming> namings;
  std::set<std::string> endings;
  bool alphas = false;
  for (const auto& name : examined.contents.names) {
    namings.insert(name.naming);
    if (name.part == "down") endings.insert(name.ending);
    alphas = alphas || name.part == "alpha";
  }
  if (namings.count(Naming::kohya) > 0 && namings.count(Naming::kohya_original) > 0 &&
      std::any_of(
          examined.contents.names.begin(), examined.contents.names.end(),
          [](const TensorName& n) { return n.naming == Naming::kohya && n.model == "unet"; })) {
    findings.push_back({"the UNet's blocks are named in two ways, of which diffusers drops one",
                        "there is no telling which layers are meant twice: ask its author"});
  }
  if (endings.size() > 1) {
    findings.push_back({fmt::format("spellings are mixed: {}", fmt::join(endings, ", ")),
                        "any --to writes one spelling"});
  }
  const bool kohya = namings.count(Naming::kohya) + namings.count(Naming::kohya_original) > 0;
  if (kohya && !alphas && !examined.layers.empty()) {
    findings.push_back({"alphas are missing: readers take the rank for them, a scale of 1",
                        "--to kohya writes them"});
  }
  if (namings.count(Naming::peft) > 0 && !examined.contents.configured) {
    findings.push_back({"PEFT's adapter_config.json is missing, which holds lora_alpha",
                        "put it beside the file"});
  }
  find(findings, examined.unknown, "tensors that are no adapter's",
       "--ignore_unmatched passes over them");
}

// What this library itself makes of it.
Verdict own_verdict(const std::string& path, const Contents& contents, bool trailing) {
  Verdict verdict;
  verdict.program = "lightlora";
  lightlora::ReadOptions options;
  options.allow_trailing_bytes(trailing);
  const auto total = static_cast<int64_t>(contents.names.size());
  try {
    const auto file = lightlora::read_adapters(path, options);
    verdict.loads =
        total - static_cast<int64_t>(std::min(file.ignored.size(), contents.names.size()));
    if (!file.ignored.empty()) verdict.why = "passes over biases and norms";
  } catch (const c10::Error& error) {
    verdict.fails = true;
    verdict.why = cli::printable(error.what_without_backtrace());
    const auto quote = verdict.why.find("': ");
    if (quote != std::string::npos) verdict.why = verdict.why.substr(quote + 3);
    if (verdict.why.size() > 100) verdict.why = verdict.why.substr(0, 97) + "...";
  }
  return verdict;
}

// Files of transformer models are translated by their names, without being read as adapters here.
std::optional<TransformerFile> translated(const std::string& path, bool trailing) {
  try {
    return read_transformer(path, {"", "", /*ignore_unmatched=*/false, trailing});
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

// Whether the translation that is said to mend it can be made.
bool can_be_written(const TransformerFile& file, const std::string& format) {
  try {
    return !tensors_of(file, format, at::kFloat).empty();
  } catch (const c10::Error&) {
    return false;
  }
}

}  // namespace

std::string weights_in(const std::string& path) {
  if (!fs::is_directory(path)) return path;
  for (const char* name : {"adapter_model.safetensors", "adapter_model.bin",
                           "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"}) {
    const auto file = fs::path(path) / name;
    if (fs::exists(file)) return file.string();
  }
  TORCH_CHECK(false, "'", path, "': expected a LoRA file, or a folder with ",
              "adapter_model.safetensors or pytorch_lora_weights.safetensors, got neither");
}

Diagnosis examine(const std::string& path, bool allow_trailing_bytes) {
  Examined examined = read(path, allow_trailing_bytes);
  const auto file = translated(path, allow_trailing_bytes);
  auto& families = examined.contents.families;
  if (file && (families.size() != 1 || file->family->name == "FLUX.2")) {
    families = {file->family->name == "FLUX.1" ? "FLUX" : file->family->name};
  }
  Diagnosis diagnosis;
  std::set<std::string> methods, namings;
  std::set<int64_t> ranks;
  std::set<double> alphas;
  for (const auto& name : examined.contents.names) {
    if (!name.method.empty()) methods.insert(name.method);
    namings.insert(describe(name.naming));
  }
  for (const auto& item : examined.layers) {
    if (const auto rank = item.second.rank()) ranks.insert(*rank);
    if (item.second.alpha) alphas.insert(*item.second.alpha);
  }
  diagnosis.families = examined.contents.families;
  diagnosis.trainer = trainer_of(examined.metadata);
  diagnosis.methods.assign(methods.begin(), methods.end());
  diagnosis.namings.assign(namings.begin(), namings.end());
  diagnosis.layers = static_cast<int64_t>(examined.layers.size());
  diagnosis.tensors = static_cast<int64_t>(examined.contents.names.size());
  diagnosis.ranks = range_text(ranks);
  diagnosis.alphas = range_text(alphas);
  find_values(examined, diagnosis.findings);
  find_names(examined, diagnosis.findings);
  if (examined.contents.names.empty()) {
    diagnosis.findings.push_back(
        {"this is no LoRA: none of its tensors is an adapter's",
         "--learned_embeds takes embeddings, --pretrained_model_name_or_path models"});
    return diagnosis;
  }
  diagnosis.verdicts = verdicts(examined.contents);
  diagnosis.verdicts.insert(diagnosis.verdicts.begin(),
                            own_verdict(path, examined.contents, allow_trailing_bytes));
  if (file && diagnosis.verdicts[0].fails) {
    diagnosis.verdicts[0].why =
        fmt::format("no program here draws with {}; convert_lora translates it", families.front());
  }
  // What cannot be read cannot be translated either.
  const bool unread = diagnosis.verdicts[0].fails && !file;
  for (auto& verdict : diagnosis.verdicts) {
    if (verdict.mend.empty()) continue;
    if (unread || (file && !can_be_written(*file, verdict.mend))) verdict.mend.clear();
  }
  return diagnosis;
}

}  // namespace lora_files
