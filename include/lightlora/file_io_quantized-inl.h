// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>

#include <ATen/ATen.h>
#include <lightlora/detail/formats/gguf_blocks.h>
#include <lightlora/detail/formats/gguf_header.h>
#include <lightlora/detail/formats/json.h>
#include <lightlora/detail/formats/mapped_file.h>
#include <lightlora/detail/formats/safetensors_data.h>
#include <lightlora/detail/formats/zip.h>
#include <lightlora/detail/four_bit_weight.h>
#include <lightlora/detail/quantised_weight.h>

#include <ATen/Parallel.h>
#include <c10/util/accumulate.h>

#include <cmath>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace lightlora {

LIGHTLORA_INLINE at::Tensor TensorFile::load_quantized(const std::string& /*name*/,
                                                       WeightFormat /*format*/,
                                                       at::ScalarType /*dtype*/) const {
  return {};
}

namespace detail::bitsandbytes {

inline constexpr const char* kNf4 = ".quant_state.bitsandbytes__nf4";
inline constexpr const char* kFp4 = ".quant_state.bitsandbytes__fp4";
inline constexpr const char* kScales = ".SCB";
inline constexpr int64_t kMostState = 65'536;  // bytes of a description

// The name without its ending; empty if it has another.
inline std::string before(const std::string& name, const std::string& ending) {
  if (name.size() <= ending.size()) return {};
  const auto start = name.size() - ending.size();
  return name.compare(start, ending.size(), ending) == 0 ? name.substr(0, start) : std::string();
}

// What of eight bits the scales belong to.
inline std::string weight_of_scales(const std::string& name) {
  const auto layer = before(name, kScales);
  return layer.empty() ? layer : layer + ".weight";
}

inline bool is_block(int64_t size) {
  return size >= 32 && size <= 4096 && (size & (size - 1)) == 0;
}

inline at::ScalarType dtype_named(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  TORCH_CHECK(name == "float16", "expected float32, float16 or bfloat16 as dtype, got ",
              shown(name));
  return at::kHalf;
}

inline int64_t numbers_of(const TensorInfo& info) { return c10::multiply_integers(info.shape); }

// Whether a file holds weights of bitsandbytes.
inline bool is_one(const SafetensorsFile& file) {
  for (const auto& tensor : file.tensors()) {
    if (!before(tensor.name, kNf4).empty() || !before(tensor.name, kFp4).empty()) return true;
    const auto weight = weight_of_scales(tensor.name);
    if (!weight.empty() && file.contains(weight) && file.info(weight).dtype == at::kChar) {
      return true;
    }
  }
  return false;
}

}  // namespace detail::bitsandbytes

LIGHTLORA_INLINE BitsandbytesFile::BitsandbytesFile(SafetensorsFile file)
    : TensorFile(file.path()), file_(std::move(file)) {
  using namespace detail::bitsandbytes;
  metadata_ = file_.metadata();
  std::set<std::string> parts;
  for (const auto& tensor : file_.tensors()) {
    const auto nf4 = before(tensor.name, kNf4), fp4 = before(tensor.name, kFp4);
    const auto four = nf4.empty() ? fp4 : nf4;
    const auto eight = four.empty() ? weight_of_scales(tensor.name) : std::string();
    if (four.empty() && eight.empty()) continue;
    const std::string& weight = four.empty() ? eight : four;
    const State state =
        four.empty() ? eight_bits(weight, tensor.name) : four_bits(weight, tensor.name);
    TORCH_CHECK(states_.emplace(weight, state).second, "'", path_, "': tensor ",
                detail::shown(weight),
                ": expected one description of how it is quantised, got two");
    parts.insert(tensor.name);
    for (const char* part : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"}) {
      if (!four.empty()) parts.insert(weight + part);
    }
    if (four.empty()) parts.insert(before(weight, "weight") + "weight_format");
  }
  for (const auto& tensor : file_.tensors()) {
    const auto state = states_.find(tensor.name);
    if (parts.count(tensor.name) > 0) continue;
    if (state == states_.end()) {
      add(tensor);
      continue;
    }
    const char* name = state->second.eight_bits ? "INT8" : state->second.nf4 ? "NF4" : "FP4";
    add({tensor.name, state->second.dtype, state->second.shape, name, tensor.begin, tensor.end});
  }
}

LIGHTLORA_INLINE void BitsandbytesFile::check_part(const std::string& name, at::ScalarType dtype,
                                                   int64_t numbers) const {
  TORCH_CHECK(file_.contains(name), "'", path_, "': expected tensor ", detail::shown(name),
              " of a weight that bitsandbytes quantised, got none; hint: is the file complete?");
  const auto& info = file_.info(name);
  TORCH_CHECK(info.dtype == dtype && detail::bitsandbytes::numbers_of(info) == numbers, "'", path_,
              "': tensor ", detail::shown(name), ": expected ", numbers, " numbers in ", dtype,
              ", got ", detail::bitsandbytes::numbers_of(info), " in ", info.dtype_name);
}

