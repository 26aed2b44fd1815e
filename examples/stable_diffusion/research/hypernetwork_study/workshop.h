// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "pipeline/pipeline.h"
#include "research/hypernetwork_study/judge.h"
#include "training/trainer.h"

namespace hyperstudy {

/// One run to do.
struct Job {
  Method method;
  double rate = 0;
  uint64_t seed = 0;
  size_t thing = 0;          ///< among the judge's
  std::string start;         ///< file of the adapters to begin with; empty: none
  double start_seconds = 0;  ///< that these took
  std::string stem;          ///< of the run's files
  std::string settings;      ///< what it depends on
};

/// Where a method's rates are tried around.
double usual_rate(const Method& method);

/// Personalises one loaded model again and again, which is the base again after each.
class Workshop {
 public:
  Workshop(const Settings& settings, std::vector<Thing> things, Judge& judge);

  /// A run, which also leaves its pictures behind. What diverges has scores of 0.
  Run make(const Job& job);

  sd::StableDiffusion& pipeline() { return pipeline_; }

 private:
  training::Trainer make_trainer(const Job& job, const lightlora::Patched& adapters);
  void tune_adapters(const Job& job, Run& run);
  void tune_word(const Job& job, Run& run);
  std::vector<images::Image> draw(sd::StableDiffusion& pipeline,
                                  const std::vector<std::string>& prompts) const;
  Point measure(const Job& job, sd::StableDiffusion& pipeline, int64_t steps, double seconds);
  double drift(sd::StableDiffusion& pipeline) const;

  Settings settings_;
  std::vector<Thing> things_;
  Judge& judge_;
  sd::StableDiffusion pipeline_;
  std::vector<std::pair<at::Tensor, at::Tensor>> kept_;  // the UNet's weights, and copies
  std::vector<images::Image> class_pictures_;            // as the base draws them
};

}  // namespace hyperstudy
