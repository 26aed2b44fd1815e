// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/formats/safetensors.h>
#include <lightlora/formats/tensor_file.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace lightlora {

namespace detail {
class MappedFile;
struct PickledTensor;
struct ZipEntry;
using ZipEntries = std::map<std::string, ZipEntry>;
}  // namespace detail

/// A file that `torch.save` of PyTorch 1.6 or later wrote (`.bin`, `.ckpt`, `.pt`), opened for
/// reading: dictionaries and lists of tensors, texts and numbers, and nothing else. No code of the
/// file runs: names of functions that Python would call are refused, and the message says which.
/// A tensor's name is its path through the dictionaries, joined by dots; the texts and numbers
/// beside the tensors are the metadata, under such names.
/// Dtypes: F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL
/// Errors: c10::Error naming the file for a damaged or compressed archive, a file of another kind
/// (older PyTorch's, TorchScript), a pickle that holds more than tensors, values outside of it
class TorchFile : public TensorFile {
 public:
  /// Opens and checks a file; see above for the errors.
  explicit TorchFile(std::string path);

  at::Tensor load(const std::string& name) const override;

 private:
  void open();

  // The folder in the archive, which torch.save names after the file.
  std::string archive_folder(const detail::ZipEntries& entries) const;

  void check_entries(const detail::ZipEntries& entries, const std::string& folder) const;

  TensorInfo info_of(const std::string& name, const detail::PickledTensor& tensor,
                     const detail::ZipEntry& storage) const;

  std::string_view bytes_of(const detail::ZipEntry& entry) const;

  std::shared_ptr<const detail::MappedFile> file_;
  std::shared_ptr<const std::map<std::string, detail::PickledTensor>> layouts_;
};

/// Opens a file of tensors by its first bytes: a zip archive as one of `torch.save`, anything else
/// as safetensors, read with `options`. Errors: those of the two classes
std::unique_ptr<TensorFile> open_tensor_file(const std::string& path,
                                             const SafetensorsOptions& options = {});

}  // namespace lightlora

#ifdef LIGHTLORA_HEADER_ONLY
#include <lightlora/impl/formats/torch_file.h>
#endif
