// SPDX-License-Identifier: Apache-2.0
// One frozen Linear with one adapter, computed in every way that is compared.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <lightlora/lightlora.h>
#include <torch/nn/modules/container/sequential.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace bench {

/// N rows through a weight (M, K).
struct Shape {
  int64_t n = 0, k = 0, m = 0;
};

/// `bare`: the frozen layer alone. `composed`: base(x) + scale * up(down(x)) from single operators,
/// as adapters are usually written. `inactive`: a patched `torch::nn::Linear` while no adapter is
/// active. The others are routes of one while it is; `packed` is the automatic one while the weight is
/// kept in the CPU kernels' layout too, `switched` the automatic one with another of two sets of
/// adapters activated before each call, which the time includes. `int8_bare` and `int8` are `inactive`
/// and the automatic one over a weight that `lightlora::quantize` keeps in eight bits.
enum class Form {
  bare,
  composed,
  inactive,
  bypass,
  merged,
  automatic,
  packed,
  switched,
  int8_bare,
  int8
};

inline const std::vector<std::pair<Form, std::string>>& forms() {
  static const std::vector<std::pair<Form, std::string>> all{
      {Form::bare, "bare"},     {Form::composed, "composed"}, {Form::inactive, "inactive"},
      {Form::bypass, "bypass"}, {Form::merged, "merged"},     {Form::automatic, "auto"},
      {Form::packed, "packed"}, {Form::switched, "switched"}, {Form::int8_bare, "int8_bare"},
      {Form::int8, "int8"}};
  return all;
}

inline std::string to_string(Form form) {
  for (const auto& [value, name] : forms()) {
    if (value == form) return name;
  }
  return "?";
}

inline Form parse_form(const std::string& text) {
  for (const auto& [value, name] : forms()) {
    if (text == name) return value;
  }
  std::vector<std::string> known;
  for (const auto& form : forms()) known.push_back(form.second);
  TORCH_CHECK_VALUE(false, "form: expected one of ", fmt::format("{}", fmt::join(known, ", ")),
                    ", got '", text, "'");
}

/// Whether no adapter takes part.
inline bool is_bare(Form form) {
  return form == Form::bare || form == Form::inactive || form == Form::int8_bare;
}

/// Whether the weight is kept in eight bits.
inline bool is_int8(Form form) { return form == Form::int8_bare || form == Form::int8; }

struct LayerSetup {
  std::string variant = "classic";
  int64_t rank = 4;
  Shape shape;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
};

class LayerCase {
 public:
  explicit LayerCase(LayerSetup setup) : setup_(std::move(setup)) {
    const auto& s = setup_.shape;
    torch::manual_seed(1);
    plain_.model =
        torch::nn::Sequential(torch::nn::Linear(torch::nn::LinearOptions(s.k, s.m).bias(false)));
    plain_.model->to(setup_.device, setup_.dtype);
    const auto options = adapter_options();
    plain_.lora = lightlora::patch(*plain_.model, setup_.variant, options, {"0"});
    plain_.lora->add(kOther, setup_.variant, options, {"0"});
    plain_.lora->set_active({{kOwn, 1.0}});
    plain_.parameters = plain_.lora->named_parameters(kOwn).values();
    plain_.others = plain_.lora->named_parameters(kOther).values();
    {
      // Zero factors would hide errors, and zeros are cheaper to multiply on some devices.
      const at::NoGradGuard no_grad;
      for (auto& parameter : plain_.lora->parameters()) parameter.normal_(0, 0.1);
    }
    adapter_ = plain_.lora->adapters()[0];
    packed_ = lightlora::pack_weights(*plain_.model);
    fresh_inputs();
  }

  const LayerSetup& setup() const { return setup_; }
  /// Inner width of the factors.
  int64_t inner_rank() const { return adapter_->rank(); }

  /// Whether this device and dtype have packed weights.
  bool can_pack() const { return lightlora::PackedWeight::usable(x_, weight(), std::nullopt); }

  void fresh_inputs() {
    const auto options = at::TensorOptions(setup_.device).dtype(setup_.dtype);
    x_ = at::randn({setup_.shape.n, setup_.shape.k}, options).requires_grad_();
    dy_ = at::randn({setup_.shape.n, setup_.shape.m}, options);
    others_turn_ = true;  // so that what is checked next is the set that `in_double` computes
  }

  at::Tensor forward(Form form) {
    activate(form);
    if (form == Form::bare) return at::linear(x_, weight());
    if (form == Form::composed) {
      return composed(x_, weight(), adapter_->factors(), adapter_->scale());
    }
    const lightlora::Route route = form == Form::bypass   ? lightlora::Route::bypass
                                   : form == Form::merged ? lightlora::Route::merged
                                                          : lightlora::Route::automatic;
    if (is_int8(form)) return int8().model->forward(x_);
    if (route != route_) plain_.lora->set_route(route_ = route);
    return plain_.model->forward(x_);
  }

  /// No adapter is active and no weight packed until the next call.
  void rest() {
    active_.reset();
    packing_.reset();
  }

  /// The gradients of x and, but for the bare layer, of what is trained.
  std::vector<at::Tensor> backward(const at::Tensor& y, Form form) {
    std::vector<at::Tensor> leaves{x_};
    const auto add = [&](const std::vector<at::Tensor>& trained) {
      leaves.insert(leaves.end(), trained.begin(), trained.end());
    };
    if (!is_bare(form)) add(form == Form::int8 ? int8().parameters : plain_.parameters);
    if (form != Form::switched) return torch::autograd::grad({y}, leaves, {dy_});
    // Whichever of the two sets was active when y was computed.
    add(plain_.others);
    std::vector<at::Tensor> gradients;
    for (auto& gradient : torch::autograd::grad({y}, leaves, {dy_}, /*retain_graph=*/std::nullopt,
                                                /*create_graph=*/false, /*allow_unused=*/true)) {
      if (gradient.defined()) gradients.push_back(gradient);
    }
    return gradients;
  }

