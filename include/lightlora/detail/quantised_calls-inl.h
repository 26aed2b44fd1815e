// SPDX-License-Identifier: Apache-2.0
#pragma once

// The operators that get a weight in eight bits, and what is called in their place.
#include <lightlora/detail/quantised_weight.h>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>

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
// the other of the two, so that derivatives of any order are right but for what eight bits round.
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

// A convolution of stride 1, or the gradient of one.
struct Convolution : torch::autograd::Function<Convolution> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                            const Held& weight, const OptionalTensor& bias, at::IntArrayRef padding,
                            bool transposed) {
    ctx->saved_data["weight"] = capsule_of(weight);
    ctx->saved_data["padding"] = padding;
    ctx->saved_data["transposed"] = transposed;
    ctx->saved_data["bias"] = bias ? at::IValue(bias->scalar_type()) : at::IValue();
    return weight->convolution(x, bias, padding, transposed);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    at::Tensor dx, db;
    if (ctx->needs_input_grad(0)) {
      dx = apply(grads[0], held_in(ctx->saved_data["weight"]), OptionalTensor(),
                 ctx->saved_data["padding"].toIntVector(), !ctx->saved_data["transposed"].toBool());
    }
    const auto& bias = ctx->saved_data["bias"];
    if (!bias.isNone() && ctx->needs_input_grad(1)) {
      db = grads[0].sum({0, 2, 3}).to(bias.toScalarType());
    }
    const at::Tensor none;
    return {dx, none, db, none, none};
  }
};

// The weight in full, or what of it a view sees; any other tensor as it is.
inline at::Tensor dense_of(const at::Tensor& tensor) {
  const QuantisedWeight* weight = QuantisedWeight::of(tensor);
  if (!weight) return tensor;
  TORCH_CHECK(
      !(tensor.requires_grad() && at::GradMode::is_enabled()),
      "expected a frozen weight where it is kept in eight bits, got one that trains; hint: ",
      "lightlora::dequantize the model first");
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

inline bool all_ones(at::IntArrayRef values) {
  return std::all_of(values.begin(), values.end(), [](int64_t value) { return value == 1; });
}

// Whether a convolution can be computed in eight bits, and its gradient too.
inline bool convolves(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const QuantisedWeight* held = QuantisedWeight::of(weight);
  if (!held || weight.sizes() != at::IntArrayRef(held->sizes()) || weight.requires_grad()) {
    return false;
  }
  if (is_quantized(x) || x.dim() != 4 || x.numel() == 0 || x.size(1) != weight.size(1))
    return false;
  if (padding.size() != 2 || !all_ones(stride) || !all_ones(dilation) || groups != 1) return false;
  for (int64_t i = 0; i < 2; ++i) {
    const int64_t side = weight.size(2 + i), pad = padding[static_cast<size_t>(i)];
    if (pad < 0 || pad >= side || x.size(2 + i) + 2 * pad < side) return false;
  }
  return true;
}

inline at::Tensor conv2d_kernel(const at::Tensor& x, const at::Tensor& weight,
                                const OptionalTensor& given, at::IntArrayRef stride,
                                at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const BelowQuantised below(kQuantisedKey);
  const auto bias = given && given->defined() ? given : std::nullopt;
  const std::vector<int64_t> both =
      padding.size() == 1 ? std::vector<int64_t>(2, padding[0]) : padding.vec();
  if (convolves(x, weight, stride, both, dilation, groups)) {
    return Convolution::apply(as_autocast(x), QuantisedWeight::held_by(weight), bias, both,
                              /*transposed=*/false);
  }
  return at::conv2d(dense_of(x), dense_of(weight), bias, stride, padding, dilation, groups);
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
                  "that is kept in eight bits, for ", op.schema().name(),
                  "; hint: lightlora::dequantize the model first");
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
  aten->impl("conv2d", quantised::conv2d_kernel);
  quantised::let_views_pass(*aten);
}

}  // namespace detail

}  // namespace lightlora
