// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Device.h>

#include <functional>

namespace cuda {

/// Records the kernels that some work launches and launches them again without the work: CUDA's
/// graphs, or a simulation of them in the tests, which bring their own through
/// `kGraphRecorderSymbol`.
class GraphRecorder {
 public:
  virtual ~GraphRecorder() = default;

  /// How often the work has to run as it is before it can be recorded.
  virtual int warm_ups() const = 0;
  /// Runs the work as it is, on the stream that is recorded later.
  virtual void warm_up(const std::function<void()>& work) = 0;
  /// Records the work; nothing of it happens.
  /// Errors: what the work throws, or what says that it cannot be recorded; the device is then as
  ///         it was.
  virtual void record(const std::function<void()>& work) = 0;
  /// What the work did, on the same memory.
  virtual void replay() = 0;
};

/// A function `GraphRecorder* (c10::Device)` of this name in any loaded library is preferred.
constexpr const char* kGraphRecorderSymbol = "lightlora_make_graph_recorder";

}  // namespace cuda
