// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "support/distributed/store.h"
#include "support/distributed/world.h"

namespace distributed {

/// What one process tells the others when it starts.
struct Member {
  std::string machine;                                        ///< its host name
  std::string address;                                        ///< as the others reach it
  std::string program;                                        ///< name and version
  std::vector<std::pair<std::string, std::string>> settings;  ///< flags that all ranks should share
  std::string gpu, gpu_name;  ///< UUID of the one that it computes on; empty: none, or unknown
};

/// All processes of one start, in one part of the store. torchrun keeps its store over restarts, so
/// each start has a part of its own.
struct Rendezvous {
  Store store;
  std::vector<Member> members;  ///< by rank
  int64_t number = 1;           ///< 1 for the first start, 2 for torchrun's first restart
};

/// Waits until all ranks are there.
/// Errors: c10::Error naming the ranks that did not come within `seconds`, or a rank that came
/// twice
Rendezvous meet(const Store& store, const WorldInfo& world, const Member& self, double seconds);

/// Errors: c10::ValueError naming the first setting in which a rank differs from rank 0
void require_same_settings(const std::vector<Member>& members);

/// Errors: c10::ValueError naming two ranks that compute on one GPU, which NCCL would refuse in words
/// of its own
void require_own_gpus(const std::vector<Member>& members);

}  // namespace distributed
