// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/exported.h>

#include <lightlora/patch-inl.h>

#include <memory>
#include <unordered_set>
#include <utility>
#include <vector>

namespace lightlora {

namespace detail {

struct ScriptLayer {
  const char* type;  // PyTorch's, and how LibTorch's C++ frontend calls the same
  LayerKind kind;
};

// The kind of a module by its class, of which TorchScript may have mangled the name's middle.
inline std::optional<ScriptLayer> script_layer(const std::string& class_name) {
  static const ScriptLayer known[] = {{"Linear", LayerKind::linear},
                                      {"NonDynamicallyQuantizableLinear", LayerKind::linear},
                                      {"Conv1d", LayerKind::convolution},
                                      {"Conv2d", LayerKind::convolution},
                                      {"Conv3d", LayerKind::convolution},
                                      {"ConvTranspose1d", LayerKind::transposed_convolution},
                                      {"ConvTranspose2d", LayerKind::transposed_convolution},
                                      {"ConvTranspose3d", LayerKind::transposed_convolution},
                                      {"Embedding", LayerKind::lookup},
                                      {"EmbeddingBag", LayerKind::bag},
                                      {"Bilinear", LayerKind::bilinear},
                                      {"MultiheadAttention", LayerKind::linear},
                                      {"RNN", LayerKind::recurrent},
                                      {"LSTM", LayerKind::recurrent},
                                      {"GRU", LayerKind::recurrent},
                                      {"RNNCell", LayerKind::recurrent},
                                      {"LSTMCell", LayerKind::recurrent},
                                      {"GRUCell", LayerKind::recurrent}};
  for (const auto& layer : known) {
    if (class_name == layer.type) return layer;
  }
  return {};
}

inline std::string parameter_part(const std::string& name) {
  const std::string weight = "_weight";
  const bool projection =
      name.size() > weight.size() && name.substr(name.size() - weight.size()) == weight;
  return projection ? name.substr(0, name.size() - weight.size()) : name == "weight" ? "" : name;
}

inline Patched patched_script(const torch::jit::Module& model) {
  std::vector<torch::Tensor> parameters;
  for (const auto& parameter : model.parameters()) parameters.push_back(parameter);
  const std::string name = model.type()->name()->qualifiedName();
  TORCH_CHECK(
      !parameters.empty(), "'", name, "': expected a TorchScript module with parameters, got ",
      "none; hint: a frozen module's weights are constants of its graph, export it without ",
      "torch.jit.freeze");
  return Patched(std::make_shared<PatchedImpl>(name, adaptable_layers(model), parameters));
}

}  // namespace detail

LIGHTLORA_INLINE AdaptableLayers adaptable_layers(const torch::jit::Module& model) {
  AdaptableLayers found;
  std::unordered_set<const void*> seen;
  for (const auto& item : model.named_modules()) {
    const auto type = item.value.type()->name();
    const auto layer = detail::script_layer(type ? type->name() : "");
    if (!layer || !seen.insert(item.value._ivalue().get()).second) continue;
    const bool output = std::string(layer->type) == "NonDynamicallyQuantizableLinear";
    for (const auto& parameter : item.value.named_parameters(/*recurse=*/false)) {
      if (parameter.value.dim() < 2) continue;
      const std::string part = detail::parameter_part(parameter.name);
      const char* dot = item.name.empty() || part.empty() ? "" : ".";
      const std::string path = item.name + dot + part;
      const std::string name = output ? "Linear" : layer->type;
      found.targets.push_back({path, name, ""});
      found.weights.emplace_back(
          path, LayerWeight(nullptr, parameter.value, /*owned=*/true, name, layer->kind, part));
    }
  }
  return found;
}

LIGHTLORA_INLINE Patched patch(torch::jit::Module& model, const std::string& variant,
                               const LoRAOptions& options, const Targets& targets,
                               const std::string& name) {
  return patch(model, find_variant(variant).make, options, targets, name);
}

LIGHTLORA_INLINE Patched patch(torch::jit::Module& model, const AdapterFactory& make,
                               const LoRAOptions& options, const Targets& targets,
                               const std::string& name) {
  Patched lora = detail::patched_script(model);
  lora->add(name, make, options, targets);
  return lora;
}

LIGHTLORA_INLINE Patched patch(torch::jit::Module& model, const AdapterState& state,
                               const std::string& name) {
  Patched lora = detail::patched_script(model);
  lora->add(name, state);
  return lora;
}

}  // namespace lightlora
