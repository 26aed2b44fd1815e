// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/formats/safetensors.h>

#include <ATen/ops/empty.h>
#include <lightlora/formats/atomic_file.h>
#include <lightlora/formats/mapped_file.h>
#include <lightlora/formats/safetensors_data.h>
#include <lightlora/formats/safetensors_header.h>

namespace lightlora {

LIGHTLORA_INLINE SafetensorsError::SafetensorsError(c10::SourceLocation where,
                                                    SafetensorsFault fault, std::string message)
    : c10::Error(where, std::move(message)), fault_(fault) {}

LIGHTLORA_INLINE SafetensorsFile::SafetensorsFile(std::string path, SafetensorsOptions options)
    : TensorFile(std::move(path)),
      options_(options),
      file_(std::make_shared<const detail::MappedFile>(path_)) {
  detail::SafetensorsHeader header = parse();
  metadata_ = std::move(header.metadata);
  data_start_ = header.data_start;
  trailing_bytes_ = header.trailing_bytes;
  for (auto& entry : header.tensors) {
    add({std::move(entry.name), detail::scalar_type(entry.dtype), std::move(entry.shape),
         detail::safetensors_dtypes[entry.dtype].name, entry.begin, entry.end});
  }
}

LIGHTLORA_INLINE const TensorInfo& SafetensorsFile::info(const std::string& name) const {
  const TensorInfo* found = find(name);
  if (found == nullptr) {
    fail(SafetensorsFault::missing_tensor,
         "expected tensor " + detail::shown(name) + ", got a file of " +
             std::to_string(tensors_.size()) + " tensors without it");
  }
  return *found;
}

LIGHTLORA_INLINE at::Tensor SafetensorsFile::load(const std::string& name) const {
  const TensorInfo& tensor = info(name);
  if (tensor.dtype == at::ScalarType::Undefined) {
    fail(SafetensorsFault::unsupported_dtype,
         "expected a dtype of LibTorch for tensor " + detail::shown(name) + ", got " +
             tensor.dtype_name + "; hint: convert the file to F32, F16 or BF16");
  }
  file_->check_unchanged();
  at::Tensor result = at::empty(tensor.shape, at::TensorOptions(at::kCPU).dtype(tensor.dtype));
  const auto bytes = file_->bytes().substr(data_start_ + tensor.begin, tensor.end - tensor.begin);
  detail::copy_bytes(result.mutable_data_ptr(), bytes);
  file_->forget(bytes);
  check_values(tensor, result);
  return result;
}

LIGHTLORA_INLINE detail::SafetensorsHeader SafetensorsFile::parse() const {
  try {
    return detail::parse_safetensors_header(file_->bytes(), options_.allow_trailing_bytes());
  } catch (const SafetensorsHeaderError& error) {
    fail(error.fault(), error.what());
  }
}

LIGHTLORA_INLINE void SafetensorsFile::check_values(const TensorInfo& tensor,
                                                    const at::Tensor& values) const {
  if (tensor.dtype == at::kBool) {
    const int64_t bad = detail::first_invalid_bool(values);
    if (bad >= 0) {
      fail(SafetensorsFault::bool_value,
           "expected 0 or 1 in BOOL tensor " + detail::shown(tensor.name) +
               ", got another byte at element " + std::to_string(bad));
    }
  }
  if (!options_.check_finite()) return;
  const int64_t bad = detail::first_not_finite(values);
  if (bad >= 0) {
    fail(SafetensorsFault::not_finite,
         "expected finite values in tensor " + detail::shown(tensor.name) +
             ", got NaN or infinity at element " + std::to_string(bad));
  }
}

LIGHTLORA_INLINE void SafetensorsFile::fail(SafetensorsFault fault, const std::string& what) const {
  throw SafetensorsError({__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, fault,
                         "'" + path_ + "': " + what);
}

LIGHTLORA_INLINE void save_safetensors(const std::string& path, const TensorMap& tensors,
                                       const Metadata& metadata,
                                       const SafetensorsSaveOptions& options) {
  detail::check_writable(path, tensors, metadata);
  const auto entries = detail::plan_safetensors(tensors);
  const std::string header = detail::safetensors_header_bytes(entries, metadata);
  TORCH_CHECK_VALUE(header.size() <= 8 + detail::safetensors_max_header, "'", path,
                    "': expected a header of at most 100000000 bytes, got ", header.size() - 8);
  detail::AtomicFile file(path);
  file.reserve(header.size() + (entries.empty() ? 0 : entries.back().end));
  file.write(header);
  for (const auto& entry : entries) {
    const at::Tensor dense = detail::dense_on_cpu(tensors.at(entry.name));
    const int64_t bad = options.check_finite() ? detail::first_not_finite(dense) : -1;
    TORCH_CHECK_VALUE(bad < 0, "'", path, "': expected finite values in tensor ",
                      detail::shown(entry.name), ", got NaN or infinity at element ", bad);
    file.write({static_cast<const char*>(dense.const_data_ptr()), entry.end - entry.begin});
  }
  file.commit();
}

}  // namespace lightlora
