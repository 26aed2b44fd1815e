// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>

#include "support/distributed/store.h"
#include "support/distributed/world.h"

namespace distributed {

/// What moves tensors between the processes. All ranks must make the same calls in the same order.
/// Every call adds in a fixed order, and leaves the same bits on all ranks.
/// Errors: std::exception if a process is gone
class Backend {
 public:
  virtual ~Backend() = default;
  /// In place: the sum over all ranks.
  virtual void sum(torch::Tensor& tensor) = 0;
  /// In place: what rank 0 has.
  virtual void broadcast(torch::Tensor& tensor) = 0;
};

/// LibTorch's gloo, for tensors on the CPU. `address` is this machine's, as the others reach it.
/// Errors: c10::Error if the others cannot be reached within `seconds`
std::unique_ptr<Backend> make_gloo_backend(const Store& store, const WorldInfo& world,
                                           const std::string& address, double seconds);

/// LibTorch's NCCL, for tensors on this process's GPU; null without the part for
/// CUDA (support/cuda), where CUDA tensors go through the CPU.
std::unique_ptr<Backend> make_nccl_backend(const Store& store, const WorldInfo& world);

}  // namespace distributed
