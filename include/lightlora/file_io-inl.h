// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>

#include <ATen/ops/empty.h>
#include <lightlora/detail/formats/mapped_file.h>
#include <lightlora/detail/formats/pickle.h>
#include <lightlora/detail/formats/safetensors_data.h>
#include <lightlora/detail/formats/safetensors_header.h>
#include <lightlora/detail/formats/sha256.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace lightlora {

LIGHTLORA_INLINE TensorMap TensorFile::load_all() const {
  TensorMap result;
  for (const auto& tensor : tensors_) result.emplace(tensor.name, load(tensor.name));
  return result;
}

LIGHTLORA_INLINE const TensorInfo* TensorFile::find(const std::string& name) const {
  const auto position = positions_.find(name);
  return position == positions_.end() ? nullptr : &tensors_[position->second];
}

LIGHTLORA_INLINE void TensorFile::add(TensorInfo info) {
  positions_.emplace(info.name, tensors_.size());
  tensors_.push_back(std::move(info));
}

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
  AtomicFile file(path);
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

LIGHTLORA_INLINE TorchFile::TorchFile(std::string path)
    : TensorFile(std::move(path)), file_(std::make_shared<const detail::MappedFile>(path_)) {
  try {
    open();
  } catch (const detail::ArchiveError& error) {
    TORCH_CHECK(false, "'", path_, "': ", error.what());
  }
}

LIGHTLORA_INLINE at::Tensor TorchFile::load(const std::string& name) const {
  const TensorInfo* info = find(name);
  TORCH_CHECK(info != nullptr, "'", path_, "': expected tensor ", detail::shown(name),
              ", got a file of ", tensors_.size(), " tensors without it");
  file_->check_unchanged();
  const detail::PickledTensor& tensor = layouts_->at(name);
  const auto options = at::TensorOptions(at::kCPU).dtype(info->dtype);
  // The span of the storage that the tensor touches, which is the tensor itself if it is dense.
  const auto bytes = file_->bytes().substr(info->begin, info->end - info->begin);
  const auto width = static_cast<std::size_t>(c10::elementSize(info->dtype));
  at::Tensor span = at::empty({static_cast<int64_t>(bytes.size() / width)}, options);
  detail::copy_bytes(span.mutable_data_ptr(), bytes);
  if (info->dtype == at::kBool) {
    TORCH_CHECK(detail::first_invalid_bool(span) < 0, "'", path_, "': expected 0 or 1 in tensor ",
                detail::shown(name), ", got another byte");
  }
  return span.as_strided(tensor.sizes, tensor.strides).contiguous();
}

LIGHTLORA_INLINE void TorchFile::open() {
  TORCH_CHECK(detail::is_zip(file_->bytes()), "'", path_,
              "': expected a zip archive as torch.save writes, got another file; hint: files of "
              "PyTorch before 1.6 must be saved again with a later one");
  const auto entries = detail::read_zip(file_->bytes());
  const std::string folder = archive_folder(entries);
  check_entries(entries, folder);
  const auto pickle = detail::read_pickle(bytes_of(entries.at(folder + "data.pkl")));
  auto leaves = detail::PickleFlattener(pickle).leaves();
  metadata_ = std::move(leaves.texts);
  std::vector<TensorInfo> found;
  std::map<std::string, detail::PickledTensor> layouts;
  uint64_t bytes = 0;
  for (const auto& [name, index] : leaves.tensors) {
    const auto& tensor = pickle.tensors[index];
    const auto storage = entries.find(folder + "data/" + tensor.storage);
    TORCH_CHECK(storage != entries.end(), "'", path_, "': tensor ", detail::shown(name),
                ": expected its storage ", detail::shown(tensor.storage), ", got none");
    found.push_back(info_of(name, tensor, storage->second));
    // Tensors may share a storage, as tied weights do, but each becomes one of its own here.
    bytes += found.back().end - found.back().begin;
    TORCH_CHECK(bytes / 4 <= file_->bytes().size(), "'", path_,
                "': expected tensors of about the file's size, got ones that share their values ",
                "so often that they would take more than four times as much");
    TORCH_CHECK(layouts.emplace(name, tensor).second, "'", path_,
                "': expected each name once, got ", detail::shown(name), " twice");
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.begin < b.begin; });
  for (auto& info : found) add(std::move(info));
  layouts_ =
      std::make_shared<const std::map<std::string, detail::PickledTensor>>(std::move(layouts));
}

