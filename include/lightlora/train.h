// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/config.h>
#include <lightlora/patch.h>
#include <torch/arg.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/pimpl.h>
#include <torch/optim/optimizer.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lightlora {

/// A part of a model: tensors in, one tensor out.
using Segment = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

/// Gradient checkpointing of one segment: `segment(inputs)`, of which the backward pass keeps the
/// inputs alone and computes the rest again: about a third more time for a fraction of the memory.
/// Gradients are those of the plain call, also of parameters that the segment uses; the random
/// state, autocast and the active adapters are those of the first run. A segment that draws no
/// random numbers can do without the random state (`preserve_rng_state`), which a CUDA graph that
/// is being recorded does not give out.
/// Paper:  Chen et al. 2016, arXiv:1604.06174
/// Shapes: as `segment` has them; inputs may be undefined, but not all
/// Errors: c10::ValueError if no input is defined
at::Tensor recompute(Segment segment, const std::vector<at::Tensor>& inputs,
                     bool preserve_rng_state = true);

/// The same of one tensor, for weights that are bound too (`bind_weights`): they are bound again
/// for the second run, unless the activation is still alive then.
/// Shapes: x and the result as `segment` has them
template <typename Function>
torch::Tensor checkpoint(const Patched& lora, Function segment, const torch::Tensor& x) {
  const bool active = lora->is_active();
  return recompute(
      [lora, active, segment = std::move(segment)](const std::vector<torch::Tensor>& inputs) {
        std::optional<Activation> on;
        if (active) on.emplace(lora->activate());
        return segment(inputs[0]);
      },
      {x});
}

/// A patched model and its adapters as one module, whose clones are adapted too, by copies of the
/// adapters. A plain clone of a patched model is the base alone; this is for what clones models, such
/// as LibTorch's data_parallel, through which gradients come back to the adapters of `lora`:
///
///     lightlora::AdaptedModel<Net> whole(net, lora);
///     auto y = torch::nn::parallel::data_parallel(whole, x);
///
/// The children are `base` and `adapters`. `Holder` is the model's holder.
template <typename Holder>
class AdaptedModelImpl : public torch::nn::Module {
 public:
  /// `lora` are the adapters of `model`.
  AdaptedModelImpl(Holder model, Patched lora)
      : base(register_module("base", std::move(model))), lora_(std::move(lora)) {
    const auto adapters = register_module("adapters", torch::nn::ModuleList());
    for (const auto& set : lora_->sets()) {
      for (const auto& adapter : lora_->adapters(set)) {
        adapters->push_back(adapter->module().shared_from_this());
      }
    }
  }

  /// The model with its active adapters.
  template <typename... Inputs>
  auto forward(Inputs&&... inputs) {
    return lora_(base, std::forward<Inputs>(inputs)...);
  }

  /// A deep copy with adapters of its own.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override {
    Holder model(std::dynamic_pointer_cast<typename Holder::ContainedType>(base->clone(device)));
    Patched lora;
    for (const auto& set : lora_->sets()) {
      const AdapterState state = lora_->state(set, Bases::embedded);
      if (lora) {
        lora->add(set, state);
      } else {
        lora = patch(*model, state, set);
      }
    }
    lora->set_active(lora_->active());
    if (device) lora->to(*device);
    auto copy = std::make_shared<AdaptedModelImpl>(std::move(model), std::move(lora));
    copy->train(is_training());
    return copy;
  }

  Holder base{nullptr};  ///< the model

 private:
  Patched lora_;
};

/// Module holder of AdaptedModelImpl.
template <typename Holder>
class AdaptedModel : public torch::nn::ModuleHolder<AdaptedModelImpl<Holder>> {
 public:
  using torch::nn::ModuleHolder<AdaptedModelImpl<Holder>>::ModuleHolder;
};

/// Parameter groups for an optimiser that trains the output side faster (LoRA+).
/// Equation: rate(up side) = ratio * rate(everything else)
/// Paper:    Hayou et al. 2024, "LoRA+", arXiv:2402.12354
///
/// `options` are those of the optimizer, such as `torch::optim::AdamWOptions(1e-4)`; PEFT and
/// sd-scripts suggest a ratio of 16. DoRA's magnitudes, and variants with one core, take the lower
/// rate.
/// Errors: c10::ValueError unless ratio > 0
template <typename Options>
std::vector<torch::optim::OptimizerParamGroup> param_groups(const Patched& lora, Options options,
                                                            double ratio) {
  TORCH_CHECK_VALUE(ratio > 0, "expected a ratio > 0, got ", ratio);
  std::vector<torch::Tensor> up, others;
  for (const auto& name : lora->sets()) {
    for (const auto& adapter : lora->adapters(name)) {
      for (const auto& item : adapter->trained()) {
        (adapter->is_up_side(item.key()) ? up : others).push_back(item.value());
      }
    }
  }
  std::vector<torch::optim::OptimizerParamGroup> groups;
  const auto add = [&](std::vector<torch::Tensor> tensors) {
    if (!tensors.empty())
      groups.emplace_back(std::move(tensors), std::make_unique<Options>(options));
  };
  add(std::move(others));
  options.lr(options.lr() * ratio);
  add(std::move(up));
  return groups;
}

