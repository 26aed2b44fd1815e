// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/quantised_weight.h>

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>

#include <algorithm>

namespace lightlora {

LIGHTLORA_INLINE c10::intrusive_ptr<ConvolutionSteps> ConvolutionSteps::reversed(
    at::IntArrayRef sizes, at::IntArrayRef kernel) const {
  auto back = c10::make_intrusive<ConvolutionSteps>();
  back->stride = stride;
  back->padding = padding;
  back->dilation = dilation;
  back->groups = groups;
  back->transposed = !transposed;
  back->output_padding.assign(stride.size(), 0);
  if (transposed) return back;
  // What the convolution did not reach at the end of each dimension.
  for (std::size_t i = 0; i < stride.size(); ++i) {
    const int64_t reach = dilation[i] * (kernel[i + 2] - 1);
    const int64_t rest = sizes[i + 2] + 2 * padding[i] - reach - 1;
    back->output_padding[i] = rest % stride[i];
  }
  return back;
}

LIGHTLORA_INLINE bool ConvolutionSteps::plain() const {
  const auto ones = [](const std::vector<int64_t>& values) {
    return std::all_of(values.begin(), values.end(), [](int64_t value) { return value == 1; });
  };
  return groups == 1 && ones(stride) && ones(dilation);
}

LIGHTLORA_INLINE at::Tensor QuantisedWeight::stand_in(c10::intrusive_ptr<QuantisedWeight> weight) {
  detail::register_quantised_kernels();
  const auto sizes = weight->sizes();
  const at::Tensor like = at::empty({0}, at::dtype(weight->dtype()).device(weight->device()));
  const auto bytes = static_cast<size_t>(c10::multiply_integers(sizes)) * like.element_size();
  // Without memory, so that whoever reads it past the operators is told so by LibTorch.
  c10::DataPtr nothing(
      nullptr, weight.release(),
      [](void* context) {
        c10::intrusive_ptr<QuantisedWeight>::reclaim(static_cast<QuantisedWeight*>(context));
      },
      like.device());
  auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes,
                                                       std::move(nothing), /*allocator=*/nullptr,
                                                       /*resizable=*/false);
  const auto keys = like.key_set().add(detail::kQuantisedKey);
  at::Tensor made = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(std::move(storage)), keys,
                                                             like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return made;
}

LIGHTLORA_INLINE const QuantisedWeight* QuantisedWeight::of(const at::Tensor& weight) {
  if (!is_quantized(weight)) return nullptr;
  return static_cast<const QuantisedWeight*>(weight.storage().data_ptr().get_context());
}

LIGHTLORA_INLINE c10::intrusive_ptr<QuantisedWeight> QuantisedWeight::held_by(
    const at::Tensor& weight) {
  if (!is_quantized(weight)) return {};
  auto* held = static_cast<QuantisedWeight*>(weight.storage().data_ptr().get_context());
  return c10::intrusive_ptr<QuantisedWeight>::reclaim_copy(held);
}

LIGHTLORA_INLINE at::Tensor QuantisedWeight::product(const at::Tensor& x,
                                                     const std::optional<at::Tensor>& bias,
                                                     bool transposed) const {
  const at::Tensor full = dense().to(x.scalar_type());
  const auto own = bias ? std::optional<at::Tensor>(bias->to(x.scalar_type())) : bias;
  return at::linear(x, transposed ? full.t() : full, own);
}

LIGHTLORA_INLINE at::Tensor QuantisedWeight::convolution(const at::Tensor& x,
                                                         const std::optional<at::Tensor>& bias,
                                                         const ConvolutionSteps& steps) const {
  const at::Tensor full = dense().to(x.scalar_type());
  const auto own = bias ? std::optional<at::Tensor>(bias->to(x.scalar_type())) : bias;
  return at::convolution(x, full, own, steps.stride, steps.padding, steps.dilation,
                         steps.transposed, steps.output_padding, steps.groups);
}

}  // namespace lightlora
