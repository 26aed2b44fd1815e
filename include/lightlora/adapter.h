// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/config.h>
#include <lightlora/options.h>
#include <lightlora/variants/dora.h>
#include <torch/nn/cloneable.h>
#include <torch/ordered_dict.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace lightlora {

/// A low-rank weight delta without its scale: delta = scale * up * down.
/// Shapes: down (r, in), up (out, r)
struct Factors {
  at::Tensor down;  ///< (r, in)
  at::Tensor up;    ///< (out, r)
};

/// One set of factors for the sum of several: the ranks add up, the scales go into `up`.
/// Shapes: as in `Factors`, with r the sum of the ranks
Factors concatenate(const std::vector<Factors>& factors, const std::vector<double>& scales);

/// How much of a delta is kept: all of it, a rank, a share of its energy (the sum of the squared
/// singular values), or the smaller of the two: `Keep::energy(0.99).at_most(8)`.
class Keep {
 public:
  /// Everything: the smallest rank that is exact up to rounding.
  static Keep all() { return {}; }
  /// At most this rank, the best approximation.
  /// Errors: c10::ValueError if rank < 1
  static Keep rank(int64_t rank) { return Keep().at_most(rank); }
  /// The smallest rank that keeps this share of the energy, such as 0.99.
  /// Errors: c10::ValueError unless 0 < share <= 1
  static Keep energy(double share);
  /// And no more than this rank.
  /// Errors: c10::ValueError if rank < 1
  Keep& at_most(int64_t rank);

  /// Whether nothing is to be left out.
  bool everything() const { return !rank_ && !energy_; }
  /// Whether an adapter of that rank stays as it is, without a look at its values.
  bool admits(int64_t rank) const { return !energy_ && (!rank_ || rank <= *rank_); }
  /// How many of these singular values, in falling order, are kept; at least one.
  int64_t count(const at::Tensor& values) const;

 private:
  std::optional<int64_t> rank_;
  std::optional<double> energy_;
};

/// The best factors of a matrix, by a singular value decomposition in double.
/// Shapes: delta (out, in); down (r, in), up (out, r)
Factors factorise(const at::Tensor& delta, const Keep& keep = Keep::all());

/// The best factors of a product up * down, without ever forming it, in double.
/// Equation: up down = (Qu Ru)(Qd Rd)^T = Qu (U S V^T) Qd^T: the singular values are those of the
///           small core Ru Rd^T
/// Shapes: as in `Factors`
Factors truncate(const Factors& factors, const Keep& keep);

/// Tensors by name, in the order of registration.
using NamedTensors = torch::OrderedDict<std::string, torch::Tensor>;
/// Trained values of one adapter by name, as states hold them.
using TrainedValues = std::map<std::string, at::Tensor>;

/// What every variant is: trained values of one layer, and how they compose to a weight delta.
/// Merging, patching, files and the fast forward pass are written against this class alone.
///
/// Equation: delta = scale * up * down with (down, up) = factors(); variants without cheap factors
///           give the delta itself
///
/// What a variant cannot do, or needs, it answers in the private functions at the end.
class Adapter {
 public:
  virtual ~Adapter() = default;

  /// The variant's name in files and flags, such as "light".
  virtual std::string variant() const = 0;
  /// Sets the trained values to their start, as `options().init()` says.
  virtual void reset_parameters() = 0;
  /// The adapter as a torch module: its parameters are what is trained, its buffers what is frozen.
  virtual torch::nn::Module& module() = 0;
  virtual const torch::nn::Module& module() const = 0;

  /// Whether the delta is `scale * up * down` with factors that are cheaper than the delta.
  bool has_factors() const { return !dora_ && factorises(); }
  /// Whether the delta depends on the layer's weight, which `delta` must then be given.
  bool needs_weight() const { return dora_ || reads_weight(); }

  /// The composed factors, differentiable with respect to the trained values. With DoRA, those of
  /// the part that is added to the weight before its rows are brought to their length.
  /// Shapes: down (r, in), up (out, r)
  /// Errors: c10::Error for a variant that has no factors
  virtual Factors factors() const;
  /// The factors that other trained values would give, such as those that a network predicts.
  /// Leading dimensions of the values are a batch: each entry has factors of its own.
  /// Differentiable; without the scale, as `factors`.
  /// Shapes: each value (..., as the trained tensor); down (..., r, in), up (..., out, r)
  /// Errors: c10::Error for a variant that cannot
  virtual Factors factors_of(const TrainedValues& values) const;
  /// Takes from the layer's weight what a new adapter starts from: DoRA's magnitudes, bases.
  /// Shapes: weight (out, in)
  void prepare(const torch::Tensor& weight);

