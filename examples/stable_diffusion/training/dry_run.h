// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "training/options.h"

// What a run would need, found out in seconds: the trainer itself runs, on a device that makes
// tensors of the right sizes and computes nothing. No weights are read and no results written.

namespace training {

/// A part of the run, such as "forward".
struct DryPhase {
  std::string name;
  int64_t peak = 0;     ///< most bytes of tensors at a time
  int64_t needed = 0;   ///< most bytes that LibTorch must have of a GPU for them
  int64_t kernels = 0;  ///< of the last time that it ran: one step
  int64_t waits = 0;    ///< for the device
};

struct DryReport {
  bool on_cpu = false;
  c10::ScalarType dtype = c10::kFloat;  ///< of the frozen weights
  int64_t steps = 0, steps_per_epoch = 0, samples_per_epoch = 0, trained_values = 0;
  std::map<std::string, int64_t> buckets;  ///< WIDTHxHEIGHT to the number of pictures
  std::vector<DryPhase> phases;            ///< in the order of the run
  bool recorded = false;                   ///< whether the step is replayed as a CUDA graph
  double operations = 0;                   ///< floating-point operations of a step
  std::map<std::string, int64_t> files;    ///< to bytes
  std::vector<std::string> notices;
  /// What the run needs: of a GPU with CUDA itself, of the machine with the program itself.
  int64_t memory = 0;

  std::string text() const;
};

/// Works for any machine: with a GPU's name as the device also on one that has none. Once in a
/// process.
/// Errors: those of train_dreambooth for the options; c10::Error in a program that is linked with
///         LibTorch's CUDA libraries
DryReport dry_run(DreamBoothOptions options);

}  // namespace training