LIGHTLORA_INLINE BitsandbytesFile::State BitsandbytesFile::eight_bits(
    const std::string& weight, const std::string& scales) const {
  TORCH_CHECK(file_.contains(weight), "'", path_, "': expected tensor ", detail::shown(weight),
              " of ", detail::shown(scales), ", got none; hint: is the file complete?");
  const auto& info = file_.info(weight);
  TORCH_CHECK(info.dtype == at::kChar && info.shape.size() == 2, "'", path_, "': tensor ",
              detail::shown(weight), ": expected a matrix in I8 beside ", detail::shown(scales),
              ", got ", info.shape.size(), " dimensions in ", info.dtype_name);
  check_part(scales, at::kFloat, info.shape[0]);
  State state;
  state.eight_bits = true;
  state.shape = info.shape;
  return state;
}

LIGHTLORA_INLINE BitsandbytesFile::State BitsandbytesFile::four_bits(const std::string& weight,
                                                                     const std::string& key) const {
  using namespace detail::bitsandbytes;
  const auto& info = file_.info(key);
  TORCH_CHECK(info.dtype == at::kByte && numbers_of(info) <= kMostState, "'", path_, "': tensor ",
              detail::shown(key), ": expected at most ", kMostState, " bytes of U8, got ",
              numbers_of(info), " in ", info.dtype_name);
  const at::Tensor bytes = file_.load(key);
  State state;
  state.nf4 = !before(key, kNf4).empty();
  try {
    const auto json = parse_json({static_cast<const char*>(bytes.const_data_ptr()),
                                  static_cast<std::size_t>(bytes.numel())});
    TORCH_CHECK(json.at("quant_type").string() == (state.nf4 ? "nf4" : "fp4"),
                "expected the quant_type of its name, got ",
                detail::shown(json.at("quant_type").string()));
    state.dtype = dtype_named(json.at("dtype").string());
    state.block = json.at("blocksize").integer();
    const auto& sizes = json.at("shape").array();
    TORCH_CHECK(sizes.size() >= 1 && sizes.size() <= detail::safetensors_max_rank,
                "expected a shape of 1 to 8 dimensions, got ", sizes.size());
    for (const auto& size : sizes) state.shape.push_back(size.integer());
    if (const auto* nested = json.find("nested_blocksize")) {
      state.nested_block = nested->integer();
      state.offset = json.at("nested_offset").number();
    }
    check_four_bits(weight, state);
  } catch (const JsonError& error) {
    TORCH_CHECK(false, "'", path_, "': tensor ", detail::shown(key), ": ", error.what());
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    TORCH_CHECK(message.rfind("expected", 0) != 0, "'", path_, "': tensor ", detail::shown(key),
                ": ", message);
    throw;
  }
  return state;
}

// That each part has as many numbers as the others say.
LIGHTLORA_INLINE void BitsandbytesFile::check_four_bits(const std::string& weight,
                                                        const State& state) const {
  using namespace detail::bitsandbytes;
  TORCH_CHECK(is_block(state.block) && (state.nested_block == 0 || is_block(state.nested_block)),
              "expected powers of two from 32 to 4096 as block sizes, got ", state.block, " and ",
              state.nested_block);
  TORCH_CHECK(std::isfinite(static_cast<float>(state.offset)),
              "expected a nested_offset that fp32 can hold, got ", state.offset);
  TORCH_CHECK(file_.contains(weight), "'", path_, "': expected tensor ", detail::shown(weight),
              ", got only its parts; hint: is the file complete?");
  const auto& info = file_.info(weight);
  const uint64_t bytes = info.end - info.begin;
  uint64_t numbers = 1;
  bool fits = true;
  for (const int64_t size : state.shape) {
    fits = fits && size > 0 && numbers <= 2 * bytes / static_cast<uint64_t>(size);
    numbers *= fits ? static_cast<uint64_t>(size) : 1;
  }
  TORCH_CHECK(fits && (numbers + 1) / 2 == bytes, "expected a shape of the numbers in ", bytes,
              " bytes, two in each, got ", at::IntArrayRef(state.shape));
  const auto count = static_cast<int64_t>(numbers);
  const int64_t blocks = (count + state.block - 1) / state.block;
  check_part(weight + ".quant_map", at::kFloat, 16);
  if (state.nested_block == 0) return check_part(weight + ".absmax", at::kFloat, blocks);
  check_part(weight + ".absmax", at::kByte, blocks);
  check_part(weight + ".nested_quant_map", at::kFloat, 256);
  check_part(weight + ".nested_absmax", at::kFloat,
             (blocks + state.nested_block - 1) / state.nested_block);
}

