// SPDX-License-Identifier: Apache-2.0
// Choosing a device: what is said where a GPU cannot be used, and LibTorch's switches.
#include "pipeline/device.h"

#include <ATen/Context.h>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <fstream>

#include "support.h"
#include "support/cuda/cards.h"
#include "support/cuda/libraries.h"
#include "support/distributed/backend.h"

TEST_CASE("device: nothing is said on a machine without a GPU, and why one is not used elsewhere",
          "[device]") {
  CHECK(sd::unused_gpu_warning("", "").empty());
  const auto old_driver = sd::unused_gpu_warning("NVIDIA T4", "");
  CHECK_THAT(old_driver, ContainsSubstring("a GPU (NVIDIA T4): LibTorch 2."));
  CHECK_THAT(old_driver, ContainsSubstring("; hint: nvidia-smi"));
  const auto missing = sd::unused_gpu_warning("", "no library; hint: install it");
  CHECK_THAT(missing, ContainsSubstring("an NVIDIA driver: no library; hint: install it"));
  CHECK(missing.find('\n') == std::string::npos);
}

TEST_CASE("device: CUDA libraries that are missing or damaged are named with the remedy",
          "[device]") {
  const ScratchFolder folder;
  const auto missing = cuda::load_library(folder.path().string());
  CHECK_THAT(missing, ContainsSubstring("'" + folder.path().string() + "' has no CUDA libraries"));
  std::ofstream(folder.file("libtorch_cuda.so")) << "no library";
  const auto damaged = cuda::load_library(folder.path().string());
  CHECK_THAT(damaged, ContainsSubstring("cannot be loaded ("));
  for (const auto& text : {missing, damaged}) {
    CHECK_THAT(text, ContainsSubstring("; hint: LIGHTLORA_CUDA=ON scripts/bootstrap.sh"));
  }
  CHECK(std::filesystem::exists(std::filesystem::path(cuda::torch_folder()) / "libtorch_cpu.so"));
}

TEST_CASE("device: --deterministic sets LibTorch's switches", "[device]") {
  auto& context = at::globalContext();
  const bool before = context.deterministicAlgorithms();
  sd::use_deterministic_algorithms();
  CHECK(context.deterministicAlgorithms());
  CHECK_FALSE(context.deterministicAlgorithmsWarnOnly());
  CHECK(context.deterministicCuDNN());
  CHECK_FALSE(context.benchmarkCuDNN());
  CHECK(std::getenv("CUBLAS_WORKSPACE_CONFIG") != nullptr);
  context.setDeterministicAlgorithms(before, /*warn_only=*/false);
  context.setDeterministicCuDNN(false);
}

TEST_CASE("device: the description names device, precision and LibTorch", "[device]") {
  CHECK_THAT(sd::describe_device(torch::kCPU, torch::kBFloat16),
             ContainsSubstring("cpu, bf16, LibTorch 2."));
}

TEST_CASE("device: NCCL of one process sums and broadcasts", "[device][cuda][nccl]") {
  if (!torch::cuda::is_available()) {
    WARN("no GPU here");
    return;
  }
  sd::pick_device("cuda");
  const distributed::Store store = c10::make_intrusive<c10d::HashStore>();
  const auto backend = distributed::make_nccl_backend(store, {});
  REQUIRE(backend != nullptr);
  for (const auto dtype : {torch::kFloat, torch::kDouble}) {
    auto values = torch::arange(1 << 18, torch::TensorOptions(torch::kCUDA).dtype(dtype));
    const auto before = values.clone();
    backend->sum(values);
    backend->broadcast(values);
    CHECK(torch::equal(values, before));
  }
}
