// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/pipeline.h"
#include "support/images/image.h"
#include "training/options.h"
#include "training/run_log.h"
#include "training/trainer.h"

namespace training {

/// A loss whose pictures, noise and timesteps are the same every time: it falls smoothly where the
/// training loss jumps with what each step happens to draw.
class ValidationLoss {
 public:
  /// Draws the samples: each picture at least once, 8 to 32 in all, timesteps evenly spread.
  ValidationLoss(LatentSource& latents, const std::string& prompt, const DiffusionLoss& loss,
                 uint64_t seed);

  /// Everything that `measure` will ask states for.
  const std::vector<std::string>& captions() const { return batch_.captions; }
  /// With the trainer's adapters as they are: `validation_loss`, the mean over all samples, and
  /// the means over each quarter of the timesteps, as `validation_loss_0_249`.
  Numbers measure(Trainer& trainer) const;

 private:
  TrainingBatch batch_;
};

/// One picture to draw again and again; what is left open is as the program's default.
struct SamplePrompt {
  std::string prompt, negative_prompt;
  uint64_t seed = 0;
  std::optional<int64_t> width = {}, height = {}, steps = {};
  std::optional<double> guidance_scale = {};
};

/// The prompts of a file of sd-scripts' kind. Lines: a prompt, and behind it any of `--n negative
/// prompt`, `--w width`, `--h height`, `--d seed`, `--l guidance scale` and `--s steps`; empty lines
/// and those that begin with # do not count. A name in `.json`: a list of such lines, or of objects
/// with `prompt`, `negative_prompt`, `width`, `height`, `seed`, `scale` and `sample_steps`. In
/// `.toml`: `[prompt]` with such keys for all, and a `[[prompt.subset]]` for each. Prompt i has the
/// seed `seed` + i unless it says another; -1 is a new one.
/// Errors: c10::Error naming the file and the prompt for other words, for values that are no
///         numbers, and for text that is not UTF-8
std::vector<SamplePrompt> read_sample_prompts(const std::string& path, uint64_t seed);

struct ValidationPictureOptions {
  std::vector<SamplePrompt> prompts;
  std::string title;                        ///< of the sheet
  int64_t clip_skip = 0;                    ///< as in training
  sd::ModelOptions model;                   ///< for the pictures' texts
  std::vector<std::string> learned_embeds;  ///< the same
  std::string folder;                       ///< where they go, as step-000100-0.png
  std::string sheet;                        ///< path of the contact sheet
};

/// What a run's options ask for, in its output folder.
ValidationPictureOptions validation_pictures(const TrainingOptions& training);

/// Draws prompts from the same noise again and again while a run learns.
class ValidationPictures {
 public:
  explicit ValidationPictures(ValidationPictureOptions options) : options_(std::move(options)) {}

  /// Draws with the trainer's adapters as they are and writes the pictures and the log.
  void draw(sd::StableDiffusion& pipeline, Trainer& trainer, RunLog& log) const;
  /// The pictures of the folder up to a step in one: a row for each step, a column for each prompt.
  void write_sheet(int64_t last_step) const;

 private:
  std::string path(int64_t step, int64_t index) const;
  std::map<int64_t, std::vector<images::Image>> drawn(int64_t last_step) const;

  ValidationPictureOptions options_;
};

}  // namespace training
