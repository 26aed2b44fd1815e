// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/factors.h>
#include <lightlora/options.h>
#include <torch/nn/cloneable.h>
#include <torch/ordered_dict.h>

#include <memory>
#include <sstream>
#include <string>

namespace lightlora {

/// Tensors by name, in the order of registration.
using NamedTensors = torch::OrderedDict<std::string, torch::Tensor>;

/// What every variant is: trained values of one layer, and how they compose to a weight delta.
/// Merging, patching, files and the fast forward pass are written against this class alone.
///
/// Equation: delta = scale * up * down with (down, up) = factors()
class Adapter {
 public:
  virtual ~Adapter() = default;

  /// The variant's name in files and flags, such as "light".
  virtual std::string variant() const = 0;
  /// The composed factors, differentiable with respect to the trained values.
  /// Shapes: down (r, in), up (out, r)
  virtual Factors factors() const = 0;
  /// Sets the trained values to their start, as `options().init()` says.
  virtual void reset_parameters() = 0;
  /// The adapter as a torch module: its parameters are what is trained, its buffers what is frozen.
  virtual torch::nn::Module& module() = 0;
  virtual const torch::nn::Module& module() const = 0;

  /// The layer that the adapter was made for.
  const LayerInfo& layer() const { return layer_; }
  const LoRAOptions& options() const { return options_; }

  /// Factor of the delta: `network_alpha / rank`, or 1 without `network_alpha`, until it is set.
  double scale() const { return scale_; }
  void set_scale(double scale) { scale_ = scale; }
  /// Inner width of the factors.
  virtual int64_t rank() const { return options_.rank(); }

  /// scale * up * down as one matrix (out, in), in the dtype of the factors.
  torch::Tensor delta() const {
    const Factors f = factors();
    return f.up.mm(f.down) * scale_;
  }

  /// What is trained, by its name in files.
  NamedTensors trained() const { return module().named_parameters(/*recurse=*/false); }
  /// What is frozen, by its name in files.
  NamedTensors frozen() const { return module().named_buffers(/*recurse=*/false); }
  int64_t trained_count() const { return count(trained()); }
  int64_t frozen_count() const { return count(frozen()); }

  /// One line for people: variant, layer, shape, rank, scale, counts, and any clamped size.
  std::string description() const {
    std::ostringstream text;
    text << variant() << " adapter of '" << layer_.name << "' (" << layer_.in << " -> "
         << layer_.out << "): rank " << rank() << ", scale " << scale_ << ", trains "
         << trained_count() << " values";
    if (frozen_count() > 0) text << ", " << frozen_count() << " frozen";
    text << remarks();
    return text.str();
  }

 protected:
  Adapter(LoRAOptions options, LayerInfo layer)
      : options_(std::move(options)), layer_(std::move(layer)) {
    TORCH_CHECK_VALUE(options_.rank() > 0, "lightlora: '", layer_.name,
                      "': expected rank > 0, got ", options_.rank(),
                      "; hint: 4 is the usual start");
    TORCH_CHECK_VALUE(layer_.in > 0 && layer_.out > 0, "lightlora: '", layer_.name,
                      "': expected a layer with inputs and outputs, got ", layer_.in, " -> ",
                      layer_.out);
    if (options_.network_alpha()) {
      scale_ = *options_.network_alpha() / static_cast<double>(options_.rank());
    }
  }

  /// Anything that `description` should add, beginning with ", ".
  virtual std::string remarks() const { return ""; }

  LoRAOptions options_;
  LayerInfo layer_;

 private:
  static int64_t count(const NamedTensors& tensors) {
    int64_t sum = 0;
    for (const auto& item : tensors) sum += item.value().numel();
    return sum;
  }

  double scale_ = 1.0;
};

/// Base of the variants' modules: a cloneable torch module that is an Adapter.
/// (Two bases, because torch's Cloneable derives from Module non-virtually.)
template <typename Derived>
class AdapterModule : public torch::nn::Cloneable<Derived>, public Adapter {
 public:
  AdapterModule(LoRAOptions options, LayerInfo layer)
      : Adapter(std::move(options), std::move(layer)) {}

  std::string variant() const override { return Derived::kVariant; }
  torch::nn::Module& module() override { return *this; }
  const torch::nn::Module& module() const override { return *this; }

  void pretty_print(std::ostream& stream) const override {
    stream << "lightlora::" << description();
  }
};

namespace detail {

/// Sizes of the two frozen bases after clamping to the layer, checked against the rank.
struct AuxShape {
  int64_t in;
  int64_t out;

  AuxShape(const LoRAOptions& options, const LayerInfo& layer)
      : in(std::min(options.aux_in(), layer.in)), out(std::min(options.aux_out(), layer.out)) {
    TORCH_CHECK_VALUE(in > 0 && out > 0, "lightlora: '", layer.name,
                      "': expected aux_in > 0 and aux_out > 0, got ", options.aux_in(), " and ",
                      options.aux_out(), "; hint: 100 and 50 are the usual choice");
    TORCH_CHECK_VALUE(options.rank() <= std::min(in, out), "lightlora: '", layer.name,
                      "': expected rank <= ", std::min(in, out), " (directions of the bases: ", in,
                      " in, ", out, " out), got ", options.rank(),
                      "; hint: lower the rank or leave this layer out");
  }

  std::string remarks(const LoRAOptions& options) const {
    std::string text;
    if (in < options.aux_in()) text += ", aux_in clamped to " + std::to_string(in);
    if (out < options.aux_out()) text += ", aux_out clamped to " + std::to_string(out);
    return text;
  }
};

}  // namespace detail

}  // namespace lightlora
