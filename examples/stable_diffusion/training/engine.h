// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "support/distributed/group.h"

namespace training {

/// What one step did.
struct StepReport {
  double loss = 0;  ///< of all that the step learned from
  double learning_rate = 0;
  double gradient_norm = 0;  ///< before clipping; 0 if the step was skipped
  bool skipped = false;      ///< an fp16 overflow: the step was left out
  bool stop = false;         ///< whether a process was asked to stop
};

/// Values that train, and how a step moves them: the engine under the loop of `train`.
///
/// Step k draws the same random numbers in every run of the same seed, so that a run that goes on
/// from its state equals one that never stopped, bit for bit. All processes of a group hold the
/// same values after every step.
class Engine {
 public:
  virtual ~Engine() = default;

  /// One optimiser step. `asked_to_stop` is asked at its end; all processes report alike.
  /// Errors: c10::Error naming the step if the loss or the gradients are not finite; the values are
  ///         then those of the last good step
  virtual StepReport step(const std::function<bool()>& asked_to_stop) = 0;
  virtual int64_t steps_done() const = 0;
  /// Without those that fp16 skipped.
  virtual int64_t updates_done() const { return steps_done(); }
  virtual int64_t trained_values() const = 0;
  /// 1 unless the loss is scaled for fp16.
  virtual double loss_scale() const { return 1; }
  /// Whether every trained value is a number.
  virtual bool is_finite() const = 0;

  /// The moving average in place of the values while the result lives, for what is shown or saved;
  /// null where there is none.
  virtual std::shared_ptr<void> averaged() { return nullptr; }

  /// Where it computes, and in which precision.
  virtual torch::TensorOptions computes_in() const = 0;
  virtual const distributed::Group& group() const = 0;
  /// Gives all processes the values and the state of rank 0.
  virtual void share_state() = 0;

  /// What a checkpoint keeps beside the task's own files.
  virtual lightlora::TensorMap state() const = 0;
  /// Errors: c10::Error if the state is of another optimiser or other parameters
  virtual void load_state(const lightlora::TensorMap& state) = 0;
};

}  // namespace training
