// SPDX-License-Identifier: Apache-2.0
#pragma once

// The operators that get a weight in eight or four bits, and what is called in their place.
#include <lightlora/detail/quantised_weight.h>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace lightlora {

namespace detail::quantised {

using Held = c10::intrusive_ptr<QuantisedWeight>;
using BelowQuantised = c10::impl::ExcludeDispatchKeyGuard;
using OptionalTensor = std::optional<at::Tensor>;

inline at::IValue capsule_of(const Held& weight) { return at::IValue::make_capsule(weight); }

inline Held held_in(const at::IValue& value) {
  return c10::static_intrusive_pointer_cast<QuantisedWeight>(value.toCapsule());
}

// y = x W^T + bias, or x W. Of the gradients only those of x and the bias are wanted; the former is
// the other of the two, so that derivatives of any order are right but for what the weight rounds.
struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            const Held& weight, const OptionalTensor& bias, bool transposed) {
    ctx->saved_data["weight"] = capsule_of(weight);
    ctx->saved_data["transposed"] = transposed;
    ctx->saved_data["bias"] = bias ? at::IValue(bias->scalar_type()) : at::IValue();
    auto sizes = x.sizes().vec();
    const at::Tensor y = weight->product(x.reshape({-1, sizes.back()}), bias, transposed);
    sizes.back() = y.size(1);
    return at::_unsafe_view(y, sizes);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    at::Tensor dx, db;
    if (ctx->needs_input_grad(0)) {
      dx = apply(grads[0], held_in(ctx->saved_data["weight"]), OptionalTensor(),
                 !ctx->saved_data["transposed"].toBool());
    }
    const auto& bias = ctx->saved_data["bias"];
    if (!bias.isNone() && ctx->needs_input_grad(1)) {
      db = grads[0].reshape({-1, grads[0].size(-1)}).sum(0).to(bias.toScalarType());
    }
    return {dx, at::Tensor(), db, at::Tensor()};
  }
};

using Steps = c10::intrusive_ptr<ConvolutionSteps>;

// A convolution, or the gradient of one.
struct Convolution : torch::autograd::Function<Convolution> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            const Held& weight, const OptionalTensor& bias, const Steps& steps) {
    ctx->saved_data["weight"] = capsule_of(weight);
    ctx->saved_data["steps"] = at::IValue::make_capsule(steps);
    ctx->saved_data["sizes"] = x.sizes().vec();
    ctx->saved_data["bias"] = bias ? at::IValue(bias->scalar_type()) : at::IValue();
    return weight->convolution(x, bias, *steps);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    at::Tensor dx, db;
    if (ctx->needs_input_grad(0)) {
      const Held weight = held_in(ctx->saved_data["weight"]);
      const auto steps = c10::static_intrusive_pointer_cast<ConvolutionSteps>(
          ctx->saved_data["steps"].toCapsule());
      dx = apply(grads[0], weight, OptionalTensor(),
                 steps->reversed(ctx->saved_data["sizes"].toIntVector(), weight->sizes()));
    }
    const auto& bias = ctx->saved_data["bias"];
    if (!bias.isNone() && ctx->needs_input_grad(1)) {
      std::vector<int64_t> others{0};
      for (int64_t i = 2; i < grads[0].dim(); ++i) others.push_back(i);
      db = grads[0].sum(others).to(bias.toScalarType());
    }
    return {dx, at::Tensor(), db, at::Tensor()};
  }
};

// The weight in full, or what of it a view sees; any other tensor as it is.
inline at::Tensor dense_of(const at::Tensor& tensor) {
  const QuantisedWeight* weight = QuantisedWeight::of(tensor);
  if (!weight) return tensor;
  TORCH_CHECK(!(tensor.requires_grad() && at::GradMode::is_enabled()),
              "expected a frozen weight where it is kept in ", weight->kept_in(),
              ", got one that trains; hint: ", "lightlora::dequantize the model first");
  const at::Tensor full = weight->dense();
  if (tensor.sizes() == full.sizes() && tensor.strides() == full.strides()) return full;
  return full.as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
}

enum class Sight { none, whole, transposed };

// How a tensor sees its weight, if as a matrix.
inline Sight sight_of(const at::Tensor& tensor) {
  const QuantisedWeight* weight = QuantisedWeight::of(tensor);
  if (!weight || weight->sizes().size() != 2 || tensor.dim() != 2) return Sight::none;
  if (tensor.storage_offset() != 0 || tensor.requires_grad()) return Sight::none;
  const int64_t out = weight->sizes()[0], in = weight->sizes()[1];
  if (tensor.size(0) == out && tensor.size(1) == in && tensor.stride(0) == in &&
      tensor.stride(1) == 1) {
    return Sight::whole;
  }
  const bool transposed = tensor.size(0) == in && tensor.size(1) == out && tensor.stride(0) == 1 &&
                          tensor.stride(1) == in;
  return transposed ? Sight::transposed : Sight::none;
}

