// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <lightlora/formats/atomic_file.h>
#include <lightlora/formats/mapped_file.h>
#include <lightlora/formats/safetensors_data.h>
#include <lightlora/formats/safetensors_header.h>
#include <lightlora/formats/tensor_file.h>
#include <torch/arg.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "lightlora reads and writes safetensors on little-endian machines only"
#endif

namespace lightlora {

/// How strictly a file is read.
struct SafetensorsOptions {
  /// Accept bytes behind the last tensor, which some published files have. Default: false
  TORCH_ARG(bool, allow_trailing_bytes) = false;
  /// Refuse to load a tensor that contains NaN or infinity. Default: false
  TORCH_ARG(bool, check_finite) = false;
};

/// How tensors are written.
struct SafetensorsSaveOptions {
  /// Refuse to write a tensor that contains NaN or infinity. Default: false
  TORCH_ARG(bool, check_finite) = false;
};

/// A file that is not what the safetensors format says; `fault()` names the rule it breaks.
class SafetensorsError : public c10::Error {
 public:
  /// The message is one line, ready to be shown.
  SafetensorsError(c10::SourceLocation where, SafetensorsFault fault, std::string message)
      : c10::Error(where, std::move(message)), fault_(fault) {}
  /// What kind of error it is.
  SafetensorsFault fault() const { return fault_; }

 private:
  SafetensorsFault fault_;
};

/// A safetensors file, opened for reading. The header is checked in full by the constructor; the
/// values of a tensor are read when it is loaded. The file is mapped into memory, so that opening a
/// large one and loading a few tensors costs only these.
/// Dtypes: F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL F8_E4M3 F8_E5M2; others can be listed, not
/// loaded Errors: SafetensorsError for what is wrong in the file, c10::Error if it cannot be opened
/// Differs from the reference (safetensors 0.8.0): it refuses a name given twice, an empty name and
/// dimensions that LibTorch cannot hold, all of which the reference lets pass
class SafetensorsFile : public TensorFile {
 public:
  /// Opens and checks a file; see above for the errors.
  explicit SafetensorsFile(std::string path, SafetensorsOptions options = {})
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

  /// Bytes behind the last tensor; not 0 only with `allow_trailing_bytes`.
  uint64_t trailing_bytes() const { return trailing_bytes_; }

  /// What the tensor of that name is. Errors: SafetensorsError if there is none
  const TensorInfo& info(const std::string& name) const {
    const TensorInfo* found = find(name);
    if (found == nullptr) {
      fail(SafetensorsFault::missing_tensor,
           "expected tensor " + detail::shown(name) + ", got a file of " +
               std::to_string(tensors_.size()) + " tensors without it");
    }
    return *found;
  }

  /// A dense copy of one tensor on the CPU, in the file's dtype. Errors: SafetensorsError if there
  /// is none of that name, if its dtype is not supported, or for values that cannot be or are not
  /// wanted
  at::Tensor load(const std::string& name) const override {
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

 private:
  detail::SafetensorsHeader parse() const {
    try {
      return detail::parse_safetensors_header(file_->bytes(), options_.allow_trailing_bytes());
    } catch (const SafetensorsHeaderError& error) {
      fail(error.fault(), error.what());
    }
  }

  void check_values(const TensorInfo& tensor, const at::Tensor& values) const {
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

  [[noreturn]] void fail(SafetensorsFault fault, const std::string& what) const {
    throw SafetensorsError({__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, fault,
                           "'" + path_ + "': " + what);
  }

  SafetensorsOptions options_;
  std::shared_ptr<const detail::MappedFile> file_;
  uint64_t data_start_ = 0;
  uint64_t trailing_bytes_ = 0;
};

/// Writes tensors and metadata: either the whole file or, on an error, nothing. Equal arguments
/// give equal bytes. Tensors on other devices and non-contiguous ones are written as dense copies.
/// Errors: c10::ValueError for tensors that share memory (their values would be doubled), that are
/// sparse or of an unsupported dtype, for names the format cannot hold and, with `check_finite`,
/// for NaN and infinity; c10::Error if the file cannot be written Differs from the reference:
/// metadata is sorted (the reference's order changes from run to run)
inline void save_safetensors(const std::string& path, const TensorMap& tensors,
                             const Metadata& metadata = {},
                             const SafetensorsSaveOptions& options = {}) {
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