LIGHTLORA_INLINE at::Tensor BitsandbytesFile::stand_in(const std::string& name, const State& state,
                                                       at::ScalarType dtype) const {
  const auto part = [&](const char* ending) { return file_.load(name + ending); };
  if (state.eight_bits) {
    const auto scales = detail::bitsandbytes::before(name, ".weight") + ".SCB";
    return QuantisedWeight::stand_in(c10::make_intrusive<Int8Weight>(
        file_.load(name), file_.load(scales).flatten() / 127, dtype));
  }
  FourBitParts parts;
  const at::Tensor packed = file_.load(name).flatten();
  parts.packed = packed.view(at::kByte);
  parts.code = part(".quant_map").flatten();
  parts.block = state.block;
  parts.absmax = part(".absmax").flatten();
  if (state.nested_block > 0) {
    parts.nested_code = part(".nested_quant_map").flatten();
    parts.nested_absmax = part(".nested_absmax").flatten();
    parts.nested_block = state.nested_block;
    parts.offset = static_cast<float>(state.offset);
  }
  return QuantisedWeight::stand_in(
      c10::make_intrusive<FourBitWeight>(std::move(parts), state.shape, dtype));
}

LIGHTLORA_INLINE at::Tensor BitsandbytesFile::load(const std::string& name) const {
  const auto state = states_.find(name);
  if (state == states_.end()) return file_.load(name);
  return QuantisedWeight::held_by(stand_in(name, state->second, state->second.dtype))->dense();
}

LIGHTLORA_INLINE at::Tensor BitsandbytesFile::load_quantized(const std::string& name,
                                                             WeightFormat format,
                                                             at::ScalarType dtype) const {
  const auto state = states_.find(name);
  if (state == states_.end()) return {};
  const bool eight = format == WeightFormat::int8;
  if (state->second.eight_bits != eight) return {};
  return stand_in(name, state->second, dtype);
}

LIGHTLORA_INLINE GgufFile::GgufFile(std::string path)
    : TensorFile(std::move(path)), file_(std::make_shared<const detail::MappedFile>(path_)) {
  try {
    auto header = detail::parse_gguf_header(file_->bytes());
    metadata_ = std::move(header.metadata);
    data_start_ = header.data_start;
    std::map<std::string, detail::GgufEntry> entries;
    for (auto& entry : header.tensors) {
      const bool packed = detail::gguf::unpack_of(*entry.type) != nullptr;
      const auto dtype =
          packed ? at::kFloat
                 : detail::scalar_type(detail::safetensors_dtype_index(entry.type->name));
      add({entry.name, dtype, entry.shape, entry.type->name, entry.begin, entry.end});
      entries.emplace(entry.name, std::move(entry));
    }
    entries_ = std::make_shared<const std::map<std::string, detail::GgufEntry>>(std::move(entries));
  } catch (const detail::GgufError& error) {
    TORCH_CHECK(false, "'", path_, "': ", error.what());
  }
}

LIGHTLORA_INLINE at::Tensor GgufFile::load(const std::string& name) const {
  const TensorInfo* info = find(name);
  TORCH_CHECK(info != nullptr, "'", path_, "': expected tensor ", detail::shown(name),
              ", got a file of ", tensors_.size(), " tensors without it");
  file_->check_unchanged();
  const auto& type = *entries_->at(name).type;
  const auto bytes = file_->bytes().substr(data_start_ + info->begin, info->end - info->begin);
  at::Tensor result = at::empty(info->shape, at::TensorOptions(at::kCPU).dtype(info->dtype));
  if (const auto unpack = detail::gguf::unpack_of(type)) {
    const auto* blocks = reinterpret_cast<const uint8_t*>(bytes.data());
    auto* numbers = result.mutable_data_ptr<float>();
    const auto count = static_cast<int64_t>(bytes.size() / type.bytes);
    at::parallel_for(0, count, 256, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        unpack(blocks + static_cast<uint64_t>(i) * type.bytes,
               numbers + static_cast<uint64_t>(i) * type.numbers);
      }
    });
  } else {
    detail::copy_bytes(result.mutable_data_ptr(), bytes);
  }
  file_->forget(bytes);
  return result;
}

LIGHTLORA_INLINE std::unique_ptr<TensorFile> open_tensors(const std::string& path,
                                                          const SafetensorsOptions& options) {
  {
    const detail::MappedFile file(path);
    if (detail::is_zip(file.bytes())) return std::make_unique<TorchFile>(path);
    if (detail::is_gguf(file.bytes())) return std::make_unique<GgufFile>(path);
  }
  auto file = std::make_unique<SafetensorsFile>(path, options);
  if (!detail::bitsandbytes::is_one(*file)) return file;
  return std::make_unique<BitsandbytesFile>(std::move(*file));
}

}  // namespace lightlora
