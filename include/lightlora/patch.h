// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/detail/interception.h>
#include <lightlora/detail/layer_weights.h>
#include <lightlora/state.h>
#include <lightlora/targets.h>
#include <lightlora/variants/variants.h>
#include <torch/nn/modules/linear.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
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

/// While it lives, the patched model computes with active adapters in the thread that made it, and
/// in what LibTorch starts from there: the backward pass, at::launch, TorchScript's fork. Movable
/// within its thread, not copyable.
class [[nodiscard]] Activation {
 public:
  /// Ends with the activation.
  ~Activation();
  /// Moves the activation.
  Activation(Activation&&) = default;
  Activation& operator=(Activation&&) = delete;
  Activation(const Activation&) = delete;
  Activation& operator=(const Activation&) = delete;

 private:
  friend class PatchedImpl;
  Activation(std::shared_ptr<PatchedImpl> patched,
             std::shared_ptr<const detail::ActiveTable> table);

  std::shared_ptr<PatchedImpl> patched_;
  std::optional<detail::ActiveScope> scope_;
  std::shared_ptr<void> executor_;  // keeps TorchScript from making derivatives of its own
};

/// The adapters of one patched model. Made by `patch`, used through the holder `Patched`.
///
/// The model itself is not changed: an activation takes its layers' operator calls over, in one
/// thread (see detail/interception.h). Without one it computes as before, and saving or cloning it
/// sees the base. Any number of threads may be active at a time, each with its own sets and
/// weights.
class PatchedImpl : public std::enable_shared_from_this<PatchedImpl> {
 public:
  /// Freezes the model, which then waits for adapters; `patch` adds them at once.
  /// Errors: c10::Error if the model has no layer that can be adapted
  explicit PatchedImpl(torch::nn::Module& model);
  /// The same for what has no modules of LibTorch's C++ frontend. `name` is the model's, for
  /// messages; errors as above.
  PatchedImpl(const std::string& name, AdaptableLayers layers,
              const std::vector<torch::Tensor>& parameters);
  ~PatchedImpl();
  PatchedImpl(const PatchedImpl&) = delete;
  PatchedImpl& operator=(const PatchedImpl&) = delete;

  /// Adds adapters of another variant under a new name and makes them active with weight 1:
  /// `lora->add<ClassicLoRA>("style", 2, {"to_v"})`.
  /// Errors: c10::Error if the name is taken, a target matches nothing, a layer is patched by
  ///         another handle, or the model is merged or active
  template <template <typename> class Variant,
            typename Options = typename Variant<torch::nn::Linear>::AdapterType::Options,
            std::enable_if_t<
                detail::takes_options<typename Variant<torch::nn::Linear>::AdapterType, Options>,
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

  /// Chooses which adapters take part, with which weights, from the next activation on; the others
  /// rest.
  /// Errors: c10::Error for an unknown name, if merged, or if active in this thread
  void set_active(const std::map<std::string, double>& weights);
  /// The active sets and their weights.
  std::map<std::string, double> active() const;

  /// The model computes with the active adapters, in this thread, while the result lives. May be
  /// nested: inside another activation of this handle it changes nothing.
  /// Errors: c10::Error if an adapter is on another device than its layer, or the model has been
  ///         moved since the activation around this one
  Activation activate();
  /// The same with sets and weights of its own, whatever `set_active` says.
  Activation activate(const std::map<std::string, double>& weights);
  /// The same for a batch whose rows have different adapters: row i uses set names[index[i]], or
  /// none where index[i] is -1. The batch is the first dimension of every adapted layer's input.
  /// Shapes: index (batch), int64
  /// Errors: c10::Error for an unknown name, an index out of range, a dropout in training, or a
  ///         layer that cannot have an adapter for each row (bags, bilinear and recurrent layers)
  Activation activate_rows(const std::vector<std::string>& names, const torch::Tensor& index);
  /// The same with trained values from outside in place of a set's own, as a network predicts them:
  /// in the order of `values(name)`, one for the whole batch or one for each of its rows. Gradients
  /// flow back to them.
  /// Shapes: values (n), or (batch, n)
  /// Errors: c10::Error for an unknown name, another number of values, a variant that cannot (see
  ///         `Adapter::factors_of`), DoRA, a dropout in training, or layers other than linear ones
  ///         and convolutions
  Activation activate_values(const torch::Tensor& values, const std::string& name = "default");

