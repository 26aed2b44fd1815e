// SPDX-License-Identifier: Apache-2.0
#pragma once

// The operators through which layers use their weights, and what is called in their place.
#include <lightlora/detail/adapted_layers-inl.h>
#include <lightlora/detail/interception.h>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <memory>
#include <mutex>

namespace lightlora {

namespace detail {

// What a kernel calls is LibTorch's own: autocast and autograd see it as if the layer had called
// it.
using Below = c10::impl::ExcludeDispatchKeyGuard;

// x weight^T + bias from a packed copy of exactly this weight; undefined where there is none that
// can be used.
inline at::Tensor packed_product(const at::Tensor& x, const at::Tensor& weight,
                                 const std::optional<at::Tensor>& bias) {
  const PackedSite* site = find_packed(weight);
  if (!site || weight.dim() != 2 || x.dim() == 0 || x.size(-1) != weight.size(1)) return {};
  if (autocast_dtype(x) || !PackedWeight::usable(x, site->tensor, bias)) return {};
  return packed_linear(x, site->tensor, bias, *site->packed);
}

// a b of matrices or stacks of them, if one is an adapted weight or its transpose, or b the transpose
// of a packed one; else undefined.
// The transpose on the right is what layers compute; the other three are what models do with
// weights themselves, and what LibTorch's derivatives do, which must not be touched.
inline at::Tensor product_of_site(const at::Tensor& a, const at::Tensor& b,
                                  const std::optional<at::Tensor>& bias = std::nullopt) {
  if (b.dim() == 2) {
    if (const Match match = match_matrix(b)) {
      if (match.transposed) return adapted_linear(a, b.t(), bias, match);
      if (bias || in_derivative()) return {};
      return adapted_linear_t(a, b, match);
    }
    if (packs() && !in_derivative()) {
      if (at::Tensor y = packed_product(a, b.t(), bias); y.defined()) return y;
    }
  }
  if (bias || a.dim() != 2 || b.dim() < 1 || in_derivative()) return {};
  const Match match = match_matrix(a);
  if (!match) return {};
  const auto flip = [&](const at::Tensor& t) { return b.dim() == 1 ? t : t.transpose(-2, -1); };
  return flip(match.transposed ? adapted_linear_t(flip(b), a.t(), match)
                               : adapted_linear(flip(b), a, {}, match));
}

inline at::Tensor linear_of_matrix(const at::Tensor& x, const at::Tensor& weight,
                                   const std::optional<at::Tensor>& bias) {
  if (const Match match = match_matrix(weight)) {
    if (!match.transposed) return adapted_linear(x, weight, bias, match);
    if (!in_derivative()) {
      const at::Tensor y = adapted_linear_t(x, weight.t(), match);
      return bias ? at::add(y, *bias) : y;
    }
  }
  if (packs()) {
    if (at::Tensor y = packed_product(x, weight, bias); y.defined()) return y;
  }
  return at::linear(x, weight, bias);
}

// A bias may be left out by none, or by an undefined tensor.
inline at::Tensor linear_kernel(const at::Tensor& x, const at::Tensor& weight,
                                const std::optional<at::Tensor>& given) {
  const Below below(kModeKey);
  const auto bias = given && given->defined() ? given : std::nullopt;
  const at::Tensor y = linear_of_matrix(x, weight, bias);
  const AdaptedSite* vector = match_vector(bias);
  return vector ? plus_bias_delta(y, *vector, 0) : y;
}

inline at::Tensor matmul_kernel(const at::Tensor& a, const at::Tensor& b) {
  const Below below(kModeKey);
  const at::Tensor found = product_of_site(a, b);
  return found.defined() ? found : at::matmul(a, b);
}

inline at::Tensor addmm_kernel(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b,
                               const at::Scalar& beta, const at::Scalar& alpha) {
  const Below below(kModeKey);
  const bool plain = bias.dim() == 1 && beta.toDouble() == 1 && alpha.toDouble() == 1;
  const at::Tensor found =
      product_of_site(a, b, plain ? std::optional<at::Tensor>(bias) : std::nullopt);
  const AdaptedSite* vector = plain ? match_vector(bias) : nullptr;
  const at::Tensor y = !found.defined() ? at::addmm(bias, a, b, beta, alpha)
                       : plain          ? found
                                        : at::add(found * alpha, bias, beta);
  return vector ? plus_bias_delta(y, *vector, 0) : y;
}

// The adapted bias that one side of a sum is, or null: how torch::nn::Linear adds its bias where x has
// more than two dimensions, and models theirs.
inline const AdaptedSite* added_vector(const at::Tensor& side) {
  return side.dim() == 1 && !in_derivative() ? match_vector(side) : nullptr;
}

inline at::Tensor add_kernel(const at::Tensor& a, const at::Tensor& b, const at::Scalar& alpha) {
  const Below below(kModeKey);
  const at::Tensor sum = at::add(a, b, alpha);
  if (const AdaptedSite* vector = added_vector(b)) {
    return at::add(sum, delta_of_vector(*vector).to(sum.scalar_type()), alpha);
  }
  const AdaptedSite* vector = added_vector(a);
  return vector ? at::add(sum, delta_of_vector(*vector).to(sum.scalar_type())) : sum;
}

inline at::Tensor& add_in_place_kernel(at::Tensor& sum, const at::Tensor& b,
                                       const at::Scalar& alpha) {
  const Below below(kModeKey);
  sum.add_(b, alpha);
  if (const AdaptedSite* vector = added_vector(b)) {
    sum.add_(delta_of_vector(*vector).to(sum.scalar_type()), alpha);
  }
  return sum;
}

// These are what derivatives are made of, so that there nothing is looked up.
inline at::Tensor mm_kernel(const at::Tensor& a, const at::Tensor& b) {
  const Below below(kModeKey);
  const at::Tensor found = in_derivative() ? at::Tensor() : product_of_site(a, b);
  return found.defined() ? found : at::mm(a, b);
}

inline at::Tensor mv_kernel(const at::Tensor& a, const at::Tensor& b) {
  const Below below(kModeKey);
  const at::Tensor found = in_derivative() ? at::Tensor() : product_of_site(a, b);
  return found.defined() ? found : at::mv(a, b);
}

// einsum brings matrices here with a batch of one.
inline at::Tensor bmm_kernel(const at::Tensor& a, const at::Tensor& b) {
  const Below below(kModeKey);
  const bool single = a.dim() == 3 && b.dim() == 3 && a.size(0) == 1 && b.size(0) == 1;
  const at::Tensor found = single && !in_derivative() ? product_of_site(a[0], b[0]) : at::Tensor();
  return found.defined() ? found.unsqueeze(0) : at::bmm(a, b);
}

// Kernels of operators that are rarely the whole cost of a layer take their arguments from a stack.
inline Arguments take_arguments(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::size_t count = op.schema().arguments().size();
  Arguments arguments(std::make_move_iterator(stack->end() - static_cast<int64_t>(count)),
                      std::make_move_iterator(stack->end()));
  torch::jit::drop(*stack, count);
  return arguments;
}

inline void give_back(torch::jit::Stack* stack, Arguments arguments) {
  stack->insert(stack->end(), std::make_move_iterator(arguments.begin()),
                std::make_move_iterator(arguments.end()));
}

// The position of `groups`: `convolution` and `_convolution` also say whether they are transposed.
template <std::size_t GroupsAt, bool Transposed>
void convolution_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Below below(kModeKey);
  Arguments arguments = take_arguments(op, stack);
  constexpr bool kBare = GroupsAt == 8;
  const bool transposed = kBare ? arguments[6].toBool() : Transposed;
  const AdaptedSite* site =
      kBare && in_derivative()
          ? nullptr
          : match_whole(arguments[1].toTensor(),
                        transposed ? LayerKind::transposed_convolution : LayerKind::convolution);
  const AdaptedSite* vector =
      kBare && in_derivative() ? nullptr : match_vector(optional_tensor(arguments[2]));
  const int64_t dimensions = arguments[1].toTensor().dim() - 2;
  if (site) {
    stack->emplace_back(adapted_convolution({op, arguments, GroupsAt, transposed}, *site));
  } else if (const PackedSite* packed = packed_kernels({op, arguments, GroupsAt, transposed})) {
    stack->emplace_back(base_convolution({op, arguments, GroupsAt, transposed}, packed));
  } else {
    give_back(stack, std::move(arguments));
    op.callBoxed(stack);
  }
  if (!vector) return;
  const at::Tensor y = torch::jit::pop(*stack).toTensor();
  stack->emplace_back(plus_bias_delta(y, *vector, dimensions));
}

inline void norm_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Below below(kModeKey);
  Arguments arguments = take_arguments(op, stack);
  const at::Tensor x = arguments[0].toTensor();
  const at::ScalarType dtype = x.scalar_type();
  const bool adapted = exchange_vectors(arguments);
  // On a CPU, the gradient of a GroupNorm with channels last writes that of x, also where there is
  // none (LibTorch 2.11).
  if (adapted && x.is_cpu() && !x.requires_grad()) {
    arguments[0] = arguments[0].toTensor().contiguous();
  }
  give_back(stack, std::move(arguments));
  op.callBoxed(stack);
  if (!adapted) return;
  const at::Tensor y = torch::jit::pop(*stack).toTensor();
  stack->emplace_back(y.to(dtype));
}

