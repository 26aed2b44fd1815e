// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>
#include <optional>

#include "support/cuda/graph_recorder.h"

namespace cuda {

/// Whether to record on this device. Nothing asked for: with a GPU, if the part for
/// CUDA is there (support/cuda).
/// Errors: c10::Error if recording was asked for without a GPU or without that part
bool use_graph(std::optional<bool> wanted, c10::Device device);

/// From now on recordings are made by these; for a simulated device.
void use_graph_recorder(GraphRecorder* (*make)(c10::Device));

/// Work that is the same kernels on the same memory every time, recorded as one CUDA graph: a
/// training step of a small batch is about 2000 kernels that each finish sooner than they are
/// launched.
///
/// The work must read its inputs from tensors that stay where they are (fill them with `copy_`
/// before each call), leave its results in such tensors, and never wait for the GPU: no `item()`,
/// no copy to the CPU, no random numbers other than of the default generator, whose state it
/// neither reads nor sets. The first calls run as they are, on a stream of their own; the one after
/// them is recorded. Without a GPU, or with `record` false, every call runs the work as it is.
class Graph {
 public:
  /// What happens to work that cannot be recorded.
  enum class OnFailure {
    run_as_it_is,  ///< from then on, with one notice
    fail,          ///< `run` throws
  };

  Graph(std::function<void()> work, c10::Device device, bool record,
        OnFailure on_failure = OnFailure::run_as_it_is);

  void run();
  /// Whether the next call replays the recording.
  bool recorded() const { return recorded_; }

 private:
  void record();

  std::function<void()> work_;
  std::unique_ptr<GraphRecorder> recorder_;  // null: the work always runs as it is
  OnFailure on_failure_;
  int calls_ = 0;
  bool recorded_ = false;
};

}  // namespace cuda
