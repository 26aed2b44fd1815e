// SPDX-License-Identifier: Apache-2.0
#include "support/distributed/engine.h"

#if LIGHTLORA_HAS_CUDA
#include <algorithm>

#include <c10/cuda/CUDAGuard.h>
#include <torch/csrc/cuda/nccl.h>
#endif

namespace distributed {

#if LIGHTLORA_HAS_CUDA

namespace {

namespace nccl = torch::cuda::nccl;

class NcclEngine : public Engine {
 public:
  NcclEngine(const Store& store, const Place& place)
      : device_(torch::kCUDA, c10::cuda::current_device()) {
    nccl::ncclUniqueId id;
    if (place.rank == 0) {
      nccl::get_unique_id(id);
      store->set("id", std::vector<uint8_t>(id.internal, id.internal + NCCL_UNIQUE_ID_BYTES));
    } else {
      const auto bytes = store->get("id");
      TORCH_CHECK(bytes.size() == NCCL_UNIQUE_ID_BYTES, "NCCL: expected an id of ", NCCL_UNIQUE_ID_BYTES,
                  " bytes from rank 0, got ", bytes.size());
      std::copy(bytes.begin(), bytes.end(), id.internal);
    }
    communicator_ = nccl::comm_init_rank(static_cast<int>(place.size), id, static_cast<int>(place.rank));
  }
  NcclEngine(const NcclEngine&) = delete;
  NcclEngine& operator=(const NcclEngine&) = delete;
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

std::unique_ptr<Engine> make_nccl_engine(const Store& store, const Place& place) {
  return std::make_unique<NcclEngine>(store, place);
}

#else

std::unique_ptr<Engine> make_nccl_engine(const Store&, const Place&) { return nullptr; }

#endif

}  // namespace distributed
