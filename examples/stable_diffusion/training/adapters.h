// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/targets.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "pipeline/adapters.h"
#include "training/options.h"

// The adapters that a DreamBooth run trains.

namespace training {

/// A pattern for layers, as PEFT has them: a regular expression for a layer's whole path or for
/// what follows one of the path's dots.
class PathPattern {
 public:
  /// Errors: c10::ValueError if the expression is malformed
  explicit PathPattern(std::string text);
  const std::string& text() const { return text_; }
  bool matches(const std::string& path) const { return pattern_.selects({path, "", ""}); }
  const lightlora::Pattern& pattern() const { return pattern_; }

 private:
  std::string text_;
  lightlora::Pattern pattern_;
};

/// Reads PATTERN=NUMBER of a flag.
/// Errors: c10::ValueError for other texts
std::vector<std::pair<PathPattern, double>> parse_patterns(const std::string& flag,
                                                           const std::vector<std::string>& texts);

/// What `init_from` holds; nothing if it is empty.
/// Errors: those of reading it; c10::Error if it does not go with the other options
lightlora::Components read_start(const AdapterOptions& options);

/// The options with variant, rank and bases of the adapters that are gone on from, if there are
/// any.
AdapterOptions with_start(AdapterOptions options, const lightlora::Components& start);

/// Where this variant learns at about the usual pace.
double usual_rate(const AdapterOptions& options);

/// Puts adapters into a UNet and into those text encoders that train: none, or all of the pipeline's
/// in their order. The trained values follow from the seed, or are those of `start`. With `relax_rank` those are added
/// to the models' weights, and new adapters of that rank train on top (Ruiz et al. 2023,
/// arXiv:2307.06949, "rank-relaxed fast finetuning").
/// Errors: as lightlora::patch, and c10::Error for a pattern that matches nothing
sd::PipelineAdapters add_adapters(const AdapterOptions& options, torch::nn::Module& unet,
                                  const std::vector<torch::nn::Module*>& text_encoders,
                                  uint64_t seed, const lightlora::Components& start = {});

/// What trains, by learning rate. `learning_rate` is the run's, of which text_encoder_lr is a part.
std::vector<ParameterGroup> parameter_groups(const sd::PipelineAdapters& adapters,
                                             const AdapterOptions& options, double learning_rate);

/// Adapters of one variant with factors `down` and `up`, and those that were added to the weights
/// before them, as one: their ranks add up.
/// Errors: c10::Error if `start` lacks a layer
lightlora::Components joined(const lightlora::Components& start,
                             const lightlora::Components& state);
/// The second of two that were joined.
lightlora::Components without(const lightlora::Components& start,
                              const lightlora::Components& both);

}  // namespace training
