// SPDX-License-Identifier: Apache-2.0
#include "pipeline/device.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <torch/cuda.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>

namespace sd {

const std::vector<std::string>& device_names() {
  static const std::vector<std::string> names{"auto",   "cpu",    "cuda",   "cuda:0",
                                              "cuda:1", "cuda:2", "cuda:3", "cuda:4",
                                              "cuda:5", "cuda:6", "cuda:7"};
  return names;
}

const std::vector<std::string>& dtype_names() {
  static const std::vector<std::string> names{"fp32", "fp16", "bf16"};
  return names;
}

std::string unused_gpu_notice(bool driver_is_seen) {
  if (!driver_is_seen) return "";
  return "notice: computing on the CPU, although this machine has an NVIDIA driver: this program "
         "was "
         "built without LibTorch's CUDA libraries, or the driver is too old for them; hint: "
         "LIGHTLORA_CUDA=ON scripts/bootstrap.sh, build again, and look at nvidia-smi";
}

void use_deterministic_algorithms() {
  ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  auto& context = at::globalContext();
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  context.setDeterministicCuDNN(true);
  context.setBenchmarkCuDNN(false);
  context.setSDPUseCuDNN(false);
}

c10::Device pick_device(const std::string& name) {
  if (name == "cpu") return c10::kCPU;
  const auto& names = device_names();
  TORCH_CHECK_VALUE(std::find(names.begin(), names.end(), name) != names.end(),
                    "--device: expected auto, cpu, cuda or cuda:N, got '", name, "'");
  const auto count =
      torch::cuda::is_available() ? static_cast<int>(torch::cuda::device_count()) : 0;
  if (name == "auto" && count == 0) {
    static const bool told = [] {
      const auto notice = unused_gpu_notice(std::filesystem::exists("/proc/driver/nvidia/version"));
      if (!notice.empty()) std::cout << notice << "\n";
      return true;
    }();
    static_cast<void>(told);
    return c10::kCPU;
  }
  TORCH_CHECK(count > 0, "--device: expected a GPU for ", name,
              ", got none; hint: check nvidia-smi, and that the build links LibTorch's CUDA ",
              "libraries (LIGHTLORA_CUDA=ON)");
  // LibTorch 2.11 prefers cuDNN's attention on Hopper and newer. It has open errors (gradients that
  // are NaN, shapes without a plan) and was not compared with the others here yet.
  at::globalContext().setSDPUseCuDNN(false);
  const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
  c10::Device device = name == "auto" ? c10::Device(c10::kCUDA) : c10::Device(name);
  if (!device.has_index()) return guard.getDevice();
  TORCH_CHECK(device.index() < count, "--device: expected a GPU below cuda:", count, ", got ",
              name);
  guard.setDevice(device);
  return device;
}

at::Tensor upload(const at::Tensor& host, c10::Device device) {
  if (!device.is_cuda() || !host.is_cpu()) return host.to(device);
  return host.pin_memory().to(device, /*non_blocking=*/true);
}

c10::ScalarType pick_dtype(const std::string& name) {
  if (name == "fp32") return c10::kFloat;
  if (name == "fp16") return c10::kHalf;
  TORCH_CHECK_VALUE(name == "bf16", "expected a precision among fp32, fp16 and bf16, got '", name,
                    "'");
  return c10::kBFloat16;
}

cli::Choices<c10::ScalarType> dtype_choices() {
  return {{"fp32", c10::kFloat}, {"fp16", c10::kHalf}, {"bf16", c10::kBFloat16}};
}

}  // namespace sd
