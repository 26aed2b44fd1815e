// SPDX-License-Identifier: Apache-2.0
#include "support/cuda/graph.h"

#include <c10/util/Exception.h>

#include <iostream>
#include <mutex>
#include <utility>

#include "support/cli/fmt.h"
#include "support/cuda/libraries.h"

namespace cuda {

namespace {

using MakeRecorder = GraphRecorder* (*)(c10::Device);

MakeRecorder chosen_recorder = nullptr;

MakeRecorder find_recorder() {
  if (chosen_recorder != nullptr) return chosen_recorder;
  return reinterpret_cast<MakeRecorder>(find_function(kGraphRecorderSymbol));
}

}  // namespace

void use_graph_recorder(GraphRecorder* (*make)(c10::Device)) { chosen_recorder = make; }

bool use_graph(std::optional<bool> wanted, c10::Device device) {
  const bool possible = device.is_cuda() && find_recorder() != nullptr;
  TORCH_CHECK(!wanted.value_or(false) || possible, "--cuda_graph on: expected a GPU",
              device.is_cuda() ? " and liblightlora_cuda.so beside the program or in lib" : "",
              ", got ", device, "; hint: leave it at auto",
              device.is_cuda() ? ", or build with CUDA's headers, see docs/gpu.md" : "");
  if (!wanted && device.is_cuda() && !possible) {
    static std::once_flag said;
    std::call_once(said, [] {
      std::cout
          << "notice: liblightlora_cuda.so is neither beside the program nor in lib, so nothing "
             "is recorded as a CUDA graph; hint: build with CUDA's headers, see docs/gpu.md, or "
             "--cuda_graph off\n";
    });
  }
  return possible && wanted.value_or(true);
}

Graph::Graph(std::function<void()> work, c10::Device device, bool record, OnFailure on_failure)
    : work_(std::move(work)), on_failure_(on_failure) {
  const auto make = record && device.is_cuda() ? find_recorder() : nullptr;
  if (make) recorder_.reset(make(device));
}

void Graph::run() {
  if (!recorder_) return work_();
  if (!recorded_) {
    if (calls_++ < recorder_->warm_ups()) return recorder_->warm_up(work_);
    record();
    if (!recorded_) return work_();
  }
  recorder_->replay();
}

void Graph::record() {
  try {
    recorder_->record(work_);
    recorded_ = true;
  } catch (const std::exception& error) {
    if (on_failure_ == OnFailure::fail) throw;
    recorder_.reset();
    const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
    std::cout << fmt::format(
        "notice: this step cannot be recorded as a CUDA graph and runs as it is: {}\n",
        torch_error ? torch_error->what_without_backtrace() : error.what());
  }
}

}  // namespace cuda