inline void embedding_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Below below(kModeKey);
  const Arguments arguments = take_arguments(op, stack);
  give_back(stack, arguments);
  op.callBoxed(stack);
  const AdaptedSite* site = match_whole(arguments[0].toTensor(), LayerKind::lookup);
  if (!site) return;
  const at::Tensor rows = torch::jit::pop(*stack).toTensor();
  stack->emplace_back(adapted_lookup(*site, rows, arguments[1].toTensor(), arguments[2].toInt(),
                                     arguments[3].toBool()));
}

// Rows that a model takes from an embedding's table itself.
inline void index_select_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Below below(kModeKey);
  const Arguments arguments = take_arguments(op, stack);
  give_back(stack, arguments);
  op.callBoxed(stack);
  if (arguments[1].toInt() != 0 || in_derivative()) return;
  const AdaptedSite* site = match_whole(arguments[0].toTensor(), LayerKind::lookup);
  if (!site) return;
  const at::Tensor rows = torch::jit::pop(*stack).toTensor();
  stack->emplace_back(adapted_lookup(*site, rows, arguments[2].toTensor(), /*padding_idx=*/-1,
                                     /*by_freq=*/false));
}

inline void embedding_bag_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Below below(kModeKey);
  constexpr std::size_t kResults = 4;
  Arguments arguments = take_arguments(op, stack);
  const at::ScalarType dtype = arguments[0].toTensor().scalar_type();
  const AdaptedSite* site = match_whole(arguments[0].toTensor(), LayerKind::bag);
  const bool exchanges = site && sums_tables(*site, arguments[4].toInt());
  if (exchanges) exchange_table(arguments, *site);
  give_back(stack, arguments);
  op.callBoxed(stack);
  if (!site) return;
  auto& result = (*stack)[stack->size() - kResults];
  result = exchanges ? result.toTensor().to(dtype)
                     : adapted_bags(op, arguments, *site, result.toTensor());
}

