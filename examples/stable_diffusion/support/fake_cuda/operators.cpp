// SPDX-License-Identifier: Apache-2.0
#include "support/fake_cuda/operators.h"

#include <iterator>
#include <sstream>
#include <string>
#include <unordered_set>

namespace fake_cuda {
namespace {

using Names = std::unordered_set<std::string>;

// "add_" and "add" are one operator here.
bool has(const Names& names, const std::string& name) {
  if (names.count(name)) return true;
  return !name.empty() && name.back() == '_' && names.count(name.substr(0, name.size() - 1));
}

bool starts_with(const std::string& text, const std::string& start) {
  return text.rfind(start, 0) == 0;
}

Names words(const std::string& text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
}

}  // namespace

bool takes_cpu_scalar(const std::string& name) {
  // Two-tensor arithmetic and comparisons share one iterator, which moves the scalar into the
  // kernel's arguments; the last lines have code of their own for it.
  static const Names names = words(
      "add sub rsub mul div remainder fmod pow atan2 hypot copysign floor_divide logaddexp "
      "logaddexp2 xlogy nextafter gcd lcm ldexp eq ne lt le gt ge maximum minimum fmax "
      "fmin heaviside logical_and logical_or logical_xor bitwise_and bitwise_or "
      "bitwise_xor bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ "
      "__lshift__ __rshift__ __iand__ __ior__ __ixor__ __ilshift__ __irshift__ addcmul "
      "addcdiv clamp clamp_min clamp_max isin where masked_fill index_fill index_put "
      "_index_put_impl_ fill _fused_adam_ _fused_adamw_ _fused_sgd_ _fused_adagrad_");
  return has(names, name);
}

bool takes_cpu_indices(const std::string& name) {
  static const Names names{"index", "index_put", "_index_put_impl_", "_unsafe_index",
                           "_unsafe_index_put"};
  return has(names, name);
}

bool waits_for_result(const std::string& name) {
  // A result whose size depends on values, a truth value, or an error code that is looked at. The
  // operators of linear algebra that end in _ex leave that to their callers.
  static const Names names{"nonzero",
                           "masked_select",
                           "equal",
                           "is_nonzero",
                           "_unique",
                           "_unique2",
                           "unique_dim",
                           "unique_consecutive",
                           "unique_dim_consecutive",
                           "repeat_interleave",
                           "bincount",
                           "histc",
                           "multinomial",
                           "_linalg_svd",
                           "_linalg_eigh",
                           "linalg_eig",
                           "_linalg_det",
                           "linalg_lstsq",
                           "_ctc_loss"};
  return has(names, name);
}

const std::vector<std::string>& composite_operators() {
  static const std::vector<std::string> names{"convolution", "convolution_backward"};
  return names;
}

bool exists_on_cuda(const std::string& name) {
  // The difference of the kernels that libtorch_cpu and libtorch_cuda 2.11 export, and MKL-DNN's.
  static const Names cpu_only{"_add_relu",
                              "_convert_weight_to_int4pack_for_cpu",
                              "_dyn_quant_matmul_4bit",
                              "_dyn_quant_pack_4bit_weight",
                              "_empty_affine_quantized",
                              "_empty_per_channel_affine_quantized",
                              "_functional_assert_async",
                              "_histogramdd_bin_edges",
                              "_histogramdd_from_bin_cts",
                              "_histogramdd_from_bin_tensors",
                              "_make_dep_token",
                              "_scaled_dot_product_flash_attention_for_cpu",
                              "_scaled_dot_product_flash_attention_for_cpu_backward",
                              "_spdiags",
                              "_stack",
                              "_weight_int4pack_mm_for_cpu",
                              "from_file",
                              "histogram",
                              "narrow_copy",
                              "native_channel_shuffle",
                              "pixel_shuffle",
                              "pixel_unshuffle",
                              "slow_conv3d_forward",
                              "to_mkldnn"};
  return !has(cpu_only, name) && !starts_with(name, "mkldnn_") && !starts_with(name, "_mkldnn_") &&
         !starts_with(name, "_test_");
}

}  // namespace fake_cuda