/// Which directions CorDA trains, under PEFT's names: those that matter most for the data of the new
/// task (instruction-previewed), or least for data whose knowledge is to stay.
enum class CordaMethod { ipm, kpm };

/// What the starts from data can be told.
struct StartOptions {
  /// EVA: a layer may get up to this many times its rank, from layers whose inputs need fewer
  /// directions; 1 keeps all ranks. Default: 2, as in PEFT.
  TORCH_ARG(double, rho) = 2.0;
  /// CorDA: which directions. Default: `ipm`.
  TORCH_ARG(CordaMethod, corda_method) = CordaMethod::ipm;
  /// LoRA-GA: the larger, the smaller the start; gamma of the paper's stable scale. Default: 16.
  TORCH_ARG(double, stable_gamma) = 16.0;
  /// Channel scaling: the power of the mean |input| that is a channel's size. Default: 0.5.
  TORCH_ARG(double, channel_exponent) = 0.5;
};

/// Gives classic adapters with `init_lora_weights` eva, corda or lora_ga their start, from a few
/// batches, and those with `channel_scaling` the sizes of their input channels, in a run of its own:
/// `run` calls the model as it is trained, for lora_ga with a backward pass. The library
/// sees the layers' inputs or weight gradients through the operators that it takes over; the model
/// is not changed, and computes without adapters meanwhile.
///
///     auto lora = patch<ClassicLoRA>(*model, ClassicOptions(8).init_lora_weights(LoRAStart::eva),
///                                    {"to_q"});
///     start_from_data(lora, [&] { for (auto& x : batches) model->forward(x); });
///
/// Equation: eva: down = the main directions of the inputs, of covariance C, up = 0. The ranks, as
///           many as before in all, go to the directions that explain most of their layer's variance;
///           layers left without any lose their adapter.
///           corda: (weight C) = U S V^T with C = mean of x^T x (damped), down = sqrt(S / s) V^T C^-1,
///           up = U sqrt(S / s).
///           lora_ga: gradient = U S V^T, down = V_1..r^T, up = (U S)_r+1..2r out^(1/4) / sqrt(gamma)
///           channel_scaling: channels = (mean |x|)^exponent over their mean, as SmoothQuant balances
///           weights and inputs (Xiao et al. 2022, arXiv:2211.10438); the delta stays
/// Paper:    see `LoRAStart`
/// Memory:   eva and corda in^2 values in double for each layer, lora_ga a gradient of the weight's
///           size
/// Call it before the optimizer is made: eva's ranks are new tensors.
/// Errors:   c10::ValueError for adapters of another variant or start, and for options out of range;
///           c10::Error for a layer that `run` has not reached, or that is no Linear with eva, corda
///           or channel_scaling; if the adapters are active or merged
void start_from_data(const Patched& lora, const std::function<void()>& run,
                     const StartOptions& options = {}, const std::string& set = "default");

/// How `precondition` changes gradients. `riemannian`: both factors (Zhang and Pilanci 2024,
/// arXiv:2402.02347). `lora_fa`: of `up` alone, exactly, for a frozen `down` (Zhang et al. 2023,
/// arXiv:2308.03303, as PEFT has it).
enum class Preconditioner { riemannian, lora_fa };

/// Multiplies the gradients of low-rank factors with the inverse of the other factor's r x r matrix,
/// so that a step moves their product alike however its size is shared between the two. Call it
/// between the backward pass and the optimizer's step.
/// Equation: riemannian: g_down <- (up^T up + d I)^-1 g_down, g_up <- g_up (down down^T + d I)^-1
///           lora_fa: g_up <- g_up (down down^T + d I)^-1 / scale^2
/// Shapes:   of adapters that train `down` (r, in) and `up` (out, r); others stay as they are
/// Errors:   c10::ValueError unless damping > 0
void precondition(const Patched& lora, Preconditioner kind, double damping = 1e-2,
                  const std::string& set = "default");

/// LoRA-FA: freezes the factor on the input side, so that the backward pass needs no inputs of the
/// layers. `parameters()` still has it; optimisers pass over what has no gradient.
/// Errors: c10::ValueError for adapters that do not train both `down` and `up`
void freeze_down(const Patched& lora, const std::string& set = "default");

/// Rank by timestep: how many ranks of T-LoRA adapters count for inputs of this noise. What is not
/// given is what the adapters' own options say.
/// Equation: floor(((T - t) / T)^alpha (rank - min_rank)) + min_rank, at most rank
/// Paper:    Soboleva et al. 2025, "T-LoRA", arXiv:2507.05964, equation (4)
/// Errors:   c10::ValueError unless 0 <= t <= T and 1 <= min_rank; for adapters of another variant
void set_timestep(const Patched& lora, int64_t timestep, int64_t max_timestep,
                  std::optional<int64_t> min_rank = std::nullopt,
                  std::optional<double> alpha = std::nullopt, const std::string& set = "default");
