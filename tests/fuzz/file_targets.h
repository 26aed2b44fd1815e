// SPDX-License-Identifier: Apache-2.0
// What the fuzzers check of a whole file with adapters or embeddings: targets.h goes as far as the
// names, this as far as the tensors, and so needs LibTorch.
#pragma once

#include <lightlora/embeddings.h>
#include <lightlora/file_io.h>
#include <lightlora/files.h>
#include <lightlora/packing.h>

#include <cmath>
#include <string>

#include "targets.h"

namespace fuzz {

inline void check_layer(const lightlora::LayerState& layer) {
  demand(!layer.variant.empty() && !layer.trained.empty(), "a layer has a method and tensors");
  // Of some methods' layers a file tells one side alone.
  demand(layer.layer.in > 0 || layer.layer.out > 0, "a layer has a size");
  demand(layer.options.rank() > 0, "ranks are positive");
  demand(std::isfinite(layer.scale) || layer.variant != "classic", "scales are numbers");
  for (const auto& [name, tensor] : layer.trained) {
    demand(!name.empty() && tensor.defined() && tensor.device().is_cpu(), "tensors are there");
  }
}

/// Reads a file as whatever it may be. Returns whether it holds adapters.
/// Errors: std::logic_error if a promise is broken
inline bool lora_file(const std::string& path, bool ignore_unmatched) {
  try {
    const auto contents =
        lightlora::read_adapters(path, lightlora::ReadOptions().ignore_unmatched(ignore_unmatched));
    demand(!contents.dialects.empty(), "a file has a dialect");
    for (const auto& [component, state] : contents.components) {
      for (const auto& layer : state) check_layer(layer);
    }
  } catch (const c10::Error& error) {
    demand(is_one_line(error.what_without_backtrace()), "an error message is one line of UTF-8");
    return false;
  }
  return true;
}

/// Whether a file holds learned embeddings.
/// Errors: std::logic_error if a promise is broken
inline bool embedding_file(const std::string& path) {
  try {
    for (const auto& embedding : lightlora::load_embeddings(path)) {
      const auto& vectors = embedding.vectors;
      demand(!embedding.token.empty() && vectors.numel() > 0,
             "an embedding has a word and vectors");
      demand(vectors.dim() == (embedding.layers.empty() ? 2 : 3), "vectors are rows");
      demand(embedding.layers.empty() ||
                 vectors.size(0) == static_cast<int64_t>(embedding.layers.size()),
             "each layer has its vectors");
    }
  } catch (const c10::Error& error) {
    demand(is_one_line(error.what_without_backtrace()), "an error message is one line of UTF-8");
    return false;
  }
  return true;
}

/// Opens a file of tensors and makes full weights of all that it holds, quantised ones too. Returns
/// whether it is one.
/// Errors: std::logic_error if a promise is broken
inline bool quantized_file(const std::string& path) {
  try {
    const auto file = lightlora::open_tensors(path);
    for (const auto& info : file->tensors()) {
      if (info.dtype == at::ScalarType::Undefined) continue;
      const auto full = file->load(info.name);
      demand(full.sizes() == at::IntArrayRef(info.shape) && full.scalar_type() == info.dtype,
             "a tensor is of the shape and type that are said of it");
      for (const auto format : {lightlora::WeightFormat::int8, lightlora::WeightFormat::nf4}) {
        const auto kept = file->load_quantized(info.name, format, at::kFloat);
        demand(!kept.defined() || kept.sizes() == full.sizes(), "a kept weight is of its shape");
      }
    }
  } catch (const c10::Error& error) {
    demand(is_one_line(error.what_without_backtrace()), "an error message is one line of UTF-8");
    return false;
  }
  return true;
}

}  // namespace fuzz