// As autocast would cast it, which lies below.
inline at::Tensor as_autocast(const at::Tensor& x) {
  const auto device = x.device().type();
  if (!at::autocast::is_autocast_enabled(device) || x.scalar_type() == at::kDouble) return x;
  return x.to(at::autocast::get_autocast_dtype(device));
}

// x W^T + bias or, `flipped`, x W; undefined where the operator must say what is wrong.
inline at::Tensor product_of(const at::Tensor& x, const at::Tensor& weight,
                             const OptionalTensor& bias, bool flipped) {
  const Held held = QuantisedWeight::held_by(weight);
  const int64_t in = held->sizes()[flipped ? 0 : 1];
  if (is_quantized(x) || x.dim() == 0 || x.size(-1) != in || x.numel() == 0) return {};
  return Linear::apply(as_autocast(x), held, bias, flipped);
}

inline at::Tensor linear_kernel(const at::Tensor& x, const at::Tensor& weight,
                                const OptionalTensor& given) {
  const BelowQuantised below(kQuantisedKey);
  const auto bias = given && given->defined() ? given : std::nullopt;
  const Sight sight = sight_of(weight);
  if (sight != Sight::none) {
    const at::Tensor y = product_of(x, weight, bias, sight == Sight::transposed);
    if (y.defined()) return y;
  }
  return at::linear(dense_of(x), dense_of(weight), bias);
}

// a b, if b is a weight or its transpose; else undefined.
inline at::Tensor product_with(const at::Tensor& a, const at::Tensor& b,
                               const OptionalTensor& bias = std::nullopt) {
  const Sight sight = sight_of(b);
  return sight == Sight::none ? at::Tensor() : product_of(a, b, bias, sight == Sight::whole);
}

inline at::Tensor matmul_kernel(const at::Tensor& a, const at::Tensor& b) {
  const BelowQuantised below(kQuantisedKey);
  const at::Tensor y = product_with(a, b);
  return y.defined() ? y : at::matmul(dense_of(a), dense_of(b));
}

inline at::Tensor mm_kernel(const at::Tensor& a, const at::Tensor& b) {
  const BelowQuantised below(kQuantisedKey);
  const at::Tensor y = a.dim() == 2 ? product_with(a, b) : at::Tensor();
  return y.defined() ? y : at::mm(dense_of(a), dense_of(b));
}

inline at::Tensor addmm_kernel(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                               const at::Scalar& beta, const at::Scalar& alpha) {
  const BelowQuantised below(kQuantisedKey);
  const bool plain = bias.dim() == 1 && a.dim() == 2 && beta.toDouble() == 1 &&
                     alpha.toDouble() == 1 && !is_quantized(bias);
  const at::Tensor y = plain ? product_with(a, b, bias) : at::Tensor();
  return y.defined() ? y : at::addmm(dense_of(bias), dense_of(a), dense_of(b), beta, alpha);
}

// Whether a convolution can be computed here, and its gradient too; what is wrong with any other one
// LibTorch says.
inline bool convolves(const at::Tensor& x, const at::Tensor& weight,
                      const ConvolutionSteps& steps) {
  const QuantisedWeight* held = QuantisedWeight::of(weight);
  if (!held || weight.sizes() != at::IntArrayRef(held->sizes()) || weight.requires_grad()) {
    return false;
  }
  if (is_quantized(x) || x.dim() != weight.dim() || x.numel() == 0) return false;
  if (steps.groups < 1 || x.size(1) != weight.size(1) * steps.groups ||
      weight.size(0) % steps.groups != 0) {
    return false;
  }
  for (std::size_t i = 0; i < steps.stride.size(); ++i) {
    const auto dim = static_cast<int64_t>(i) + 2;
    const int64_t reach = steps.dilation[i] * (weight.size(dim) - 1) + 1;
    if (steps.stride[i] < 1 || steps.dilation[i] < 1 || steps.padding[i] < 0) return false;
    if (x.size(dim) + 2 * steps.padding[i] < reach) return false;
  }
  return true;
}

// LibTorch takes one number for all dimensions.
inline std::vector<int64_t> for_each_dimension(at::IntArrayRef values, std::size_t count) {
  return values.size() == 1 ? std::vector<int64_t>(count, values[0]) : values.vec();
}

