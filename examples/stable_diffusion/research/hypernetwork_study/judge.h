// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "research/hypernetwork_study/recogniser.h"
#include "research/hypernetwork_study/result.h"
#include "research/hypernetwork_study/settings.h"
#include "training/data.h"

namespace hyperstudy {

/// A thing with its pictures, of which the first is the one that is shown.
struct Thing {
  std::string name;
  std::vector<training::PictureFile> pictures;

  const training::PictureFile& shown() const { return pictures.front(); }
  /// What the shown picture is called.
  std::string caption(const std::string& otherwise) const {
    return shown().caption.value_or(otherwise);
  }
};

/// The things of a folder with a sub-folder for each, in the order of their names.
/// Errors: c10::Error if there is none; those of the pictures
std::vector<Thing> read_things(const std::string& folder);
/// So many of them, evenly chosen.
std::vector<Thing> some_of(const std::vector<Thing>& things, int64_t count);

/// The one of `choice` whose shown picture is most like the thing's, other than the thing itself.
size_t nearest(const Thing& thing, const std::vector<Thing>& choice);

/// Measures pictures against the true ones of a thing.
class Judge {
 public:
  /// The recogniser learns from `learned`, once; `things` are those that pictures will be of.
  Judge(const Settings& settings, const std::vector<Thing>& learned,
        const std::vector<Thing>& things);

  /// `drift` stays 0.
  Scores scores(size_t thing, const std::vector<images::Image>& pictures,
                const std::vector<std::string>& prompts);

 private:
  struct Truth {
    at::Tensor vectors;  // (pictures, n), see images::subject_vector
    at::Tensor feature;  // (features), of length 1
  };

  Recogniser recogniser_;
  std::vector<Truth> truths_;
  at::Tensor all_features_;  // (things, features)
};

}  // namespace hyperstudy
