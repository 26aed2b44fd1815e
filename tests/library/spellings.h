// SPDX-License-Identifier: Apache-2.0
// The same random adapters under the names of every program that writes LoRA files.
#pragma once

#include <lightlora/file_io.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "support.h"

namespace spellings {

using lightlora::TensorMap;

struct Layer {
  std::string component, name;
  at::Tensor down, up;
};

inline const std::string kAttention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.";
inline const std::string kText = "text_model.encoder.layers.0.self_attn.";

// Attention layers, which every dialect can name.
inline const std::vector<Layer>& attention_layers() {
  static const std::vector<Layer> layers = [] {
    torch::manual_seed(5);
    std::vector<Layer> result;
    for (const char* name : {"to_q", "to_k", "to_v", "to_out.0"}) {
      result.push_back({"unet", kAttention + name, torch::randn({2, 6}), torch::randn({5, 2})});
    }
    for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      result.push_back({"text_encoder", kText + name, torch::randn({2, 4}), torch::randn({4, 2})});
    }
    return result;
  }();
  return layers;
}

using Rename = std::function<std::string(const Layer&, bool up)>;

inline TensorMap spelled(const std::vector<Layer>& layers, const Rename& rename) {
  TensorMap tensors;
  for (const auto& layer : layers) {
    tensors[rename(layer, false)] = layer.down;
    tensors[rename(layer, true)] = layer.up;
  }
  return tensors;
}

inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != text.npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
  return text;
}

// "to_q" of an attention layer, "to_out" for its output, in both models.
inline std::string old_projection(const Layer& layer) {
  std::string last = layer.name.substr(layer.name.rfind("attn") + 4);
  last = last.substr(last.find('.') + 1);
  if (last == "to_out.0" || last == "out_proj") return "to_out";
  return last[0] == 't' ? last : std::string("to_") + last[0];
}

inline std::string attention_of(const Layer& layer) {
  return layer.name.substr(0, layer.name.find('.', layer.name.rfind("attn")));
}

inline const char* side(bool up) { return up ? "up" : "down"; }
inline const char* letter(bool up) { return up ? "B" : "A"; }

inline std::string kohya_key(const Layer& layer, const std::string& text_prefix, const char* role) {
  const std::string prefix = layer.component == "unet" ? "lora_unet_" : text_prefix;
  return prefix + replaced(layer.name, ".", "_") + role;
}

inline std::string d4_key(const Layer& layer, bool up) {
  const char* middle = layer.component == "unet" ? ".lora." : ".lora_linear_layer.";
  return layer.component + "." + layer.name + middle + side(up) + ".weight";
}

inline void add_kohya(std::map<std::string, Rename>& all) {
  for (const std::string prefix : {"lora_te_", "lora_te1_"}) {
    all["kohya " + prefix] = [prefix](const Layer& l, bool up) {
      return kohya_key(l, prefix, up ? ".lora_up.weight" : ".lora_down.weight");
    };
  }
  all["kohya with A and B"] = [](const Layer& l, bool up) {
    return kohya_key(l, "lora_te_", up ? ".lora_B.weight" : ".lora_A.weight");
  };
  all["original block names"] = [](const Layer& l, bool up) {
    const auto key = kohya_key(l, "lora_te_", up ? ".lora_up.weight" : ".lora_down.weight");
    return replaced(key, "down_blocks_0_attentions_0", "input_blocks_1_1");
  };
  all["every second tensor another"] = [](const Layer& l, bool up) {
    return up ? l.component + "." + l.name + ".lora_B.weight"
              : kohya_key(l, "lora_te_", ".lora_down.weight");
  };
}

inline std::map<std::string, Rename> dialects() {
  std::map<std::string, Rename> all;
  add_kohya(all);
  all["D4"] = d4_key;
  all["D3"] = [](const Layer& l, bool up) {
    return l.component + "." + l.name + ".lora_" + letter(up) + ".weight";
  };
  all["D3 with .default"] = [](const Layer& l, bool up) {
    return l.component + "." + l.name + ".lora_" + letter(up) + ".default.weight";
  };
  all["D2"] = [](const Layer& l, bool up) {
    return (l.component == "unet" ? "unet." : "") + d4_key(l, up);
  };
  all["D2 with .processor"] = [](const Layer& l, bool up) {
    if (l.component != "unet") return d4_key(l, up);
    return "unet.unet." + attention_of(l) + ".processor." + old_projection(l) + ".lora." +
           side(up) + ".weight";
  };
  all["D1"] = [](const Layer& l, bool up) {
    return l.component + "." + attention_of(l) + (l.component == "unet" ? ".processor." : ".") +
           old_projection(l) + "_lora." + side(up) + ".weight";
  };
  all["D1 of 0.16"] = [](const Layer& l, bool up) {
    const bool unet = l.component == "unet";
    return l.component + "." + (unet ? attention_of(l) + ".processor" : l.name) + "." +
           old_projection(l) + "_lora." + side(up) + ".weight";
  };
  all["D0"] = [](const Layer& l, bool up) {
    if (l.component != "unet") return d4_key(l, up);
    return attention_of(l) + ".processor." + old_projection(l) + "_lora." + side(up) + ".weight";
  };
  all["D4 without text_model"] = [](const Layer& l, bool up) {
    return replaced(d4_key(l, up), "text_model.", "");
  };
  return all;
}

}  // namespace spellings