inline void bilinear_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Below below(kModeKey);
  const Arguments arguments = take_arguments(op, stack);
  give_back(stack, arguments);
  op.callBoxed(stack);
  const AdaptedSite* site = match_whole(arguments[2].toTensor(), LayerKind::bilinear);
  if (!site) return;
  const at::Tensor y = torch::jit::pop(*stack).toTensor();
  stack->emplace_back(adapted_bilinear(arguments[0].toTensor(), arguments[1].toTensor(), *site, y));
}

// Recurrent layers, and the operators that do a whole attention or encoder layer in inference.
inline void exchanging_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Below below(kModeKey);
  Arguments arguments = take_arguments(op, stack);
  for (auto& argument : arguments) argument = exchanged(argument);
  give_back(stack, std::move(arguments));
  op.callBoxed(stack);
}

using BoxedKernel = void(const c10::OperatorHandle&, torch::jit::Stack*);

template <BoxedKernel* Kernel>
void add_boxed(torch::Library& library, std::initializer_list<const char*> names) {
  for (const std::string name : names) {
    const auto dot = name.find('.');
    const std::string overload = dot == std::string::npos ? "" : name.substr(dot + 1);
    const auto known =
        c10::Dispatcher::singleton().findSchema({"aten::" + name.substr(0, dot), overload});
    if (known) library.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<Kernel>());
  }
}

inline void add_kernels(torch::Library& library) {
  library.impl("linear", linear_kernel);
  library.impl("matmul", matmul_kernel);
  library.impl("addmm", addmm_kernel);
  library.impl("add.Tensor", add_kernel);
  library.impl("add_.Tensor", add_in_place_kernel);
  library.impl("mm", mm_kernel);
  library.impl("mv", mv_kernel);
  library.impl("bmm", bmm_kernel);
  add_boxed<convolution_kernel<6, false>>(library, {"conv1d", "conv2d", "conv3d", "conv1d.padding",
                                                    "conv2d.padding", "conv3d.padding"});
  add_boxed<convolution_kernel<6, true>>(
      library, {"conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"});
  add_boxed<convolution_kernel<8, false>>(library, {"convolution", "_convolution"});
  add_boxed<embedding_kernel>(library, {"embedding"});
  add_boxed<index_select_kernel>(library, {"index_select"});
  add_boxed<embedding_bag_kernel>(library, {"embedding_bag", "embedding_bag.padding_idx"});
  add_boxed<bilinear_kernel>(library, {"bilinear"});
  add_boxed<norm_kernel>(library, {"layer_norm", "group_norm"});
  add_boxed<exchanging_kernel>(
      library,
      {"lstm.input", "lstm.data", "gru.input", "gru.data", "rnn_tanh.input", "rnn_tanh.data",
       "rnn_relu.input", "rnn_relu.data", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
       "_native_multi_head_attention", "_transformer_encoder_layer_fwd"});
}

// A process may hold this library several times, in several shared libraries: the first one whose
// adapters become active registers the kernels for all. They find what is active through LibTorch.
LIGHTLORA_INLINE void register_kernels() {
  static std::mutex mutex;
  static std::unique_ptr<torch::Library> all, aten;
  const std::lock_guard<std::mutex> lock(mutex);
  if (aten) return;
  const auto linear = c10::Dispatcher::singleton().findSchemaOrThrow("aten::linear", "");
  if (linear.hasKernelForDispatchKey(kModeKey)) return;
  const auto make = [](const char* space) {
    return std::make_unique<torch::Library>(torch::Library::IMPL, space, kModeKey, __FILE__,
                                            __LINE__);
  };
  // One fallback a key: that of somebody else is a fallthrough too, or nothing would work beside
  // it.
  if (!c10::Dispatcher::singleton().hasBackendFallbackForDispatchKey(kModeKey)) {
    all = make("_");
    all->fallback(torch::CppFunction::makeFallthrough());
  }
  aten = make("aten");
  add_kernels(*aten);
}

}  // namespace detail

}  // namespace lightlora
