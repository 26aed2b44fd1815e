// SPDX-License-Identifier: Apache-2.0
// NCCL, in the part of the programs that is loaded where a GPU is.
#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/cuda/nccl.h>

#include <algorithm>

#include "support/distributed/backend.h"

namespace distributed {

namespace {

namespace nccl = torch::cuda::nccl;

class NcclBackend : public Backend {
 public:
  NcclBackend(const Store& store, const WorldInfo& world)
      : device_(torch::kCUDA, c10::cuda::current_device()) {
    nccl::ncclUniqueId id;
    if (world.rank == 0) {
      nccl::get_unique_id(id);
      store->set("id", std::vector<uint8_t>(id.internal, id.internal + NCCL_UNIQUE_ID_BYTES));
    } else {
      const auto bytes = store->get("id");
      TORCH_CHECK(bytes.size() == NCCL_UNIQUE_ID_BYTES, "NCCL: expected an id of ",
                  NCCL_UNIQUE_ID_BYTES, " bytes from rank 0, got ", bytes.size());
      std::copy(bytes.begin(), bytes.end(), id.internal);
    }
    communicator_ =
        nccl::comm_init_rank(static_cast<int>(world.size), id, static_cast<int>(world.rank));
  }
  NcclBackend(const NcclBackend&) = delete;
  NcclBackend& operator=(const NcclBackend&) = delete;
  // The communicator is left to the end of the process: destroying it would wait for ranks that may
  // be gone.

  void sum(torch::Tensor& tensor) override {
    const c10::cuda::CUDAGuard guard(device_);
    std::vector<torch::Tensor> tensors{tensor};
    nccl::all_reduce(tensors, tensors, static_cast<int>(nccl::ncclRedOp::Sum), {}, {communicator_});
  }

  void broadcast(torch::Tensor& tensor) override {
    const c10::cuda::CUDAGuard guard(device_);
    nccl::broadcast({tensor}, {}, {communicator_});
  }

 private:
  c10::Device device_;
  nccl::ncclComm_t communicator_ = nullptr;
};

}  // namespace

}  // namespace distributed

extern "C" distributed::Backend* lightlora_make_nccl_backend(const distributed::Store& store,
                                                             const distributed::WorldInfo& world) {
  return new distributed::NcclBackend(store, world);
}