  /// Binds weight + delta to the weights of these layers, named as for targets, while adapters are
  /// active, in place of taking their operator calls over: for models that compute with a weight
  /// themselves in ways that no operator shows. Then one thread at a time may be active, weights
  /// are fp32 where they train, gradients of the whole weight are formed, and there is one backward
  /// pass for each activation.
  /// Errors: c10::Error for an unknown name, a layer that has no such member, or if active;
  ///         c10::ValueError if an adapter has a dropout
  void bind_weights(const std::vector<std::string>& names);
  /// Says that a call of the model may leave these layers out.
  /// Errors: c10::Error for an unknown name
  void allow_unreached(const std::vector<std::string>& names);
  /// Active layers whose weight has never come to an operator that adapts it.
  std::vector<std::string> unreached() const;
  /// Errors: c10::Error that names them, for those below `module` if that is a part of the model
  void require_reached(const torch::nn::Module* module) const;

  /// Adds the active adapters' deltas into the weights, rounding once; keeps the old weights.
  /// Errors: c10::Error if merged already or active, if an adapter is on another device than its
  ///         layer, or if another layer's weight shares memory with one that changes; with `safe`,
  ///         if a result would not be finite. Then nothing has changed
  void merge(bool safe = false);
  /// Puts the old weights back, bit for bit.
  /// Errors: c10::Error if not merged
  void unmerge();
  /// Merges for good and takes all adapters off, as PEFT's function of this name: the model is then
  /// a plain one with other weights.
  /// Errors: as `merge`
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

  /// The trained values of one set as one vector, in the order of `named_parameters(name)`;
  /// differentiable.
  torch::Tensor values(const std::string& name = "default") const;
  /// Puts such a vector into the set.
  /// Errors: c10::Error for another number of values
  void assign(const torch::Tensor& values, const std::string& name = "default");
  /// Copies of the values of one set.
  AdapterState state(const std::string& name = "default", Bases bases = Bases::by_seed) const;
  /// Puts values into one set.
  /// Errors: c10::Error if the layers are not exactly those of the set
  void assign(const AdapterState& state, const std::string& name = "default");

  /// Forces how layers with adapters compute, see `choose_path`; `Route::automatic` is the start,
  /// and what `remove()` leaves behind.
  void set_route(Route route);

  /// The weight of an adaptable layer as a matrix (out, in), without adapters even while merged.
  /// Errors: c10::Error for an unknown path, or while weights are bound
  torch::Tensor weight_of(const std::string& path) const;
  /// Errors: c10::Error unless the module is the patched one, a part of it with such layers, or
  /// holds it
  void require_related(const torch::nn::Module& module) const;
  /// Whether adapters of this handle are active in this thread.
  bool is_active() const { return detail::current_table(this) != nullptr; }

  /// Moves the adapters; the model is moved by its own `to`.
  /// Errors: c10::Error if active or merged
  void to(torch::Device device);
  /// Training or evaluation mode of the adapters.
  void train(bool on = true);
  /// Evaluation mode: no dropout.
  void eval() { train(false); }

  /// What the sets adapt, by target, and how much trains.
  const PatchReport& report() const { return report_; }

 private:
  friend class Activation;

  // All of it works on the same sites under one lock, so that it is one class. Its functions lie by
  // what they do: patch-inl.h freezes, merges and moves the model, patch_sets-inl.h adds, chooses and
  // removes sets, patch_active-inl.h makes them active, patch_values-inl.h exchanges their values.
  struct Site {
    std::string path;
    LayerWeight weight;
    std::map<std::string, std::shared_ptr<Adapter>> adapters = {};
    std::shared_ptr<SiteState> state = std::make_shared<SiteState>();
    torch::Tensor kept = {};     // the weight before merging
    torch::Tensor patched = {};  // what no other handle may patch
    bool bound = false;          // see `bind_weights`
    bool may_be_unreached = false;
  };
  using Weights = std::map<std::string, double>;
  using Table = std::shared_ptr<const detail::ActiveTable>;