  /// The largest relative error of the output and of all gradients against the same values in
  /// double, on fresh inputs.
  double error(Form form) {
    fresh_inputs();
    std::vector<at::Tensor> ours{forward(form)};
    for (const auto& gradient : backward(ours[0], form)) ours.push_back(gradient);
    const auto exact = in_double(form);
    double largest = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      const auto difference = ours[i].to(at::kCPU, at::kDouble) - exact[i];
      const double error = (difference.norm() / exact[i].norm()).item<double>();
      if (!(error <= largest)) largest = error;  // a NaN stays
    }
    return largest;
  }

 private:
  struct Patched {
    torch::nn::Sequential model;
    lightlora::Patched lora;
    std::vector<at::Tensor> parameters, others;  // of the two sets
  };
  static constexpr const char* kOwn = "default";
  static constexpr const char* kOther = "other";
  static constexpr const char* kInt8 = "int8";  // not a set's name, but the other model's own set

  const at::Tensor& weight() const {
    return plain_.model->ptr(0)->as<torch::nn::LinearImpl>()->weight;
  }

  // The same layer and the same adapter once more, over the weight in eight bits.
  Patched& int8() {
    if (int8_) return *int8_;
    const auto& s = setup_.shape;
    int8_ = std::make_unique<Patched>();
    int8_->model =
        torch::nn::Sequential(torch::nn::Linear(torch::nn::LinearOptions(s.k, s.m).bias(false)));
    int8_->model->to(setup_.device, setup_.dtype);
    const at::NoGradGuard no_grad;
    int8_->model->ptr(0)->as<torch::nn::LinearImpl>()->weight.copy_(weight());
    lightlora::quantize(*int8_->model);
    int8_->lora = lightlora::patch(*int8_->model, setup_.variant, adapter_options(), {"0"});
    int8_->parameters = int8_->lora->named_parameters(kOwn).values();
    for (std::size_t i = 0; i < int8_->parameters.size(); ++i) {
      int8_->parameters[i].copy_(plain_.parameters[i]);
    }
    return *int8_;
  }

  lightlora::LoRAOptions adapter_options() const {
    return lightlora::LoRAOptions(setup_.rank).network_alpha(2);
  }

  void activate_set(const char* name) {
    active_.reset();
    active_ = std::make_unique<lightlora::Activation>(plain_.lora->activate({{name, 1.0}}));
    active_name_ = name;
  }

  void activate_int8() {
    if (active_ && active_name_ == kInt8) return;
    active_.reset();
    active_ = std::make_unique<lightlora::Activation>(int8().lora->activate({{kOwn, 1.0}}));
    active_name_ = kInt8;
  }

  // A model activates once for all of its layers, so no layer's time has that in it, but for the
  // form that is there for it.
  void activate(Form form) {
    const bool adapts = !is_bare(form) && form != Form::composed;
    if (form == Form::switched) {
      others_turn_ = !others_turn_;
      activate_set(others_turn_ ? kOther : kOwn);
    } else if (form == Form::int8) {
      activate_int8();
    } else if (adapts && (!active_ || active_name_ != kOwn)) {
      activate_set(kOwn);
    } else if (!adapts) {
      active_.reset();
    }
    const bool packs = form == Form::packed;
    if (packs == (packing_ != nullptr)) return;
    packing_.reset();
    if (packs) packing_ = std::make_unique<lightlora::Packing>(packed_.activate());
  }

  static at::Tensor composed(const at::Tensor& x, const at::Tensor& weight,
                             const lightlora::Factors& factors, double scale) {
    const auto dtype = x.scalar_type();
    return at::linear(x, weight) +
           at::linear(at::linear(x, factors.down.to(dtype)), factors.up.to(dtype)) * scale;
  }

  std::vector<at::Tensor> in_double(Form form) {
    const auto wide = [](const at::Tensor& t) {
      return t.detach().to(at::kCPU, at::kDouble).requires_grad_(t.requires_grad());
    };
    const auto twin = lightlora::make_adapter(lightlora::state_of(*adapter_));
    twin->module().to(at::kDouble);
    std::vector<at::Tensor> leaves{wide(x_)};
    const at::Tensor base = wide(weight());
    if (!is_bare(form)) {
      for (const auto& item : twin->trained()) leaves.push_back(item.value());
    }
    const at::Tensor y = is_bare(form) ? at::linear(leaves[0], base)
                                       : composed(leaves[0], base, twin->factors(), twin->scale());
    std::vector<at::Tensor> result{y.detach()};
    for (const auto& gradient : torch::autograd::grad({y}, leaves, {wide(dy_)})) {
      result.push_back(gradient);
    }
    return result;
  }

  LayerSetup setup_;
  Patched plain_;
  std::unique_ptr<Patched> int8_;
  lightlora::PackedWeights packed_;
  std::shared_ptr<lightlora::Adapter> adapter_;
  lightlora::Route route_ = lightlora::Route::automatic;
  std::unique_ptr<lightlora::Activation> active_;
  std::string active_name_;
  bool others_turn_ = true;
  std::unique_ptr<lightlora::Packing> packing_;
  at::Tensor x_, dy_;
};

}  // namespace bench
