// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/patch.h>
#include <torch/csrc/jit/api/module.h>

#include <string>

namespace lightlora {

/// What of a TorchScript module, scripted or traced, can be adapted; paths are those of its
/// submodules. Layers are told by the names of PyTorch's modules.
AdaptableLayers adaptable_layers(const torch::jit::Module& model);

/// Adapts layers of a TorchScript module, as `patch` does those of the C++ frontend: the module
/// itself is not changed, and a LoRA of the Python model it was exported from fits it.
///
///     auto model = torch::jit::load("model.pt");
///     auto lora = lightlora::patch(model, "classic", lightlora::LoRAOptions(4), {"q_proj",
///     "v_proj"}); auto y = lora(model, std::vector<torch::jit::IValue>{x}).toTensor();
///
/// While adapters are active, TorchScript's executor runs without its optimisations: the
/// derivatives that it would make know nothing of adapters, and it may copy several weights into
/// one.
/// Errors: as `patch` of a torch::nn::Module; c10::Error for a frozen module, whose weights are
///         constants
Patched patch(torch::jit::Module& model, const std::string& variant, const LoRAOptions& options,
              const Targets& targets, const std::string& name = "default");
/// Adapts layers with whatever `make` makes.
Patched patch(torch::jit::Module& model, const AdapterFactory& make, const LoRAOptions& options,
              const Targets& targets, const std::string& name = "default");
/// Adapts exactly the layers that a state names.
Patched patch(torch::jit::Module& model, const AdapterState& state,
              const std::string& name = "default");

/// Adapts layers with a variant chosen at compile time.
template <template <typename> class Variant>
Patched patch(torch::jit::Module& model, const LoRAOptions& options, const Targets& targets,
              const std::string& name = "default") {
  using AdapterImpl = typename Variant<torch::nn::Linear>::AdapterType;
  return patch(model, factory_of<AdapterImpl>(), options, targets, name);
}

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/torchscript-inl.h>
#endif