  /// What is added to the layer's weight, as one matrix in the dtype of the trained values.
  /// Equation: scale * up * down, or what the variant makes of the weight; see `DoRA` for its own
  /// Shapes:   weight (out, in), needed only if `needs_weight`; result (out, in)
  /// Errors:   c10::Error if the weight is needed and missing
  torch::Tensor delta(const torch::Tensor& weight = {}) const;
  /// The part of the delta that the variant itself makes: all of it, unless DoRA is on.
  /// Shapes: weight (out, in), read only by variants that need it; result (out, in)
  virtual torch::Tensor added(const torch::Tensor& weight) const;

  /// Whether the adapted layer is the layer over inputs that are rotated first, so that no delta need
  /// be formed: weight + delta = weight R for x' = `rotated(x)` = R x.
  bool rotates_input() const { return !dora_ && rotates(); }
  /// The inputs as such a layer gets them; differentiable.
  /// Shapes: x (..., in), and so the result
  /// Errors: c10::Error for a variant that does not rotate
  virtual torch::Tensor rotated(const torch::Tensor& x) const;

  /// Whether the adapted layer is the layer without its bias whose outputs are rotated, so that no
  /// delta need be formed: weight + delta = R weight for y' = `rotated_output(y)` = R y. An adapter
  /// may rotate both: weight + delta = R_output weight R_input.
  bool rotates_output() const { return !dora_ && rotates_outputs(); }
  /// The outputs as such a layer gives them, without the bias; differentiable.
  /// Shapes: y (..., out), and so the result
  /// Errors: c10::Error for a variant that does not rotate
  virtual torch::Tensor rotated_output(const torch::Tensor& y) const;

  /// Whether what `make_basis` gives the adapter may be filled in after its constructor, which does
  /// not look at it: then the bases of many layers are made together, in all threads.
  virtual bool waits_for_bases() const { return false; }

  /// The best approximation of what the variant adds, in a kind of its own: Light, whose bases
  /// stay, and Fused, whose core becomes a Light one. Null where only classic factors can hold it;
  /// see `lightlora::cut`. Without DoRA's magnitudes.
  virtual std::shared_ptr<Adapter> cut(const Keep& keep) const;

  /// The layer that the adapter was made for.
  const LayerInfo& layer() const { return layer_; }
  /// The options that it was made with.
  const LoRAOptions& options() const { return options_; }

  /// Factor of the delta: `network_alpha / rank` (with `rslora`: by sqrt(rank)), or 1 without
  /// `network_alpha`, until it is set.
  double scale() const { return scale_; }
  void set_scale(double scale) { scale_ = scale; }
  /// Inner width of the factors; of a variant without any, its option `rank`.
  virtual int64_t rank() const { return options_.rank(); }

  /// What is trained, by its name in files.
  NamedTensors trained() const { return module().named_parameters(/*recurse=*/false); }
  /// What is frozen, by its name in files.
  NamedTensors frozen() const { return module().named_buffers(/*recurse=*/false); }
  /// Whether a frozen tensor can be made again from the options and the layer alone, so that states
  /// and files need not hold it; see `AdapterModule::register_seeded`.
  bool is_seeded(const std::string& frozen) const { return seeded_.count(frozen) > 0; }
  /// Whether `prepare` makes a frozen tensor of the layer's weight in a way that files of other
  /// programs rely on: a state may then lack it until a model is patched with it.
  virtual bool is_of_weight(const std::string& /*frozen*/) const { return false; }
  int64_t trained_count() const { return count(trained()); }
  int64_t frozen_count() const { return count(frozen()); }
  /// Multiplies the part of the delta that the variant makes (`added`) by a factor, shared evenly
  /// between the trained tensors, in which it is linear each. DoRA's magnitudes stay.
  virtual void rescale(double factor);
  /// Which ranks of `factors` count, for plain factors without the others; undefined: all.
  /// Shapes: (r), bool
  virtual at::Tensor counted_ranks() const { return {}; }
  /// Whether a trained tensor lies on the output side, where LoRA+ trains faster.
  virtual bool is_up_side(const std::string& name) const { return name == "up"; }

  /// One-line summary: variant, layer, shape, rank, scale, counts, options of its own, any clamped
  /// size.
  std::string description() const;

 protected:
  /// Errors: c10::ValueError for a rank below 1, a dropout outside [0, 1), or a layer without
  ///         values
  Adapter(LoRAOptions options, LayerInfo layer);

  /// Anything that `description` should add, beginning with ", ".
  virtual std::string remarks() const { return ""; }

  /// For variants that can start in one way only.
  /// Errors: c10::ValueError if `init` is not the default
  void require_usual_init(const char* reason) const;

  LoRAOptions options_;           ///< what the adapter was made with
  LayerInfo layer_;               ///< what it was made for
  std::optional<DoRA> dora_;      ///< if the options ask for it
  std::set<std::string> seeded_;  ///< names of the buffers that need not be stored

 private:
  // What a variant declares. Private, so that it cannot forget what holds for all of them.

