// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/resolve_neg.h>
#include <c10/util/Exception.h>
#include <lightlora/detail/formats/safetensors_format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

// Between LibTorch's tensors and the bytes of a safetensors file.

namespace lightlora {

namespace detail {

using Tensors = std::map<std::string, at::Tensor>;

struct DtypeName {
  at::ScalarType type;
  const char* name;
};

/// The types that are both read and written.
inline constexpr DtypeName tensor_dtypes[] = {{at::ScalarType::Bool, "BOOL"},
                                              {at::ScalarType::Byte, "U8"},
                                              {at::ScalarType::Char, "I8"},
                                              {at::ScalarType::Float8_e5m2, "F8_E5M2"},
                                              {at::ScalarType::Float8_e4m3fn, "F8_E4M3"},
                                              {at::ScalarType::Short, "I16"},
                                              {at::ScalarType::Half, "F16"},
                                              {at::ScalarType::BFloat16, "BF16"},
                                              {at::ScalarType::Int, "I32"},
                                              {at::ScalarType::Float, "F32"},
                                              {at::ScalarType::Double, "F64"},
                                              {at::ScalarType::Long, "I64"}};

/// LibTorch's type for a position in `safetensors_dtypes`, or Undefined.
inline at::ScalarType scalar_type(int dtype) {
  for (const auto& known : tensor_dtypes) {
    if (std::string_view(known.name) == safetensors_dtypes[dtype].name) return known.type;
  }
  return at::ScalarType::Undefined;
}

/// Position in `safetensors_dtypes` for LibTorch's type, or -1.
inline int dtype_index(at::ScalarType type) {
  for (const auto& known : tensor_dtypes) {
    if (known.type == type) return safetensors_dtype_index(known.name);
  }
  return -1;
}

inline void copy_bytes(void* to, std::string_view bytes) {
  if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
}

/// First element of a dense CPU tensor that has all bits of `mask` set, or -1.
template <typename Bits>
int64_t first_with_bits(const at::Tensor& dense, Bits mask) {
  const auto* bytes = static_cast<const char*>(dense.const_data_ptr());
  const int64_t count = dense.numel();
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, bytes + i * sizeof(Bits), sizeof(Bits));
    if ((bits & mask) == mask) return i;
  }
  return -1;
}

/// First element of a dense CPU tensor that is NaN or infinite, or -1. Read from the bits, because
/// LibTorch has no `isfinite` for the 8-bit types.
inline int64_t first_not_finite(const at::Tensor& dense) {
  switch (dense.scalar_type()) {
    case at::ScalarType::Double:
      return first_with_bits<uint64_t>(dense, 0x7FF0'0000'0000'0000);
    case at::ScalarType::Float:
      return first_with_bits<uint32_t>(dense, 0x7F80'0000);
    case at::ScalarType::Half:
      return first_with_bits<uint16_t>(dense, 0x7C00);
    case at::ScalarType::BFloat16:
      return first_with_bits<uint16_t>(dense, 0x7F80);
    case at::ScalarType::Float8_e5m2:
      return first_with_bits<uint8_t>(dense, 0x7C);
    case at::ScalarType::Float8_e4m3fn:
      return first_with_bits<uint8_t>(dense, 0x7F);  // no infinity
    default:
      return -1;
  }
}

/// First element of a dense CPU tensor of bools that is neither 0 nor 1, or -1.
inline int64_t first_invalid_bool(const at::Tensor& dense) {
  const auto* bytes = static_cast<const unsigned char*>(dense.const_data_ptr());
  const auto* end = bytes + dense.numel();
  const auto* bad = std::find_if(bytes, end, [](unsigned char byte) { return byte > 1; });
  return bad == end ? -1 : bad - bytes;
}

/// The values as the format wants them: dense, row-major, on the CPU.
inline at::Tensor dense_on_cpu(const at::Tensor& tensor) {
  return tensor.detach().to(at::kCPU).resolve_neg().contiguous();
}

/// c10::ValueError if two tensors have bytes in common: a file would hold these twice, and after
/// loading they would no longer be one.
inline void check_no_sharing(const std::string& path, const Tensors& tensors) {
  using Range = std::tuple<std::string, uintptr_t, uintptr_t, std::string>;  // device, bytes, name
  std::vector<Range> ranges;
  for (const auto& [name, tensor] : tensors) {
    if (tensor.numel() == 0) continue;
    int64_t last = 0;
    for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
    const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    ranges.emplace_back(tensor.device().str(), begin,
                        begin + static_cast<uintptr_t>(last + 1) * tensor.element_size(), name);
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    const auto& [device, begin, end, name] = ranges[i - 1];
    const auto& [next_device, next_begin, next_end, next_name] = ranges[i];
    TORCH_CHECK_VALUE(device != next_device || end <= next_begin, "'", path,
                      "': expected tensors with memory of their own, got ", shown(name), " and ",
                      shown(next_name), " sharing some; hint: clone() one of them");
  }
}

/// c10::ValueError unless the format can hold these tensors and metadata.
inline void check_writable(const std::string& path, const Tensors& tensors,
                           const Metadata& metadata) {
  for (const auto& [key, value] : metadata) {
    TORCH_CHECK_VALUE(is_utf8(key) && is_utf8(value), "'", path,
                      "': expected metadata in UTF-8, got other bytes in ", shown(key));
  }
  TORCH_CHECK_VALUE(tensors.size() <= safetensors_max_tensors, "'", path,
                    "': expected at most 1000000 tensors, got ", tensors.size());
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK_VALUE(!name.empty() && name.size() <= safetensors_max_name && is_utf8(name) &&
                          name.find('\0') == name.npos && name != safetensors_metadata_key,
                      "'", path,
                      "': expected a tensor name of 1 to 4096 bytes of UTF-8 without NUL",
                      " and not __metadata__, got ", shown(name));
    TORCH_CHECK_VALUE(tensor.defined() && tensor.layout() == at::kStrided &&
                          !tensor.is_quantized() && !tensor.is_meta(),
                      "'", path, "': expected a dense tensor as ", shown(name),
                      ", got an undefined, sparse, quantized or meta one");
    TORCH_CHECK_VALUE(dtype_index(tensor.scalar_type()) >= 0, "'", path,
                      "': expected a dtype of safetensors for ", shown(name), ", got ",
                      at::toString(tensor.scalar_type()));
    TORCH_CHECK_VALUE(tensor.dim() <= static_cast<int64_t>(safetensors_max_rank), "'", path,
                      "': expected at most 8 dimensions of ", shown(name), ", got ", tensor.dim());
  }
  check_no_sharing(path, tensors);
}

/// Where each tensor goes, in the reference's order: larger types first, then by name, so that with
/// the padded header every tensor is aligned.
inline std::vector<SafetensorsEntry> plan_safetensors(const Tensors& tensors) {
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : tensors) {
    entries.push_back({name, dtype_index(tensor.scalar_type()), tensor.sizes().vec(), 0,
                       static_cast<uint64_t>(tensor.numel()) * tensor.element_size()});
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return a.dtype > b.dtype; });
  uint64_t end = 0;
  for (auto& entry : entries) {
    entry.begin = end;
    entry.end = end += entry.end;
  }
  return entries;
}

}  // namespace detail
}  // namespace lightlora
