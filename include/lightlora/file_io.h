// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <lightlora/config.h>
#include <lightlora/detail/formats/safetensors_format.h>
#include <torch/arg.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "lightlora reads and writes safetensors on little-endian machines only"
#endif

namespace lightlora {

/// How a weight is kept in fewer bits; see `quantize`.
enum class WeightFormat;

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

/// A file of named tensors, opened for reading: `SafetensorsFile`, `BitsandbytesFile`, `GgufFile` or
/// `TorchFile`; `open_tensors` chooses by what the file begins with and holds. The values of a tensor are read when it is loaded.
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

  /// A weight as the file holds it, in eight or four bits, for layers that keep it so (`quantize`
  /// with a `source`); its full form has that dtype. Undefined if the file has it otherwise.
  /// Errors: those of `load`
  virtual at::Tensor load_quantized(const std::string& name, WeightFormat format,
                                    at::ScalarType dtype) const;

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
/// loaded
/// Errors: SafetensorsError for what is wrong in the file, c10::Error if it cannot be opened
/// Differs from the reference (safetensors 0.8.0): it refuses a name given twice, an empty name and
/// dimensions that LibTorch cannot hold, all of which the reference lets pass
class SafetensorsFile : public TensorFile {
 public:
  /// Opens and checks a file; see above for the errors.
  explicit SafetensorsFile(std::string path, SafetensorsOptions options = {});

  /// Bytes behind the last tensor; not 0 only with `allow_trailing_bytes`.
  uint64_t trailing_bytes() const { return trailing_bytes_; }

  /// What the tensor of that name is.
  /// Errors: SafetensorsError if there is none
  const TensorInfo& info(const std::string& name) const;

  /// A dense copy of one tensor on the CPU, in the file's dtype.
  /// Errors: SafetensorsError if there is none of that name, if its dtype is not supported, or for
  ///         values that cannot be or are not wanted
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
/// for NaN and infinity; c10::Error if the file cannot be written
/// Differs from the reference:
/// metadata is sorted (the reference's order changes from run to run)
void save_safetensors(const std::string& path, const TensorMap& tensors,
                      const Metadata& metadata = {}, const SafetensorsSaveOptions& options = {});

/// A safetensors file with weights as bitsandbytes keeps them, as folders of diffusers and transformers
/// have them: `x.weight` with `x.weight.absmax`, `x.weight.quant_map`,
/// `x.weight.quant_state.bitsandbytes__nf4` (or `fp4`) and perhaps `nested_absmax` and
/// `nested_quant_map`, or in eight bits with `x.SCB`. Each is one tensor here, with its own shape, whose
/// full values `load` gives, in the dtype that it was quantised from (eight bits: fp32).
/// Errors: SafetensorsError as SafetensorsFile, c10::Error for parts that do not belong together
class BitsandbytesFile : public TensorFile {
 public:
  /// Checks the parts of a file that was opened.
  explicit BitsandbytesFile(SafetensorsFile file);

  at::Tensor load(const std::string& name) const override;
  at::Tensor load_quantized(const std::string& name, WeightFormat format,
                            at::ScalarType dtype) const override;

 private:
  // What one weight is made of, beside its numbers.
  struct State {
    bool eight_bits = false;
    bool nf4 = false;
    at::ScalarType dtype = at::kFloat;
    std::vector<int64_t> shape;
    int64_t block = 0, nested_block = 0;
    double offset = 0;
  };

  State four_bits(const std::string& weight, const std::string& key) const;
  void check_four_bits(const std::string& weight, const State& state) const;
  State eight_bits(const std::string& weight, const std::string& scales) const;
  void check_part(const std::string& name, at::ScalarType dtype, int64_t numbers) const;
  at::Tensor stand_in(const std::string& name, const State& state, at::ScalarType dtype) const;

  SafetensorsFile file_;
  std::map<std::string, State> states_;
};

namespace detail {
struct GgufEntry;
}  // namespace detail

/// A GGUF file (version 2 or 3), as stable-diffusion.cpp and ComfyUI-GGUF write them, opened for
/// reading. Its header is checked in full by the constructor. Texts, numbers and short lists among its
/// keys are the metadata. `load` gives blocks of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K unpacked
/// in fp32, the numbers that ggml computes with, and F32, F16, BF16, F64 and whole numbers as they are.
/// Errors: c10::Error naming the file for what is wrong in it
class GgufFile : public TensorFile {
 public:
  /// Opens and checks a file.
  explicit GgufFile(std::string path);

  at::Tensor load(const std::string& name) const override;

 private:
  std::shared_ptr<const detail::MappedFile> file_;
  std::shared_ptr<const std::map<std::string, detail::GgufEntry>> entries_;
  uint64_t data_start_ = 0;
};

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

/// Opens a file of tensors by its first bytes: a zip archive as one of `torch.save`, GGUF as such,
/// anything else as safetensors, read with `options`, with bitsandbytes' weights if it has some.
/// Errors: those of the classes
std::unique_ptr<TensorFile> open_tensors(const std::string& path,
                                         const SafetensorsOptions& options = {});

/// The bytes of a file of at most `most` bytes that somebody else may have made. Only a regular file
/// is read: a pipe could keep a program waiting, and a device could go on for ever.
/// Errors: c10::Error naming the file if it is missing, something else, larger, or cannot be read
std::string read_file(const std::string& path, uint64_t most);

/// A text from a file as one component of the path of a file that is to be written: `text` itself if
/// it is a plain name, which stays in the folder that it is put into.
/// Errors: c10::Error naming `source`, where the text was found, for an empty text, `.` and `..`,
///         slashes, backslashes and control characters, more than 200 bytes, and what is not UTF-8
const std::string& path_component(const std::string& text, const std::string& source);

/// A file that appears under its name only when it is complete: it is written beside the target and
/// renamed by `commit()`. Without `commit()` nothing is left of it, and an older file stays as it
/// was. What a process that was killed left of such a file is removed by the next one in its folder.
/// Where the name is a symbolic link, the file that it points to is replaced, and a file that is
/// replaced keeps its permissions. Linux only.
/// Errors: c10::Error for a folder that is missing or not writable, a full disk, a target that is
///         no file, a name that is too long
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  /// Claims the space for the whole file, so that a full disk is found before any time is spent.
  void reserve(uint64_t size);
  /// Adds bytes at the end.
  void write(std::string_view bytes);
  /// Puts the file in its place.
  void commit();

 private:
  void check(bool success, const std::string& expected, const char* hint = "") const;

  std::string path_;    // as it was given
  std::string target_;  // where links lead
  std::string temporary_;
  int descriptor_ = -1;
  bool committed_ = false;
};

/// SHA-256 of a file's bytes as 64 hexadecimal digits: what A1111 and model sites know a file by.
/// Errors: c10::Error if it cannot be read
std::string file_hash(const std::string& path);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/file_io-inl.h>
#include <lightlora/file_io_atomic-inl.h>
#include <lightlora/file_io_quantized-inl.h>
#endif
