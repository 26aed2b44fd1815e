// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>
#include <lightlora/config.h>
#include <lightlora/formats/tensor_file.h>
#include <torch/arg.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "lightlora reads and writes safetensors on little-endian machines only"
#endif

namespace lightlora {

namespace detail {
class MappedFile;
struct SafetensorsHeader;
}  // namespace detail

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
  SafetensorsError(c10::SourceLocation where, SafetensorsFault fault, std::string message);
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
  explicit SafetensorsFile(std::string path, SafetensorsOptions options = {});

  /// Bytes behind the last tensor; not 0 only with `allow_trailing_bytes`.
  uint64_t trailing_bytes() const { return trailing_bytes_; }

  /// What the tensor of that name is. Errors: SafetensorsError if there is none
  const TensorInfo& info(const std::string& name) const;

  /// A dense copy of one tensor on the CPU, in the file's dtype. Errors: SafetensorsError if there
  /// is none of that name, if its dtype is not supported, or for values that cannot be or are not
  /// wanted
  at::Tensor load(const std::string& name) const override;

 private:
  detail::SafetensorsHeader parse() const;

  void check_values(const TensorInfo& tensor, const at::Tensor& values) const;

  [[noreturn]] void fail(SafetensorsFault fault, const std::string& what) const;

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
void save_safetensors(const std::string& path, const TensorMap& tensors,
                      const Metadata& metadata = {}, const SafetensorsSaveOptions& options = {});

}  // namespace lightlora

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/formats/safetensors.h>
#endif