  // Whether `factors` are cheaper than the delta.
  virtual bool factorises() const { return true; }
  // Whether `added` reads the layer's weight.
  virtual bool reads_weight() const { return false; }
  // Whether `rotated` is all that the adapter does.
  virtual bool rotates() const { return false; }
  // Whether `rotated_output` is.
  virtual bool rotates_outputs() const { return false; }
  // Makes frozen bases of the layer's weight (out, in).
  virtual void take_bases(const torch::Tensor& /*weight*/) {}

  static int64_t count(const NamedTensors& tensors);

  double scale_ = 1.0;
};

namespace detail {

// Whether options of this type may be given for a variant where its type is known: a rank, what all
// variants have, or the variant's own type.
template <typename AdapterImpl, typename Options>
constexpr bool takes_options =
    std::is_convertible_v<Options, int64_t> || std::is_same_v<Options, LoRAOptions> ||
    std::is_same_v<Options, typename AdapterImpl::Options>;

}  // namespace detail

/// Which trained values are the only ones for a delta, see `lightlora::canonical`.
/// `as_they_are`: those that the variant has.
/// `factors`: the delta is the product of the trained `up` and `down`, between orthonormal bases if
///            the variant has any, so that these two can be chosen.
/// `classic`: those of the same delta as classic factors.
enum class Canonical { as_they_are, factors, classic };

/// Base of the variants' modules: a cloneable torch module that is an Adapter.
/// (Two bases, because torch's Cloneable derives from Module non-virtually.)
/// `OwnOptions` is the variant's type of options, if it has some of its own.
template <typename Derived, typename OwnOptions = LoRAOptions>
class AdapterModule : public torch::nn::Cloneable<Derived>, public Adapter {
  using Base = torch::nn::Module;

 public:
  using Options = OwnOptions;

  /// The layer that values of this variant are for, where they tell more of it than files do. A
  /// variant of which that is true has a function of this name.
  static LayerInfo layer_of(LayerInfo layer, const TrainedValues& /*trained*/) { return layer; }

  /// How equal deltas of this variant get equal values. A variant of which another answer is true
  /// has a function of this name.
  static Canonical canonical(const LoRAOptions& /*options*/, const TrainedValues& /*frozen*/) {
    return Canonical::classic;
  }

  /// Whether frozen bases may have to be made for a file that holds none, so that their sizes are
  /// bounded. A variant of which that is not true has a constant of this name.
  static constexpr bool kMakesBases = true;

  /// Whether what trains is as large as the layer's weight, whatever the rank. A variant of which
  /// that is true has a constant of this name.
  static constexpr bool kTrainsWhole = false;

  /// Takes the options and the layer; the variant's constructor then calls `reset()`.
  /// Errors: c10::ValueError for an option that the variant does not take
  AdapterModule(LoRAOptions options, LayerInfo layer)
      : Adapter(std::move(options), std::move(layer)),
        own_(detail::own_from_text<Options>(options_.own(), layer_.name, Derived::kVariant)) {
    options_.own(detail::own_to_text(own_));
  }

  std::string variant() const override { return Derived::kVariant; }
  torch::nn::Module& module() override { return *this; }
  const torch::nn::Module& module() const override { return *this; }

  /// Registers all tensors anew and sets them to their start.
  void reset() final {
    seeded_.clear();
    register_tensors();
    if (dora_) {
      dora_->magnitude = this->register_parameter(DoRA::kMagnitude, torch::ones(dora_->sizes()));
    }
    reset_parameters();
  }

  /// Moves the adapter and casts it to fp32 or fp64. Half precision is for the layer alone: in it
  /// AdamW's squares underflow, and frozen bases are no longer orthonormal.
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override {
    at::isReducedFloatingType(dtype) ? this->Base::to(device, non_blocking)
                                     : this->Base::to(device, dtype, non_blocking);
  }
  /// As above, where it is.
  void to(torch::Dtype dtype, bool non_blocking = false) override {
    if (!at::isReducedFloatingType(dtype)) this->Base::to(dtype, non_blocking);
  }
  /// Moves the adapter.
  void to(torch::Device device, bool non_blocking = false) override {
    this->Base::to(device, non_blocking);
  }

  void pretty_print(std::ostream& stream) const override {
    stream << "lightlora::" << description();
  }

 protected:
  /// Registers what the variant trains as parameters and what is frozen as buffers.
  virtual void register_tensors() = 0;

  /// A buffer that follows from the options and the layer alone, on every machine: only such ones
  /// may be left out of files and states.
  torch::Tensor& register_seeded(std::string name, torch::Tensor value) {
    seeded_.insert(name);
    return this->register_buffer(std::move(name), std::move(value));
  }

  /// The variant's own options.
  const Options& own() const { return own_; }

 private:
  Options own_;
};

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/adapter-inl.h>
#endif
