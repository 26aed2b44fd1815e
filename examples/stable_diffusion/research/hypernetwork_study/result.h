// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "research/hypernetwork_study/settings.h"
#include "research/study/result.h"

namespace hyperstudy {

/// How good the pictures of one thing are.
struct Scores {
  double likeness = 0;    ///< mean cosine of the cut-out thing with the true pictures'
  double features = 0;    ///< the same of the recogniser's features
  double recognised = 0;  ///< share of the pictures that the recogniser takes for this thing
  double followed = 0;    ///< share of the backgrounds that are as asked
  double drift = 0;       ///< root mean square change of other prompts' pictures, of 1
};

/// After so many steps.
struct Point {
  int64_t steps = 0;
  double seconds = 0;  ///< since the picture was given, without loading the model and drawing
  Scores scores;
  std::vector<std::string> pictures;  ///< files, one for each prompt
};

/// One thing, personalised in one way with one seed.
struct Run {
  std::string settings;  ///< what it depends on beside its name: another text, another run
  int64_t bytes = 0;     ///< of the file to give away
  int64_t trained = 0;   ///< values in it
  double rate = 0;
  std::vector<Point> points;
};

/// Nothing if there is none with these settings.
std::optional<Run> load_run(const std::string& path, const std::string& settings);
/// Written whole or not at all.
void save_run(const std::string& path, const Run& run);

/// What training a network took.
struct Trained {
  std::string settings;
  double minutes = 0;
  int64_t values = 0, parameters = 0, bytes = 0;
  int64_t identities = 0;
};
std::optional<Trained> load_trained(const std::string& path, const std::string& settings);
void save_trained(const std::string& path, const Trained& trained);

/// A method with all seeds and things: means over the things, spread over the seeds.
struct Summary {
  Method method;
  double rate = 0;
  int64_t bytes = 0, trained = 0;

  /// One for each of the method's points.
  struct AtPoint {
    int64_t steps = 0;
    study::Spread seconds, likeness, features, recognised, followed, drift;
    std::vector<std::string> pictures;  ///< the first picture of each thing, of the first seed
    /// By thing, where the spread is that of the things; otherwise empty.
    std::vector<double> likeness_of, features_of;
  };
  std::vector<AtPoint> points;

  const AtPoint& last() const { return points.back(); }
  const AtPoint& first() const { return points.front(); }
};

/// `runs[seed][thing]`. `by_things`: the spread is the standard error of a mean over the things.
Summary summarise(const Method& method, const std::vector<std::vector<Run>>& runs,
                  bool by_things = false);

/// -1: a is smaller beyond the spread; 1: larger; 0: within it, or one seed only.
int compare(const study::Spread& a, const study::Spread& b);
/// The same of the same things in two ways: by the mean of their differences, beyond twice its
/// standard error.
int compare_by_thing(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace hyperstudy
