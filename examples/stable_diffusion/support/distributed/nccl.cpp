// SPDX-License-Identifier: Apache-2.0
#include "support/cuda/libraries.h"
#include "support/distributed/backend.h"

namespace distributed {

std::unique_ptr<Backend> make_nccl_backend(const Store& store, const WorldInfo& world) {
  using Make = Backend* (*)(const Store&, const WorldInfo&);
  const auto make = reinterpret_cast<Make>(cuda::find_function("lightlora_make_nccl_backend"));
  return std::unique_ptr<Backend>(make != nullptr ? make(store, world) : nullptr);
}

}  // namespace distributed