LIGHTLORA_INLINE std::string TorchFile::archive_folder(const detail::ZipEntries& entries) const {
  for (const auto& [name, entry] : entries) {
    const auto slash = name.find('/');
    if (slash != name.npos && name.substr(slash) == "/data.pkl") {
      return name.substr(0, slash + 1);
    }
  }
  TORCH_CHECK(false, "'", path_, "': expected an archive of torch.save (with data.pkl), got ",
              "another zip archive; hint: unpack it first");
}

LIGHTLORA_INLINE void TorchFile::check_entries(const detail::ZipEntries& entries,
                                               const std::string& folder) const {
  const auto& pickle = entries.at(folder + "data.pkl");
  TORCH_CHECK(pickle.size <= 8'000'000, "'", path_,
              "': expected a description of at most 8 MB, got ", pickle.size, " bytes");
  TORCH_CHECK(detail::crc32(bytes_of(pickle)) == pickle.crc, "'", path_,
              "': expected data.pkl with the checksum of the archive, got another; hint: the ",
              "file is damaged");
  const auto order = entries.find(folder + "byteorder");
  TORCH_CHECK(order == entries.end() || bytes_of(order->second) == "little", "'", path_,
              "': expected little-endian values, got ", detail::shown(bytes_of(order->second)));
}

LIGHTLORA_INLINE TensorInfo TorchFile::info_of(const std::string& name,
                                               const detail::PickledTensor& tensor,
                                               const detail::ZipEntry& storage) const {
  const int dtype = detail::safetensors_dtype_index(tensor.dtype);
  const uint64_t width = detail::safetensors_dtypes[dtype].bits / 8;
  TORCH_CHECK(tensor.storage_size <= storage.size / width, "'", path_, "': tensor ",
              detail::shown(name), ": expected a storage of ", tensor.storage_size, " values, got ",
              storage.size, " bytes; hint: the file is damaged");
  uint64_t span = 1;
  for (std::size_t i = 0; i < tensor.sizes.size(); ++i) {
    if (tensor.sizes[i] == 0) span = 0;
    if (span > 0) {
      span += static_cast<uint64_t>(tensor.sizes[i] - 1) * static_cast<uint64_t>(tensor.strides[i]);
    }
  }
  const uint64_t begin = storage.begin + (span > 0 ? tensor.offset * width : 0);
  return {name,  detail::scalar_type(dtype), tensor.sizes, tensor.dtype,
          begin, begin + span * width};
}

LIGHTLORA_INLINE std::string_view TorchFile::bytes_of(const detail::ZipEntry& entry) const {
  return file_->bytes().substr(entry.begin, entry.size);
}

LIGHTLORA_INLINE std::string read_file(const std::string& path, uint64_t most) {
  return detail::read_whole(path, most);
}

LIGHTLORA_INLINE const std::string& path_component(const std::string& text,
                                                   const std::string& source) {
  constexpr std::size_t longest = 200;  // file systems take 255 bytes, of which endings need some
  const bool plain = !text.empty() && text.size() <= longest && text != "." && text != ".." &&
                     is_utf8(text) && std::none_of(text.begin(), text.end(), [](char c) {
                       const auto byte = static_cast<unsigned char>(c);
                       return byte < 0x20 || byte == 0x7F || c == '/' || c == '\\';
                     });
  TORCH_CHECK(plain, "'", source, "': expected a plain name, which becomes that of a file or ",
              "folder, got ", detail::shown(text),
              "; hint: a file from a stranger may try to write elsewhere");
  return text;
}

LIGHTLORA_INLINE std::string file_hash(const std::string& path) {
  return detail::sha256(detail::MappedFile(path).bytes());
}

}  // namespace lightlora
