// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/pipeline.h"
#include "research/study/file_sizes.h"
#include "research/study/result.h"
#include "research/study/variants.h"
#include "support/images/measures.h"
#include "training/inversion.h"
#include "training/trainer.h"
#include "training/validation.h"

namespace study {

/// What all runs share.
struct Settings {
  std::string model = "examples/stable_diffusion/assets/base",
              subject = "examples/stable_diffusion/assets/teddy_bear";
  std::string weights;                     ///< what tells this model from another of that path
  std::string subject_words = "sks bear";  ///< the captions' words for the subject
  std::string initializer = "bear", emoji = "teddy bear";
  std::string emoji_vectors = "examples/stable_diffusion/assets/measures/emoji.safetensors";
  std::string work_dir = "study";
  int64_t steps = 150, inversion_steps = 100, batch_size = 2;
  int64_t picture_steps = 12;
  double guidance_scale = 5;
  std::vector<std::string> backgrounds{"blue", "black", "teal", "pink"};

  /// What the learned word depends on, and what every run does.
  std::string word_settings() const;
  std::string to_string() const;
  std::vector<std::string> prompts() const;
  /// Where the learned word lies.
  std::string word_file() const;
};

/// What the page says about the model and the pictures.
struct ModelInfo {
  int64_t size = 0;              ///< of pictures, in pixels
  Shapes layers;                 ///< that get adapters
  bool new_backgrounds = false;  ///< no caption names one that the prompts ask for
};

/// The learned word of every prompt.
constexpr const char* kWord = "<subject>";

/// Trains variants on one loaded model, from one learned word, and measures them; or a word of its
/// own, if that is the variant. What is finished lies in the work folder and is not done again.
class Experiment {
 public:
  /// Learns the word first if the work folder lacks it.
  explicit Experiment(const Settings& settings);

  /// One variant trained at one rate, or what it came to earlier.
  Result train(const Variant& variant, double rate, uint64_t seed);
  /// The same trained core, cut to several ranks.
  std::vector<Split> split(const Variant& variant, double rate, uint64_t seed,
                           const std::vector<int64_t>& ranks);
  bool is_done(const Variant& variant, double rate, uint64_t seed) const;
  /// Where a run's result lies when it is done.
  std::string result_file(const Variant& variant, double rate, uint64_t seed) const {
    return path(variant, rate, seed) + ".json";
  }
  ModelInfo model_info();

 private:
  /// The stem of a run's files.
  std::string path(const Variant& variant, double rate, uint64_t seed) const;
  void learn_word();
  training::Trainer make_trainer(const lightlora::Patched& adapters, double rate, uint64_t seed);
  void train_adapters(const Variant& variant, double rate, uint64_t seed, const std::string& stem,
                      Result& result);
  void train_steps(const Variant& variant, double rate, uint64_t seed, const std::string& stem,
                   Result& result);
  void train_word(const Variant& variant, double rate, uint64_t seed, const std::string& stem,
                  Result& result);
  /// Steps with the loss before, between and behind them; `name` is for messages.
  void follow(training::Trainer& trainer, int64_t steps, const std::string& name, Result& result);
  /// Loss and pictures with these adapters; the pictures go to "<stem>-0.png" and so on.
  Quality measure(const lightlora::AdapterState& adapters, const std::string& stem);
  /// Draws all prompts and judges the pictures.
  void draw(sd::StableDiffusion& pipeline, const std::string& stem, Quality& quality);

  Settings settings_;
  sd::StableDiffusion pipeline_;
  images::EmojiVectors emoji_;
  training::DiffusionLoss loss_;
  std::optional<training::LatentSource> latents_;
  std::optional<training::PromptStates> prompts_;
  std::optional<training::ValidationLoss> validation_;
};

}  // namespace study
