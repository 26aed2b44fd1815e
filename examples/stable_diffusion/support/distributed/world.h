// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace distributed {

/// The ranks of the processes that one command started, and this one's, as the launcher's
/// environment says them.
struct WorldInfo {
  int64_t rank = 0, size = 1;              ///< among all processes
  int64_t local_rank = 0, local_size = 1;  ///< among those of this machine; the number of its GPU
  std::string host;                        ///< where the store is that the processes meet at
  uint16_t port = 0;
  bool store_is_served = false;  ///< by torchrun; otherwise rank 0 serves it
  int64_t restarts = 0;          ///< how often torchrun has started these processes anew
  bool may_restart = false;      ///< whether torchrun starts them again after a failure

  /// This process alone costs nothing: no store, no backend.
  bool alone() const { return size == 1; }
};

/// The value of an environment variable, if it is set and not empty.
using Variables = std::function<std::optional<std::string>(const std::string& name)>;

/// Reads what torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR,
/// MASTER_PORT, TORCHELASTIC_*), then what mpirun of Open MPI and of MPICH set. Under mpirun
/// MASTER_ADDR is needed if there are several machines; a port follows from the job's name.
/// Errors: c10::ValueError naming a variable that is missing or makes no sense
WorldInfo read_world(const Variables& variables);

/// The same from this process's environment.
WorldInfo read_world();

}  // namespace distributed
