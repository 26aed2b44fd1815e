// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/config.h>
#include <lightlora/formats/safetensors_format.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace lightlora {

/// Tensors by name.
using TensorMap = std::map<std::string, at::Tensor>;

/// What one tensor of a file is, without its values.
struct TensorInfo {
  std::string name;            ///< unique in its file
  at::ScalarType dtype;        ///< Undefined for a type that cannot be loaded here
  std::vector<int64_t> shape;  ///< its sizes
  std::string dtype_name;      ///< safetensors' name of the type, as `F32`
  uint64_t begin;              ///< first byte, counted from the start of the data
  uint64_t end;                ///< one behind the last byte
};

/// A file of named tensors, opened for reading: `SafetensorsFile` or `TorchFile`; `open_tensor_file`
/// chooses by the first bytes. The values of a tensor are read when it is loaded.
class TensorFile {
 public:
  virtual ~TensorFile() = default;

  /// The path that was opened.
  const std::string& path() const { return path_; }
  /// What the file says beside its tensors, as text.
  const Metadata& metadata() const { return metadata_; }
  /// The tensors in the order of their bytes.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  /// Whether there is a tensor of that name.
  bool contains(const std::string& name) const { return positions_.count(name) > 0; }

  /// A dense copy of one tensor on the CPU, in the file's dtype.
  /// Errors: c10::Error if there is none of that name or its dtype cannot be loaded
  virtual at::Tensor load(const std::string& name) const = 0;

  /// All tensors, as `load` gives them.
  TensorMap load_all() const;

 protected:
  /// A file without tensors yet.
  explicit TensorFile(std::string path) : path_(std::move(path)) {}
  /// A second view of the same file.
  TensorFile(const TensorFile&) = default;
  /// A second view of the same file.
  TensorFile& operator=(const TensorFile&) = default;

  /// The tensor of that name, or null.
  const TensorInfo* find(const std::string& name) const;
  /// One tensor more.
  void add(TensorInfo info);

  std::string path_;                         ///< as it was given
  Metadata metadata_;                        ///< what stands beside the tensors
  std::vector<TensorInfo> tensors_;          ///< in the order of their bytes
  std::map<std::string, size_t> positions_;  ///< in `tensors_`, by name
};

}  // namespace lightlora

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/formats/tensor_file.h>
#endif
