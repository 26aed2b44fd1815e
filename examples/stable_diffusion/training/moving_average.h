// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>
#include <lightlora/train.h>
#include <torch/types.h>

#include <cstdint>

namespace training {

/// A moving average of all values of a bank, as diffusers' EMAModel keeps it.
/// Equation: average -= (1 - d) (average - values) after update n, with
///           d = min(decay, n / (n + 9)) and d = 0 for the first, which takes the values as they are
/// Dtypes:   that of the bank
class MovingAverage {
 public:
  /// The bank must outlive this.
  MovingAverage(lightlora::ParameterBank& bank, double decay);

  /// After an optimizer's step.
  void update();
  /// The average itself, flat as the bank, and how often it was updated.
  const torch::Tensor& values() const { return average_; }
  int64_t updates() const { return updates_; }
  /// Goes on with what `values` holds now, as after so many updates.
  void go_on_after(int64_t updates) { updates_ = updates; }

  /// The average in the place of the bank's values, while it lives.
  class InPlace {
   public:
    explicit InPlace(const MovingAverage& average);
    ~InPlace();
    InPlace(const InPlace&) = delete;
    InPlace& operator=(const InPlace&) = delete;

   private:
    lightlora::ParameterBank& bank_;
    torch::Tensor values_;
  };

  /// Copies on the CPU: the average, how often it was updated, and the bank's own values, which the
  /// files of a checkpoint do not have.
  lightlora::TensorMap state() const;
  /// Begins anew if the state is of a run without an average.
  /// Errors: c10::Error for one of another size
  void load_state(const lightlora::TensorMap& state);
  /// Puts the values that such a state holds back into a bank, also of a run without an average.
  static void restore_values(lightlora::ParameterBank& bank, const lightlora::TensorMap& state);

 private:
  lightlora::ParameterBank& bank_;
  double decay_;
  torch::Tensor average_;
  int64_t updates_ = 0;
};

}  // namespace training
