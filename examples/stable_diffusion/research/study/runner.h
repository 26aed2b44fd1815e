// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "research/study/experiment.h"
#include "support/distributed/group.h"

namespace study {

/// One run to do.
struct Job {
  Variant variant;
  double rate = 0;
  uint64_t seed = 0;
};

/// Makes an experiment in every process of a group: rank 0 first, which learns the word.
/// Errors: c10::Error if the processes do not share one work folder
std::unique_ptr<Experiment> make_experiment(const Settings& settings,
                                            const distributed::Group& group);

/// Runs of a study with a line for each that is not done yet, dealt out to the processes of a
/// group.
class Runner {
 public:
  /// `total`: how many runs the study has in all
  Runner(Experiment& experiment, const distributed::Group& group, int64_t total)
      : experiment_(experiment), group_(group), total_(total) {}

  /// Runs that need no result of each other: those not done yet go to the ranks in turn. All
  /// processes get all results, in order.
  /// Errors: c10::Error naming a result that another process has not left in the work folder
  std::vector<Result> train(const std::vector<Job>& jobs);

 private:
  std::vector<size_t> not_done(const std::vector<Job>& jobs) const;
  Result result_of_other(const Job& job, int64_t rank) const;
  void report(const Job& job, const Result& result, size_t index, int64_t rank) const;

  Experiment& experiment_;
  distributed::Group group_;
  int64_t total_, finished_ = 0, trained_ = 0;
  double seconds_ = 0;
};

}  // namespace study
