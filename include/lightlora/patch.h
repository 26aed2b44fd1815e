// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/detail/layer_weights.h>
#include <lightlora/state.h>
#include <lightlora/targets.h>
#include <lightlora/variants/variants.h>
#include <torch/nn/modules/linear.h>

#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace lightlora {

/// What `patch` did.
struct PatchReport {
  std::vector<Targets::Hits> hits;  ///< how many layers each target selected
  int64_t layers = 0;               ///< layers that carry an adapter
  int64_t trainable = 0;            ///< values that train
  int64_t total = 0;                ///< values of the base model

  /// "trainable 19,200 of 859,520,964 (0.002%) in 128 layers"
  std::string to_string() const;
  /// One line for each target and its count, then `to_string()`.
  std::string details() const;
};

class PatchedImpl;

/// While it lives, the patched model computes with its active adapters. Movable, not copyable.
class [[nodiscard]] Activation {
 public:
  /// Activates the adapters; `PatchedImpl::activate` is the usual way here.
  explicit Activation(std::shared_ptr<PatchedImpl> patched);
  ~Activation();
  /// Moves the activation.
  Activation(Activation&&) = default;
  Activation& operator=(Activation&&) = delete;
  Activation(const Activation&) = delete;
  Activation& operator=(const Activation&) = delete;

 private:
  std::shared_ptr<PatchedImpl> patched_;
};

/// The adapters of one patched model. Made by `patch`, used through the holder `Patched`.
///
/// The model itself is not changed: without an activation it computes as before, and saving or
/// cloning it sees the base. One thread may activate at a time; once active, any number of threads
/// may run inference.
class PatchedImpl : public std::enable_shared_from_this<PatchedImpl> {
 public:
  /// Freezes the model, which then waits for adapters; `patch` adds them at once.
  /// Errors: c10::Error if the model has no layer that can be adapted
  explicit PatchedImpl(torch::nn::Module& model);
  ~PatchedImpl();
  PatchedImpl(const PatchedImpl&) = delete;
  PatchedImpl& operator=(const PatchedImpl&) = delete;

  /// Adds adapters of another variant under a new name and makes them active with weight 1:
  /// `lora->add<ClassicLoRA>("style", 2, {"to_v"})`.
  /// Errors: c10::Error if the name is taken, a target matches nothing, a layer is patched by
  ///         another handle, or the model is merged or active
  template <template <typename> class Variant,
            typename Options = typename Variant<torch::nn::Linear>::AdapterType::Options,
            std::enable_if_t<detail::takes_options<
                                 typename Variant<torch::nn::Linear>::AdapterType, Options>,
                             int> = 0>
  void add(const std::string& name, const Options& options, const Targets& targets) {
    add(name, factory_of<typename Variant<torch::nn::Linear>::AdapterType>(), options, targets);
  }
  /// The same with a variant chosen at run time: "classic", "light", ...
  void add(const std::string& name, const std::string& variant, const LoRAOptions& options,
           const Targets& targets) {
    add(name, find_variant(variant).make, options, targets);
  }
  /// The same with whatever `make` makes.
  void add(const std::string& name, const AdapterFactory& make, const LoRAOptions& options,
           const Targets& targets);
  /// Adds the adapters of a state under a new name and makes them active with weight 1.
  /// Errors: as above, and if the state has layers that the model lacks or of other shapes
  void add(const std::string& name, const AdapterState& state);

  /// The names of the adapter sets, in the order in which they were added.
  const std::vector<std::string>& sets() const { return sets_; }

  /// Chooses which adapters take part, with which weights; the others rest.
  void set_active(const std::map<std::string, double>& weights);
  /// The active sets and their weights.
  const std::map<std::string, double>& active() const { return active_; }

  /// The model computes with the active adapters while the result lives. May be nested. A plain
  /// layer's weight is bound once per activation, so make one for each backward pass.
  Activation activate() { return Activation(shared_from_this()); }

  /// Adds the active adapters' deltas into the weights, rounding once; keeps the old weights.
  /// Errors: c10::Error if merged already or active; with `safe`, if a result would not be finite,
  ///         and then nothing has changed
  void merge(bool safe = false);
  /// Puts the old weights back, bit for bit. Errors: c10::Error if not merged
  void unmerge();
  /// Merges for good and takes all adapters off, as PEFT's function of this name: the model is then a
  /// plain one with other weights. Errors: as `merge`
  void merge_and_unload(bool safe = false);
  /// Whether the weights hold the adapters.
  bool merged() const { return merged_; }

  /// Takes all adapters off, unmerges, and gives the parameters back the flags they had.
  /// Errors: c10::Error if active
  void remove();
  /// Takes the adapters of one set off; the others, and the base, stay as they are.
  /// Errors: c10::Error for an unknown name, or if active or merged
  void remove(const std::string& name);

  /// Everything that trains, for an optimiser.
  std::vector<torch::Tensor> parameters() const;
  /// The trained tensors of one adapter set as "<layer path>.<tensor>".
  NamedTensors named_parameters(const std::string& name = "default") const;
  /// The adapters of one set, in the model's order.
  std::vector<std::shared_ptr<Adapter>> adapters(const std::string& name = "default") const;

  /// Copies of the values of one set.
  AdapterState state(const std::string& name = "default", Bases bases = Bases::by_seed) const;
  /// Puts values into one set. Errors: c10::Error if the layers are not exactly those of the set
  void assign(const AdapterState& state, const std::string& name = "default");

