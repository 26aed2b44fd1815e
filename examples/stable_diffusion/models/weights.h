// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>
#include <lightlora/file_io.h>
#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <string>

namespace sd {

/// The weights of one part of a diffusers folder: `<folder>/<stem>.safetensors`, its sharded form
/// `<stem>.safetensors.index.json`, or the half-precision variants of both; else the pickled `.bin`
/// of old folders.
/// Errors: c10::Error if there is none
std::string find_weights(const std::string& folder, const std::string& stem);

/// Maps the name of a tensor in a file to the module's name for it; an empty one passes it over.
using RenameTensor = std::function<std::string(const std::string&)>;

/// One weight of the files that are read, in the module's dtype: as the file holds it in this format,
/// else in full.
using ReadWeight =
    std::function<at::Tensor(const std::string& name, lightlora::WeightFormat format)>;

/// Is called with the files checked and before any weight is filled; what it has quantized by then is
/// not filled.
using BeforeFilling = std::function<void(const ReadWeight& read)>;

/// Fills the module's parameters and buffers from a file of tensors, safetensors (bitsandbytes'
/// weights among them), GGUF or torch.save's, or from all files of a sharded `index.json`, by name. Values are converted to the module's dtype
/// and device; beyond the module itself, one tensor of the file is in memory at a time. Nothing is
/// changed unless the file has every tensor in the right shape and no other; a stray `position_ids`
/// buffer is passed over.
/// Errors: c10::Error naming the file and the tensors that are missing, unknown or of another shape
void load_weights(torch::nn::Module& module, const std::string& path,
                  const RenameTensor& rename = {},
                  const lightlora::SafetensorsOptions& options = {},
                  const BeforeFilling& before_filling = {});

/// While it lives, no weights are looked for or read, in the whole process: modules keep the values
/// that they were made with.
class WithoutWeights {
 public:
  WithoutWeights();
  ~WithoutWeights();
  WithoutWeights(const WithoutWeights&) = delete;
  WithoutWeights& operator=(const WithoutWeights&) = delete;
};

/// While it lives, modules built on this thread have parameters of `dtype` and no random values:
/// memory for 860 million parameters is then reserved at once instead of being filled for seconds.
/// For modules that `load_weights` fills. Do not nest it, and build no other tensors meanwhile: the
/// default dtype belongs to the whole process.
class UninitializedModules {
 public:
  explicit UninitializedModules(at::ScalarType dtype);
  ~UninitializedModules();
  UninitializedModules(const UninitializedModules&) = delete;
  UninitializedModules& operator=(const UninitializedModules&) = delete;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sd
