// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "pipeline/pipeline.h"

namespace hypernetwork {

/// Pictures of many things, a few of each, as a frozen model sees them.
struct Identities {
  std::vector<std::string> names;  ///< of the things
  std::vector<int64_t> first;      ///< the pictures of thing i are first[i] to first[i + 1] - 1
  at::Tensor latents;              ///< (pictures, C, h, w) fp32 on the CPU, as the UNet knows them
  at::Tensor caption;              ///< (pictures) int64, which of the different captions
  sd::PromptEmbeds text;           ///< of the different captions, on the model's device
  std::vector<at::Tensor> ids;     ///< their ids, (different captions, T) for each text encoder
  at::Tensor time_ids;             ///< (pictures, 6) fp32 of SDXL; otherwise undefined
  std::string fingerprint;         ///< of all that was read

  int64_t size() const { return static_cast<int64_t>(names.size()); }
  int64_t pictures(int64_t identity) const {
    return first[static_cast<size_t>(identity) + 1] - first[static_cast<size_t>(identity)];
  }
};

/// Reads a folder with a sub-folder for each thing, which holds pictures of it and, beside them or in
/// metadata.jsonl, captions; a picture without one is captioned `prompt`. The pictures are cut to
/// squares of `resolution` and encoded once.
/// Errors: c10::Error if the folder is missing or has no such sub-folder; those of the pictures
Identities read_identities(const std::string& folder, sd::StableDiffusion& pipeline,
                           const std::string& prompt, int64_t resolution);

/// So many of them, evenly chosen; all if there are no more.
std::vector<int64_t> evenly_chosen(int64_t size, int64_t count);

/// The latents of one picture, cut in the same way: (1, C, h, w).
/// Errors: c10::Error naming the file
at::Tensor read_picture(const std::string& path, sd::StableDiffusion& pipeline, int64_t resolution);

}  // namespace hypernetwork