  /// Forces how drop-in layers with adapters compute; `Route::automatic` is the start.
  void set_route(Route route);

  /// The weight of an adaptable layer as a matrix (out, in), without adapters even while merged.
  /// Errors: c10::Error for an unknown path, or while plain layers are active
  torch::Tensor weight_of(const std::string& path) const;
  /// Errors: c10::Error unless the module is the patched one, a part of it with such layers, or holds it
  void require_related(const torch::nn::Module& module) const;
  /// Whether an activation is alive.
  bool is_active() const { return depth_ > 0; }

  /// Moves the adapters; the model is moved by its own `to`. Errors: c10::Error if active or merged
  void to(torch::Device device);
  /// Training or evaluation mode of the adapters.
  void train(bool on = true);
  /// Evaluation mode: no dropout.
  void eval() { train(false); }

  /// What the sets adapt, by target, and how much trains.
  const PatchReport& report() const { return report_; }

 private:
  friend class Activation;

  struct Site {
    std::string path;
    LayerWeight weight;
    std::map<std::string, std::shared_ptr<Adapter>> adapters;
    torch::Tensor kept;  // the weight before merging

    torch::Tensor total_delta(const std::vector<ActiveAdapter>& active) const;
  };

  void collect(torch::nn::Module& model);
  void freeze(torch::nn::Module& model);
  void thaw();
  void release();
  static void detach(const Site& site);
  void enter();
  void leave();
  void require_idle(const char* action) const;
  void require_in_place() const;
  void require_set(const std::string& name) const;
  void attach(Site& site, const std::string& name, std::shared_ptr<Adapter> adapter);
  void begin_set(const std::string& name);
  void finish_set(const std::string& name);
  std::vector<ActiveAdapter> active_of(const Site& site) const;
  Site& site_of(const std::string& path);

  const torch::nn::Module* model_;  // to compare with only: the layers are what keeps it usable
  std::vector<Site> sites_;  // every layer that could carry an adapter
  std::vector<TargetLayer> targets_;
  std::map<std::string, double> active_;
  std::vector<std::string> sets_;
  std::vector<std::pair<torch::Tensor, bool>> flags_;
  std::vector<std::unique_ptr<WeightBinding>> bound_;
  int depth_ = 0;
  bool merged_ = false;
  PatchReport report_;
};

/// Handle of a patched model: shared, like a module holder.
class [[nodiscard]] Patched {
 public:
  /// An empty handle.
  Patched() = default;
  /// A handle of adapters that exist.
  explicit Patched(std::shared_ptr<PatchedImpl> impl) : impl_(std::move(impl)) {}

  /// The adapters. Errors: c10::Error if the handle is empty
  PatchedImpl* operator->() const { return &get(); }
  /// The adapters. Errors: as above
  PatchedImpl& operator*() const { return get(); }
  /// Whether the handle has a model.
  explicit operator bool() const { return impl_ != nullptr; }

  /// Calls the model, a part of it, or a model that holds it, with the adapters active:
  /// `lora(model, x)`. Errors: c10::Error for a model without any of the layers of the patched one
  template <typename Model, typename... Arguments>
  auto operator()(Model& model, Arguments&&... arguments) const {
    const auto on = get().activate();
    if constexpr (std::is_base_of_v<torch::nn::Module, Model>) {
      get().require_related(model);
      return model.forward(std::forward<Arguments>(arguments)...);
    } else {
      if constexpr (std::is_base_of_v<torch::nn::Module, std::decay_t<decltype(*model)>>) {
        get().require_related(*model);
      }
      return model->forward(std::forward<Arguments>(arguments)...);
    }
  }

 private:
  PatchedImpl& get() const;

  std::shared_ptr<PatchedImpl> impl_;
};

/// Adapts layers of any module tree, with a variant chosen at run time: "classic", "light", ...
///
/// Freezes every parameter of the model, as PEFT does; shared layers get one adapter.
/// Errors: c10::Error if a target matches nothing (close names are listed) or a layer is patched
///         already; c10::ValueError for options that do not fit, with the layer's path
Patched patch(torch::nn::Module& model, const std::string& variant, const LoRAOptions& options,
              const Targets& targets, const std::string& name = "default");

/// Adapts layers with whatever `make` makes, such as `factory_of<MyAdapterImpl>()`.
Patched patch(torch::nn::Module& model, AdapterFactory make, const LoRAOptions& options,
              const Targets& targets, const std::string& name = "default");

/// Adapts layers with a variant chosen at compile time:
/// `auto lora = patch<LightLoRA>(*model, LoRAOptions(4), {"to_q", "to_v"});`, or with the variant's own
/// options, `patch<LoKr>(*model, LoKrOptions(8).decompose_factor(4), {"to_q"})`. Those of another variant
/// do not compile.
template <template <typename> class Variant,
          typename Options = typename Variant<torch::nn::Linear>::AdapterType::Options,
          std::enable_if_t<
              detail::takes_options<typename Variant<torch::nn::Linear>::AdapterType, Options>, int> =
              0>
Patched patch(torch::nn::Module& model, const Options& options, const Targets& targets,
              const std::string& name = "default") {
  using AdapterImpl = typename Variant<torch::nn::Linear>::AdapterType;
  return patch(model, factory_of<AdapterImpl>(), options, targets, name);
}

/// Adapts exactly the layers that a state names.
Patched patch(torch::nn::Module& model, const AdapterState& state,
              const std::string& name = "default");

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/patch-inl.h>
#endif
