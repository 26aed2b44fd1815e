// SPDX-License-Identifier: Apache-2.0
#include "pipeline/device.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <torch/cuda.h>

#include <algorithm>

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

c10::Device pick_device(const std::string& name) {
  if (name == "cpu") return c10::kCPU;
  const auto& names = device_names();
  TORCH_CHECK_VALUE(std::find(names.begin(), names.end(), name) != names.end(),
                    "--device: expected auto, cpu, cuda or cuda:N, got '", name, "'");
  const auto count = torch::cuda::is_available() ? static_cast<int>(torch::cuda::device_count()) : 0;
  if (name == "auto" && count == 0) return c10::kCPU;
  TORCH_CHECK(count > 0, "--device: expected a GPU for ", name,
              ", got none; hint: check nvidia-smi, and that the build links LibTorch's CUDA ",
              "libraries (LIGHTLORA_CUDA=ON)");
  const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
  c10::Device device = name == "auto" ? c10::Device(c10::kCUDA) : c10::Device(name);
  if (!device.has_index()) return guard.getDevice();
  TORCH_CHECK(device.index() < count, "--device: expected a GPU below cuda:", count, ", got ", name);
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