template <int64_t Dimensions>
at::Tensor convolution_kernel(const at::Tensor& x, const at::Tensor& weight,
                              const OptionalTensor& given, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const BelowQuantised below(kQuantisedKey);
  const auto bias = given && given->defined() ? given : std::nullopt;
  const auto steps = c10::make_intrusive<ConvolutionSteps>();
  steps->stride = for_each_dimension(stride, Dimensions);
  steps->padding = for_each_dimension(padding, Dimensions);
  steps->dilation = for_each_dimension(dilation, Dimensions);
  steps->output_padding.assign(Dimensions, 0);
  steps->groups = groups;
  if (weight.dim() == Dimensions + 2 && steps->stride.size() == Dimensions &&
      steps->padding.size() == Dimensions && steps->dilation.size() == Dimensions &&
      convolves(x, weight, *steps)) {
    return Convolution::apply(as_autocast(x), QuantisedWeight::held_by(weight), bias, steps);
  }
  const at::Tensor input = dense_of(x), full = dense_of(weight);
  if constexpr (Dimensions == 1) {
    return at::conv1d(input, full, bias, stride, padding, dilation, groups);
  } else if constexpr (Dimensions == 2) {
    return at::conv2d(input, full, bias, stride, padding, dilation, groups);
  } else {
    return at::conv3d(input, full, bias, stride, padding, dilation, groups);
  }
}

// Every other operator gets the weight in full. What would change it is refused.
inline void dense_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const size_t first = stack->size() - arguments.size();
  for (size_t i = 0; i < arguments.size(); ++i) {
    at::IValue& value = (*stack)[first + i];
    if (value.isTensor() && is_quantized(value.toTensor())) {
      const auto* alias = arguments[i].alias_info();
      TORCH_CHECK(!(alias && alias->isWrite()), "expected a weight that can be changed, got one ",
                  "that is kept in ", QuantisedWeight::of(value.toTensor())->kept_in(), ", for ",
                  op.schema().name(), "; hint: lightlora::dequantize the model first");
      value = dense_of(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& item : value.toTensorVector()) list.push_back(dense_of(item));
      value = list;
    }
  }
  const BelowQuantised below(kQuantisedKey);
  op.callBoxed(stack);
}

// What only looks at a tensor from another side, or at its sizes, needs no values.
inline void let_views_pass(torch::Library& library) {
  for (const std::string name :
       {"alias",          "detach",       "t",
        "transpose.int",  "as_strided",   "view",
        "_reshape_alias", "reshape",      "flatten.using_ints",
        "narrow",         "slice.Tensor", "select.int",
        "unsqueeze",      "permute",      "_has_compatible_shallow_copy_type",
        "empty_like",     "zeros_like",   "ones_like",
        "new_empty",      "new_zeros"}) {
    const auto dot = name.find('.');
    const std::string overload = dot == std::string::npos ? "" : name.substr(dot + 1);
    const auto known =
        c10::Dispatcher::singleton().findSchema({"aten::" + name.substr(0, dot), overload});
    if (known) library.impl(name.c_str(), torch::CppFunction::makeFallthrough());
  }
}

}  // namespace detail::quantised

namespace detail {

// A process may hold this library several times, in several shared libraries: the first one whose
// weights are quantised registers the kernels for all.
LIGHTLORA_INLINE void register_quantised_kernels() {
  static std::mutex mutex;
  static std::unique_ptr<torch::Library> all, aten;
  const std::lock_guard<std::mutex> lock(mutex);
  if (aten) return;
  const auto linear = c10::Dispatcher::singleton().findSchemaOrThrow("aten::linear", "");
  if (linear.hasKernelForDispatchKey(kQuantisedKey)) return;
  const auto make = [](const char* space) {
    return std::make_unique<torch::Library>(torch::Library::IMPL, space, kQuantisedKey, __FILE__,
                                            __LINE__);
  };
  all = make("_");
  all->fallback(torch::CppFunction::makeFromBoxedFunction<&quantised::dense_kernel>());
  aten = make("aten");
  aten->impl("linear", quantised::linear_kernel);
  aten->impl("matmul", quantised::matmul_kernel);
  aten->impl("mm", quantised::mm_kernel);
  aten->impl("addmm", quantised::addmm_kernel);
  aten->impl("conv1d", quantised::convolution_kernel<1>);
  aten->impl("conv2d", quantised::convolution_kernel<2>);
  aten->impl("conv3d", quantised::convolution_kernel<3>);
  quantised::let_views_pass(*aten);
}

}  // namespace detail

}  // namespace lightlora
