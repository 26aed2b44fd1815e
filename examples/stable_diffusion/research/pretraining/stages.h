// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/cli/config.h"
#include "support/distributed/group.h"

// The stages of making a Stable Diffusion model from nothing, in their order. Each reads what the
// ones before left in the output folder, and `emoji.safetensors` of the data set.

namespace pretraining {

/// Where a stage reads and writes, and what the program's flags say about it.
struct StageOptions {
  nlohmann::json config;
  std::string dataset_dir;
  std::string output_dir;
  /// A model of the same configuration whose weights the diffusion stage starts from; none if empty.
  std::string init_from;
  /// Stop after this many steps in all (a later run goes on); negative: the configuration's number.
  int64_t stop_at = -1;
  /// Compute in bf16 over fp32 values; false: fp32 throughout.
  bool bf16 = true;
  bool channels_last = true;
  c10::Device device = at::kCPU;
  /// The processes that share every batch of the configuration.
  distributed::Group group;
  /// The program's flags, which a run notes down.
  std::vector<cli::Setting> settings;
};

/// This process's rows of something that was drawn for a whole batch, so that any number of
/// processes trains on the same numbers.
at::Tensor share_of_batch(const distributed::Group& group, const at::Tensor& batch);

/// Learns the byte-pair encoding of the captions: every word of them becomes one token.
/// Writes `tokenizer/`. Returns the number of tokens.
int64_t train_tokenizer(const StageOptions& options);

/// Trains the autoencoder; writes `vae/` with the scaling factor that gives latents unit variance.
/// Returns the steps done in all, as the other two.
/// Loss: |x - y| + (x - y)^2 + edge_weight |grad x - grad y| + kl_weight KL
int64_t train_vae(const StageOptions& options);

/// Trains the decoder further against the encoder as it is in `vae/`: latents keep their meaning,
/// so this may come after the diffusion stage.
int64_t train_decoder(const StageOptions& options);

/// Trains the text encoder and the UNet together on latents that are encoded once; writes
/// `text_encoder/`, `unet/`, `scheduler/` and `model_index.json`.
/// Loss: squared error of what the scheduler's prediction type asks for
int64_t train_diffusion(const StageOptions& options);

/// Measures the model of the output folder, as examples/stable_diffusion/support/images/measures.h
/// defines it: is the emoji that a prompt names the nearest of all in the vocabulary, and what a
/// classifier of true pictures sees; are background, place and size as asked; and what does the
/// autoencoder lose of emoji it has never seen. Writes `figures.json`, `samples/measure.png` and
/// `samples/measure_words.png`; returns the figures, of which figures.h makes the card's table.
nlohmann::json measure_model(const StageOptions& options);

}  // namespace pretraining
