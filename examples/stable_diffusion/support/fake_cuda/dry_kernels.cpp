// SPDX-License-Identifier: Apache-2.0
// The kernels of the dry device that LibTorch has no shapes for, or not those of a GPU.
#include <ATen/native/ConvUtils.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/utils/ParamUtils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/Scalar.h>
#include <torch/library.h>

#include <atomic>
#include <optional>

#include "support/fake_cuda/device.h"
#include "support/fake_cuda/dry_device.h"
#include "support/fake_cuda/dry_state.h"
#include "support/fake_cuda/fake_cuda.h"
#include "support/fake_cuda/operators.h"
#include "support/fake_cuda/tensor_kernels.h"

namespace fake_cuda {
namespace {

using at::IntArrayRef;
using at::Tensor;
template <typename T>
using Maybe = std::optional<T>;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Mask = std::array<bool, 3>;

std::atomic<double> operations{0};

void count(const char* name) { count_kernel({std::string("aten::") + name, ""}); }

double elements(const Tensor& tensor) { return static_cast<double>(tensor.numel()); }

// --- what the host reads

// Ones, which stand for "finite", "true" and a number that nothing is divided by in vain.
Tensor& copy(Tensor& self, const Tensor& source, bool non_blocking) {
  count("copy_");
  const bool crosses = self.is_cuda() != source.is_cuda();
  if (crosses && is_recording()) refuse_while_recording("copy_ from or to the host");
  if (self.numel() == 0 || !crosses) return self;
  self.is_cuda() ? count_upload() : count_download();
  const Tensor& host = self.is_cuda() ? source : self;
  if (!non_blocking || !is_pinned(host.storage().data())) {
    count_wait(self.is_cuda() ? "copy_ to the device" : "copy_ to the host");
  }
  if (!self.is_cuda()) self.fill_(1);
  return self;
}

at::Scalar read_scalar(const Tensor& self) {
  count("_local_scalar_dense");
  count_wait("_local_scalar_dense");
  if (self.scalar_type() == at::kBool) return true;
  return at::isFloatingType(self.scalar_type()) ? at::Scalar(1.0) : at::Scalar(int64_t{1});
}

// --- convolutions and norms

Tensor convolution(const Tensor& input, const Tensor& weight, const Maybe<Tensor>&,
                   IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool transposed,
                   IntArrayRef output_padding, int64_t groups) {
  count("convolution");
  // One number may stand for all directions.
  const auto each = [&](IntArrayRef given, const char* name) {
    return at::native::expand_param_if_needed(given, name, input.dim() - 2);
  };
  const auto steps = each(stride, "stride"), around = each(padding, "padding");
  const auto apart = each(dilation, "dilation"), behind = each(output_padding, "output_padding");
  const auto sizes = transposed ? at::native::conv_input_size(input.sizes(), weight.sizes(), around,
                                                              behind, steps, apart, groups)
                                : at::native::conv_output_size(input.sizes(), weight.sizes(),
                                                               around, steps, apart);
  Tensor output = at::empty(sizes, input.options());
  const Tensor& many = transposed ? input : output;
  count_operations(2 * elements(many) * elements(weight) / static_cast<double>(weight.size(0)));
  return output;
}

Three convolution_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                           at::OptionalIntArrayRef bias, IntArrayRef, IntArrayRef, IntArrayRef,
                           bool transposed, IntArrayRef, int64_t, Mask mask) {
  count("convolution_backward");
  const Tensor& many = transposed ? input : grad;
  const double one = 2 * elements(many) * elements(weight) / static_cast<double>(weight.size(0));
  count_operations(one * (mask[0] + mask[1]));
  return {mask[0] ? at::empty_like(input) : Tensor(), mask[1] ? at::empty_like(weight) : Tensor(),
          mask[2] && bias ? at::empty(*bias, grad.options()) : Tensor()};
}

Three group_norm(const Tensor& input, const Maybe<Tensor>&, const Maybe<Tensor>&, int64_t n,
                 int64_t, int64_t, int64_t group, double) {
  count("native_group_norm");
  return {at::empty_like(input), at::empty({n, group}, input.options()),
          at::empty({n, group}, input.options())};
}

Tensor like_if(bool wanted, const Maybe<Tensor>& weight, int64_t size, const Tensor& grad) {
  if (!wanted) return {};
  return weight && weight->defined() ? at::empty_like(*weight) : at::empty({size}, grad.options());
}

Three group_norm_backward(const Tensor& grad, const Tensor& input, const Tensor&, const Tensor&,
                          const Maybe<Tensor>& weight, int64_t, int64_t channels, int64_t, int64_t,
                          Mask mask) {
  count("native_group_norm_backward");
  return {mask[0] ? at::empty_like(input) : Tensor(), like_if(mask[1], weight, channels, grad),
          like_if(mask[2], weight, channels, grad)};
}

Three layer_norm(const Tensor& input, IntArrayRef shape, const Maybe<Tensor>&, const Maybe<Tensor>&,
                 double) {
  count("native_layer_norm");
  std::vector<int64_t> sizes = input.sizes().vec();
  for (size_t i = sizes.size() - shape.size(); i < sizes.size(); ++i) sizes[i] = 1;
  const auto statistics = input.options().dtype(at::kFloat);
  return {at::empty_like(input, at::MemoryFormat::Contiguous), at::empty(sizes, statistics),
          at::empty(sizes, statistics)};
}

Three layer_norm_backward(const Tensor& grad, const Tensor& input, IntArrayRef shape, const Tensor&,
                          const Tensor&, const Maybe<Tensor>& weight, const Maybe<Tensor>&,
                          Mask mask) {
  count("native_layer_norm_backward");
  return {mask[0] ? at::empty_like(input) : Tensor(), like_if(mask[1], weight, shape[0], grad),
          like_if(mask[2], weight, shape[0], grad)};
}

Two dropout(const Tensor& input, double, Maybe<bool>) {
  count("native_dropout");
  return {at::empty_like(input), at::empty_like(input, input.options().dtype(at::kBool))};
}

Tensor dropout_backward(const Tensor& grad, const Tensor&, double) {
  count("native_dropout_backward");
  return at::empty_like(grad);
}

// --- attention

// A GPU has a fused kernel but for masks; which one makes no difference to the memory here.
int64_t choose_attention(const Tensor&, const Tensor&, const Tensor&, const Maybe<Tensor>& mask,
                         double, bool, Maybe<double>, bool) {
  return static_cast<int64_t>(mask && mask->defined() ? at::SDPBackend::math
                                                      : at::SDPBackend::flash_attention);
}

double attention_operations(const Tensor& query, const Tensor& key) {
  return 4 * elements(query) * static_cast<double>(key.size(2));
}

using Attention =
    std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor>;

Attention flash_attention(const Tensor& query, const Tensor& key, const Tensor&, double, bool, bool,
                          Maybe<double>) {
  count("_scaled_dot_product_flash_attention");
  count_operations(attention_operations(query, key));
  const auto batch = query.size(0), heads = query.size(1), rows = query.size(2);
  const Tensor output =
      at::empty({batch, rows, heads, query.size(3)}, query.options()).transpose(1, 2);
  const auto state = at::empty({2}, query.options().dtype(at::kLong));
  return {output,
          at::empty({batch, heads, rows}, query.options().dtype(at::kFloat)),
          Tensor(),
          Tensor(),
          query.sym_size(2),
          key.sym_size(2),
          state,
          state,
          Tensor()};
}

int64_t up_to_multiple(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

Three flash_attention_backward(const Tensor&, const Tensor& query, const Tensor& key,
                               const Tensor& value, const Tensor&, const Tensor&, const Tensor&,
                               const Tensor&, c10::SymInt, c10::SymInt, double, bool, const Tensor&,
                               const Tensor&, Maybe<double>) {
  count("_scaled_dot_product_flash_attention_backward");
  count_operations(2.5 * attention_operations(query, key));
  const auto in_rows = [](const Tensor& t) {
    return at::empty({t.size(0), t.size(2), t.size(1), t.size(3)}, t.options()).transpose(1, 2);
  };
  // The kernel sums the queries' gradients in fp32, in rows of whole blocks.
  const auto rows = up_to_multiple(query.size(2), 128);
  const auto width = up_to_multiple(query.size(3), query.size(3) <= 128 ? 32 : 64);
  const auto fp32 = query.options().dtype(at::kFloat);
  const auto sums = at::empty({query.size(0), query.size(1), rows}, fp32);
  const auto gradient = at::empty({query.size(0), query.size(1), rows, width}, fp32);
  return {in_rows(query), in_rows(key), in_rows(value)};
}

}  // namespace

void count_operations(double more) {
  double before = operations.load();
  while (!operations.compare_exchange_weak(before, before + more)) {
  }
}

double dry_operations() { return operations.load(); }

void register_dry_kernels() {
  static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__,
                                __LINE__);
  register_for_all(library,
                   [] { return torch::CppFunction::makeFromBoxedFunction<&run_on_shapes>(); },
                   {"convolution", "convolution_backward", "native_group_norm",
                    "native_group_norm_backward", "native_layer_norm", "native_layer_norm_backward",
                    "native_dropout", "native_dropout_backward"});
  register_tensor_kernels(library);
  library.impl("copy_", &copy);
  library.impl("_local_scalar_dense", &read_scalar);
  library.impl("convolution", &convolution);
  library.impl("convolution_backward", &convolution_backward);
  library.impl("native_group_norm", &group_norm);
  library.impl("native_group_norm_backward", &group_norm_backward);
  library.impl("native_layer_norm", &layer_norm);
  library.impl("native_layer_norm_backward", &layer_norm_backward);
  library.impl("native_dropout", &dropout);
  library.impl("native_dropout_backward", &dropout_backward);
  library.impl("_scaled_dot_product_flash_attention", &flash_attention);
  library.impl("_scaled_dot_product_flash_attention_backward", &flash_attention_backward);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose_attention);
}

}  // namespace fake_cuda