  void freeze(const std::vector<torch::Tensor>& parameters);
  void thaw(bool restore);
  void release();
  static void detach(Site& site);
  Activation enter(const Weights* weights);
  void leave();
  void bind(const Weights& weights);
  Table table_of(const Weights& weights);
  Table rows_table(const std::vector<std::string>& names, const torch::Tensor& index);
  Table values_table(const torch::Tensor& values, const std::string& name);
  void changed();
  void require_idle() const;
  void undo_merge() noexcept;
  void require_in_place() const;
  void require_own_weights(const Site& site) const;
  void require_set(const std::string& name) const;
  void require_untied(const std::vector<std::pair<Site*, std::shared_ptr<Adapter>>>& made) const;
  void attach(Site& site, const std::string& name, std::shared_ptr<Adapter> adapter);
  void begin_set(const std::string& name);
  void finish_set(const std::string& name);
  static std::vector<ActiveAdapter> active_of(const Site& site, const Weights& weights);
  Site& site_of(const std::string& path);
  std::vector<Site*> sites_named(const std::vector<std::string>& names);

  const torch::nn::Module* model_ = nullptr;  // to compare with only: the layers keep it usable
  bool scripted_ = false;
  std::vector<Site> sites_;  // every layer that could carry an adapter
  std::vector<TargetLayer> targets_;
  Weights active_;
  std::vector<std::string> sets_;
  std::vector<torch::Tensor> frozen_;
  mutable std::mutex mutex_;  // of what activations of several threads share, which is what follows
  std::map<Weights, Table> tables_;
  // What evaluation keeps for rows, by the names of the sets and the place among the sites.
  std::map<std::vector<std::string>, std::map<const Site*, std::shared_ptr<AdaptedSite::Kept>>>
      rows_;
  std::vector<std::unique_ptr<WeightBinding>> bound_;
  Weights bound_weights_;
  int depth_ = 0;  // activations in all threads
  bool merged_ = false;
  PatchReport report_;
};

namespace detail {

template <typename Model, typename = void>
struct IsPointerLike : std::is_pointer<Model> {};
template <typename Model>
struct IsPointerLike<Model, std::void_t<decltype(std::declval<Model&>().operator->())>>
    : std::true_type {};

}  // namespace detail

/// Handle of a patched model: shared, like a module holder.
class [[nodiscard]] Patched {
 public:
  /// An empty handle.
  Patched() = default;
  /// A handle of adapters that exist.
  explicit Patched(std::shared_ptr<PatchedImpl> impl) : impl_(std::move(impl)) {}

  /// The adapters.
  /// Errors: c10::Error if the handle is empty
  PatchedImpl* operator->() const { return &get(); }
  /// The adapters.
  /// Errors: as above
  PatchedImpl& operator*() const { return get(); }
  /// Whether the handle has a model.
  explicit operator bool() const { return impl_ != nullptr; }

  /// Calls the model, a part of it, or a model that holds it, with the adapters active:
  /// `lora(model, x)`.
  /// Errors: c10::Error for a model without any of the layers of the patched one, and for one that
  ///         has never brought the weight of an active layer to an operator: such a layer would be
  ///         skipped in silence
  template <typename Model, typename... Arguments>
  auto operator()(Model& model, Arguments&&... arguments) const {
    const auto on = get().activate();
    const torch::nn::Module* module = nullptr;
    const auto call = [&]() -> decltype(auto) {
      if constexpr (detail::IsPointerLike<Model>::value) {
        if constexpr (std::is_base_of_v<torch::nn::Module, std::decay_t<decltype(*model)>>) {
          module = &*model;
        }
        if (module) get().require_related(*module);
        return model->forward(std::forward<Arguments>(arguments)...);
      } else {
        if constexpr (std::is_base_of_v<torch::nn::Module, Model>) module = &model;
        if (module) get().require_related(*module);
        return model.forward(std::forward<Arguments>(arguments)...);
      }
    };
    if constexpr (std::is_void_v<decltype(call())>) {
      call();
      get().require_reached(module);
    } else {
      auto result = call();
      get().require_reached(module);
      return result;
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
/// `auto lora = patch<LightLoRA>(*model, LoRAOptions(4), {"to_q", "to_v"});`, or with the variant's
/// own options, `patch<LoKr>(*model, LoKrOptions(8).decompose_factor(4), {"to_q"})`. Those of
/// another variant do not compile.
template <
    template <typename> class Variant,
    typename Options = typename Variant<torch::nn::Linear>::AdapterType::Options,
    std::enable_if_t<
        detail::takes_options<typename Variant<torch::nn::Linear>::AdapterType, Options>, int> = 0>
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
