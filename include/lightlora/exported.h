// SPDX-License-Identifier: Apache-2.0
#pragma once

/// \file
/// Models that Python exported: TorchScript modules, and packages of AOTInductor.

#include <lightlora/config.h>
#include <lightlora/patch.h>
#include <torch/csrc/jit/api/module.h>

#include <map>
#include <memory>
#include <set>
#include <string>

namespace torch::inductor {
class AOTIModelPackageLoader;
}  // namespace torch::inductor

namespace lightlora {

/// What of a TorchScript module, scripted or traced, can be adapted; paths are those of its
/// submodules. Layers are told by the names of PyTorch's modules.
AdaptableLayers adaptable_layers(const torch::jit::Module& model);

/// Adapts layers of a TorchScript module, as `patch` does those of the C++ frontend: the module
/// itself is not changed, and a LoRA of the Python model it was exported from fits it.
///
///     auto model = torch::jit::load("model.pt");
///     auto lora =
///         lightlora::patch(model, "classic", lightlora::LoRAOptions(4), {"q_proj", "v_proj"});
///     auto y = lora(model, std::vector<torch::jit::IValue>{x}).toTensor();
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

/// The adapters of a model that AOTInductor compiled: several sets, of which any sum can be merged
/// into the package's weights, and come out again to the bit, without compiling anything. Compiled
/// code reads its weights where nobody can take the calls over, so there is no other way in.
///
///     torch::inductor::AOTIModelPackageLoader model("model.pt2");
///     auto lora = lightlora::patch(model, lightlora::read_state("style.safetensors"), "style");
///     lora.add("subject", lightlora::read_state("subject.safetensors"));
///     lora.merge({{"style", 0.8}, {"subject", 1.0}});
///     auto y = model.run({x})[0];
///     lora.unmerge();
///
/// The loader must outlive this. Nothing may run the model while weights change. A copy of each
/// adapted weight is kept.
class PatchedPackage {
 public:
  /// No adapters yet.
  explicit PatchedPackage(torch::inductor::AOTIModelPackageLoader& loader);

  /// Takes a set in; it is merged by `merge`.
  /// Errors: c10::Error, naming the layer, if the package has no such weight (it was folded into
  ///         others by `freezing`, or the set was trained on another model) or one of another size;
  ///         c10::ValueError if there is a set of that name
  void add(const std::string& name, const AdapterState& state);
  /// Weights of the package := base + sum of weight * delta of the named sets, and of no others.
  /// Errors: c10::ValueError for an unknown name
  void merge(const std::map<std::string, double>& weights);
  /// Weights of the package := base.
  void unmerge() { merge({}); }
  /// What is merged now.
  const std::map<std::string, double>& merged() const { return merged_; }

 private:
  struct Constant;
  Constant& constant_of(const LayerState& layer);

  torch::inductor::AOTIModelPackageLoader* loader_;
  std::map<std::string, std::shared_ptr<Constant>> constants_;  // by their names in the package
  std::map<std::string, double> merged_;                        // by names of sets
  std::set<std::string> sets_;
};

/// Adapters for a package of AOTInductor; nothing is merged yet. Errors: as `PatchedPackage::add`
PatchedPackage patch(torch::inductor::AOTIModelPackageLoader& loader, const AdapterState& state,
                     const std::string& name = "default");

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/exported_package-inl.h>
#include <lightlora/exported_script-inl.h>
#endif
