// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "lora_files/fuse_layers.h"
#include "lora_files/translate.h"
#include "support/cli/fmt.h"

namespace lora_files {
namespace {

namespace fs = std::filesystem;

// How the names of a part end: PEFT's, if it has one, and LyCORIS'.
struct PartEnding {
  const char *part, *peft, *lycoris;
};

constexpr PartEnding kPartEndings[] = {
    {"down", ".lora_A.weight", ".lora_down.weight"},
    {"up", ".lora_B.weight", ".lora_up.weight"},
    {"magnitude", ".lora_magnitude_vector", ".dora_scale"},
    {"bias", ".lora_B.bias", ".diff_b"},
    {"set_weight", "", ".set_weight"},
    {"lokr_w1", ".lokr_w1", ".lokr_w1"},
    {"lokr_w1_a", ".lokr_w1_a", ".lokr_w1_a"},
    {"lokr_w1_b", ".lokr_w1_b", ".lokr_w1_b"},
    {"lokr_w2", ".lokr_w2", ".lokr_w2"},
    {"lokr_w2_a", ".lokr_w2_a", ".lokr_w2_a"},
    {"lokr_w2_b", ".lokr_w2_b", ".lokr_w2_b"},
    {"lokr_t2", ".lokr_t2", ".lokr_t2"},
    {"hada_w1_a", nullptr, ".hada_w1_a"},
    {"hada_w1_b", nullptr, ".hada_w1_b"},
    {"hada_w2_a", nullptr, ".hada_w2_a"},
    {"hada_w2_b", nullptr, ".hada_w2_b"},
    {"hada_t1", nullptr, ".hada_t1"},
    {"hada_t2", nullptr, ".hada_t2"},
    {"mid", nullptr, ".lora_mid.weight"},
    {"alpha", nullptr, ".alpha"},
    {"diff", nullptr, ".diff"},
    {"w_norm", nullptr, ".w_norm"},
    {"b_norm", nullptr, ".b_norm"},
    {"oft_blocks", nullptr, ".oft_blocks"},
    {"rescale", nullptr, ".rescale"},
    {"oft_R", nullptr, ".oft_R.weight"},
    {"a1", nullptr, ".a1.weight"},
    {"a2", nullptr, ".a2.weight"},
    {"b1", nullptr, ".b1.weight"},
    {"b2", nullptr, ".b2.weight"},
    {"bm", nullptr, ".bm.weight"},
    {"q_layer", nullptr, ".q_layer.weight"},
    {"p_layer", nullptr, ".p_layer.weight"},
    {"lambda", nullptr, ".lambda_layer"},
    {"on_input", nullptr, ".on_input"},
};

bool is_lycoris(const Spelling& spelling) { return spelling.flat || spelling.comfyui; }

std::string ending_of(const std::string& part, const Spelling& spelling, const LayerValues& values,
                      const std::string& format) {
  const auto* found = std::find_if(std::begin(kPartEndings), std::end(kPartEndings),
                                   [&](const PartEnding& ending) { return part == ending.part; });
  // LyCORIS' BOFT is one of outputs, and no program reads PEFT's under another one's names.
  TORCH_CHECK(part.rfind("boft_", 0) != 0, values.where, "expected a method that the ", format,
              " format has names for, got BOFT of inputs, which PEFT alone has; hint: keep PEFT's ",
              "folder");
  const bool factor = part == "down" || part == "up";
  const bool lycoris = factor ? spelling.down_up : is_lycoris(spelling);
  const char* text = found == std::end(kPartEndings) ? nullptr
                     : lycoris                       ? found->lycoris
                                                     : found->peft;
  TORCH_CHECK(text != nullptr && !(spelling.flat && part == "set_weight"), values.where,
              "expected a method that the ", format, " format has names for, got ", values.method,
              "; hint: --to ", spelling.flat ? "comfyui" : "kohya",
              " keeps it, --rank R makes plain factors of LoHa, LoKr and differences");
  return text;
}

// DoRA's lengths: LyCORIS has them as a column.
at::Tensor magnitude(const at::Tensor& tensor, const Spelling& spelling,
                     const LayerValues& values) {
  const bool of_outputs = tensor.numel() == values.out();
  TORCH_CHECK(
      is_lycoris(spelling) || of_outputs, values.where,
      "expected DoRA's length of each output, got one of each input, which only LyCORIS has; ",
      "hint: --to kohya keeps it");
  if (!of_outputs || values.parts.at("down").dim() != 2) return tensor;
  return is_lycoris(spelling) ? tensor.reshape({-1, 1}) : tensor.flatten();
}

at::Tensor narrowed(const at::Tensor& tensor, c10::ScalarType dtype, const LayerValues& values) {
  const auto result = tensor.to(dtype, /*non_blocking=*/false, /*copy=*/true).contiguous();
  const bool lost = !result.isfinite().all().item<bool>() && tensor.isfinite().all().item<bool>();
  TORCH_CHECK(!lost, values.where, "expected values that ", dtype, " can hold, got some up to ",
              tensor.abs().max().item<double>(), "; hint: bf16 or fp32");
  return result;
}

// What the format makes of a layer before its names.
LayerValues prepared(const LayerKind& kind, LayerValues values, const Spelling& spelling) {
  const bool matrix = values.has("diff") && values.parts.at("diff").dim() > 1;
  if (!is_lycoris(spelling) && matrix) values = with_plain_factors(values);
  if (!spelling.flat) values = with_scale_inside(std::move(values));
  if (spelling.original && turns(kind, values)) values = with_halves_swapped(std::move(values));
  if (spelling.flat && values.rank() > 0) {
    values.parts["alpha"] = at::full({}, values.scale * static_cast<double>(values.rank()));
  }
  TORCH_CHECK(is_lycoris(spelling) || !values.has("bias") || values.has("up"), values.where,
              "expected factors beside the bias, got it alone, which PEFT has no place for; hint: ",
              "--to kohya or comfyui");
  return values;
}

void add_layer(lightlora::TensorMap& tensors, const std::string& name, const LayerValues& values,
               const Spelling& spelling, const std::string& format, c10::ScalarType dtype) {
  for (const auto& [part, tensor] : values.parts) {
    const bool is_magnitude = part == "magnitude" && values.has("down");
    const auto value = is_magnitude ? magnitude(tensor, spelling, values) : tensor;
    const auto key = name + ending_of(part, spelling, values, format);
    const bool fresh =
        tensors.emplace(key, narrowed(value, part == "alpha" ? c10::kFloat : dtype, values)).second;
    TORCH_CHECK(fresh, values.where, "expected names of its own, got those of another layer");
  }
}

// The most frequent one.
int64_t common_rank(const std::map<std::string, int64_t>& ranks) {
  std::map<int64_t, size_t> counts;
  for (const auto& item : ranks) ++counts[item.second];
  const auto most =
      std::max_element(counts.begin(), counts.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == counts.end() ? 1 : most->first;
}

nlohmann::ordered_json peft_config(const lightlora::TensorMap& tensors, const std::string& path) {
  const std::string start = "base_model.model.", down = ".lora_A.weight";
  std::map<std::string, int64_t> ranks;
  size_t magnitudes = 0;
  for (const auto& [name, tensor] : tensors) {
    magnitudes += name.find(".lora_magnitude_vector") != std::string::npos ? 1 : 0;
    TORCH_CHECK(name.find(".lora_") != std::string::npos, "'", path,
                "': expected LoRA, which PEFT has one configuration for, got '", name,
                "'; hint: --to diffusers or kohya, or --rank R, which makes plain factors");
    const auto at = name.size() - std::min(name.size(), down.size());
    if (name.substr(at) != down) continue;
    ranks[name.substr(start.size(), at - start.size())] = tensor.size(0);
  }
  TORCH_CHECK(
      magnitudes == 0 || magnitudes == ranks.size(), "'", path,
      "': expected DoRA in all layers or in none, as PEFT's configuration can say, got it in ",
      magnitudes, " of ", ranks.size());
  const auto rank = common_rank(ranks);
  auto patterns = nlohmann::ordered_json::object(), modules = nlohmann::ordered_json::array();
  for (const auto& [layer, own] : ranks) {
    modules.push_back(layer);
    if (own != rank) patterns["^" + layer] = own;
  }
  return {{"alpha_pattern", patterns},
          {"auto_mapping", nullptr},
          {"base_model_name_or_path", nullptr},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"inference_mode", true},
          {"init_lora_weights", true},
          {"lora_alpha", rank},
          {"lora_bias", std::any_of(tensors.begin(), tensors.end(),
                                    [](const auto& item) {
                                      return item.first.find(".lora_B.bias") != std::string::npos;
                                    })},
          {"lora_dropout", 0.0},
          {"modules_to_save", nullptr},
          {"peft_type", "LORA"},
          {"r", rank},
          {"rank_pattern", patterns},
          {"target_modules", modules},
          {"task_type", nullptr},
          {"use_dora", magnitudes > 0},
          {"use_rslora", false}};
}

lightlora::Metadata metadata_of(const TransformerFile& file, const Spelling& spelling) {
  if (!spelling.flat) return {{"format", "pt"}};
  std::set<int64_t> ranks;
  for (const auto& item : file.layers) ranks.insert(item.second.rank());
  const auto rank = fmt::to_string(ranks.empty() ? 0 : *ranks.rbegin());
  return {{"ss_network_module", "networks.lora"}, {"ss_network_dim", rank}};
}

}  // namespace

std::map<std::string, lightlora::TensorMap> tensors_of(const TransformerFile& file,
                                                       const std::string& format,
                                                       c10::ScalarType dtype) {
  const auto spelling = spelling_of(format, *file.family);
  const auto layers = spelling.original ? fused(file) : unfused(file);
  std::map<std::string, lightlora::TensorMap> result;
  for (const auto& [place, values] : layers.layers) {
    const auto ready = prepared(kind_at(*file.family, place), values, spelling);
    const auto component =
        spelling.peft ? component_name(*file.family, place.component) : std::string();
    add_layer(result[component], spelled(spelling, *file.family, place), ready, spelling, format,
              dtype);
  }
  return result;
}

void write_transformer(const TransformerFile& file, const std::string& format,
                       const std::string& path, c10::ScalarType dtype) {
  const auto spelling = spelling_of(format, *file.family);
  const auto tensors = tensors_of(file, format, dtype);
  if (!spelling.peft) {
    return lightlora::save_safetensors(path, tensors.begin()->second, metadata_of(file, spelling));
  }
  for (const auto& [component, own] : tensors) {
    const auto folder = fs::path(path) / component;
    const auto config = peft_config(own, folder.string()).dump(2) + "\n";
    fs::create_directories(folder);
    lightlora::save_safetensors((folder / "adapter_model.safetensors").string(), own,
                                {{"format", "pt"}});
    lightlora::AtomicFile beside((folder / "adapter_config.json").string());
    beside.write(config);
    beside.commit();
  }
}

}  // namespace lora_files