/// All ranks count again, as in inference.
/// Errors: c10::ValueError for adapters of another variant
void clear_timestep(const Patched& lora, const std::string& set = "default");

/// How AdaLoRA weighs what it has seen, as PEFT has it.
struct BudgetOptions {
  /// Share of the past in the smoothed sensitivity. Default: 0.85.
  TORCH_ARG(double, beta1) = 0.85;
  /// Share of the past in the smoothed uncertainty. Default: 0.85.
  TORCH_ARG(double, beta2) = 0.85;
};

/// AdaLoRA's budget: of all ranks of a set, fewer and fewer count in the course of a training, and
/// those that matter least are taken away, wherever they are. What is taken away has lambda zero,
/// and comes back if it matters more at a later choice.
///
///     auto lora = patch<AdaLoRA>(*model, AdaLoRAOptions(12).target_r(8).tfinal(100), {"to_q"});
///     RankBudget budget(lora, steps);
///     for (int64_t step = 0; step < steps; ++step) {
///       (loss + 0.5 * orthogonality(lora)).backward();
///       optimizer.step();
///       budget.step(step);
///       optimizer.zero_grad();
///     }
///
/// Equation: s = |value gradient|, I <- beta1 I + (1 - beta1) s, U <- beta2 U + (1 - beta2) |s - I|;
///           a rank's importance is I U of its lambda, plus the means of I U over its row of down
///           and its column of up. Budget b(t) = target + (first - target) (1 - (t - tinit) / (T -
///           tfinal - tinit))^3 between tinit and T - tfinal
/// Paper:    Zhang et al. 2023, "AdaLoRA", arXiv:2303.10512, section 3; step by step what PEFT's
///           RankAllocator does
/// Norms and biases in the set are left alone.
class RankBudget {
 public:
  /// `total_steps` is T.
  /// Errors: c10::ValueError for adapters of another variant, a beta outside (0, 1), or T <= tinit +
  ///         tfinal
  RankBudget(const Patched& lora, int64_t total_steps, const BudgetOptions& options = {},
             const std::string& set = "default");
  ~RankBudget();
  /// Moves the budget.
  RankBudget(RankBudget&&) noexcept;
  /// As above.
  RankBudget& operator=(RankBudget&&) noexcept;
  RankBudget(const RankBudget&) = delete;
  RankBudget& operator=(const RankBudget&) = delete;

  /// How many ranks count in all at a step.
  int64_t at(int64_t step) const;
  /// After the optimizer's step, while its gradients are there. Returns the budget.
  /// Errors: c10::Error without gradients
  int64_t step(int64_t step);

  /// What a checkpoint keeps, by name.
  TrainedValues state() const;
  /// Goes on from there.
  /// Errors: c10::Error if it is of other adapters
  void load_state(const TrainedValues& state);

 private:
  struct Layer;

  void update();
  void choose(int64_t budget);

  std::vector<Layer> layers_;
  BudgetOptions options_;
  int64_t total_steps_, tinit_, tfinal_, delta_t_;
  int64_t first_ = 0, target_ = 0;  // budgets
};

/// How far the factors of AdaLoRA adapters are from orthogonal, to be added to the loss (PEFT's
/// orth_reg_weight of it is 0.5); differentiable.
/// Equation: mean over all down and up of |down down^T - I| and |up^T up - I|
/// Shapes:   a scalar
/// Errors:   c10::ValueError for adapters of another variant
torch::Tensor orthogonality(const Patched& lora, const std::string& set = "default");

/// Makes many leaf tensors views of one flat buffer, and their gradients views of another, so that
/// an optimiser, clipping, zeroing and an all-reduce touch one tensor each instead of hundreds.
/// The tensors stay the same objects; a backward pass adds into the flat gradient. They share the
/// version counter of `values()`: an in-place change of the flat buffer is seen by whoever watches
/// a parameter. (`at::_fused_adamw_` bumps no counter: call `changed()` after it.)
///
///     ParameterBank bank(lora->parameters());
///     loss.backward();
///     bank.clip(1.0);
///     at::_fused_adamw_({bank.values()}, {bank.gradients()}, ...);
///     bank.changed();
///     bank.zero_gradients();
class ParameterBank {
 public:
  /// Errors: c10::ValueError if there are none; c10::Error unless all have one dtype and device
  explicit ParameterBank(const std::vector<at::Tensor>& parameters);

  /// All values, one after the other, in the order of the parameters.
  const at::Tensor& values() const { return values_; }
  /// Their gradients, likewise.
  const at::Tensor& gradients() const { return gradients_; }
  /// In place: the parameters' gradients stay views of the flat one.
  void zero_gradients() { gradients_.zero_(); }

  /// Tells whoever watches the parameters' versions that the values were written to.
  void changed() { values_.unsafeGetTensorImpl()->bump_version(); }

  /// Scales the gradients down so that their L2 norm is at most `max_norm`, and returns the norm
  /// they had as a tensor without dimensions: nothing waits for a GPU. No clipping if max_norm <=
  /// 0.
  at::Tensor clip(double max_norm);

 private:
  at::Tensor values_, gradients_;
};

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/train-inl.h>
#endif
