// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "research/study/experiment.h"
#include "training/inversion.h"

namespace study {

/// A word for the subject while it is learned by textual inversion, with a model of its own.
class Word {
 public:
  Word(const Settings& settings, bool layerwise, double rate, uint64_t seed);

  training::Inversion& inversion() { return *inversion_; }

 private:
  training::InversionFlags flags_;  // which the inversion goes on reading
  std::unique_ptr<training::Inversion> inversion_;
};

}  // namespace study
