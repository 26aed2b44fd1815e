// SPDX-License-Identifier: Apache-2.0
#include "pipeline/device.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <torch/cuda.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "support/cli/fmt.h"
#include "support/cli/process.h"
#include "support/cuda/cards.h"
#include "support/cuda/libraries.h"

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

std::string unused_gpu_warning(const std::string& gpu, const std::string& problem) {
  if (gpu.empty() && problem.empty()) return "";
  const std::string why =
      !problem.empty() ? problem
                       : "LibTorch " TORCH_VERSION
                         " cannot use it; hint: nvidia-smi shows whether the driver is new enough "
                         "(CUDA 13 needs 580) and CUDA_VISIBLE_DEVICES shows it";
  return "warning: computing on the CPU, although this machine has " +
         (gpu.empty() ? "an NVIDIA driver" : "a GPU (" + gpu + ")") + ": " + why;
}

void use_deterministic_algorithms() {
  cli::set_default_variable("CUBLAS_WORKSPACE_CONFIG", ":4096:8");
  auto& context = at::globalContext();
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  context.setDeterministicCuDNN(true);
  context.setBenchmarkCuDNN(false);
  context.setSDPUseCuDNN(false);
  // No kernel reads what it did not write: filling memory first would cost a kernel for each tensor.
  context.setDeterministicFillUninitializedMemory(false);
}

namespace {

// Once in a process: several places pick the device.
void warn_of_unused_gpu(const std::string& problem) {
  static bool told = false;
  if (std::exchange(told, true)) return;
  const auto& known = cuda::cards();
  const auto warning = unused_gpu_warning(known.empty() ? "" : known.front().name, problem);
  if (!warning.empty()) fmt::print("{}\n", warning);
}

}  // namespace

c10::Device pick_device(const std::string& name) {
  if (name == "cpu") return c10::kCPU;
  const auto& names = device_names();
  TORCH_CHECK_VALUE(std::find(names.begin(), names.end(), name) != names.end(),
                    "--device: expected auto, cpu, cuda or cuda:N, got '", name, "'");
  const auto& problem = cuda::load_libraries();
  const auto count =
      torch::cuda::is_available() ? static_cast<int>(torch::cuda::device_count()) : 0;
  if (name == "auto" && count == 0) {
    warn_of_unused_gpu(problem);
    return c10::kCPU;
  }
  TORCH_CHECK(count > 0, "--device: expected a GPU for ", name, ", got none",
              problem.empty() ? "; hint: check nvidia-smi" : ": " + problem);
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

std::string describe_device(c10::Device device, c10::ScalarType dtype) {
  std::string text = device.str();
  const auto known = cuda::cards();
  const auto index = static_cast<std::size_t>(device.index());
  if (device.is_cuda() && index < known.size()) text = known[index].name + " (" + text + ")";
  text += ", " + cli::word_of(dtype_choices(), dtype);
  if (dtype == c10::kBFloat16 && cuda::fast_precision(device) == c10::kHalf) {
    text += " (emulated on this GPU; hint: fp16 is fast)";
  }
  return text + ", LibTorch " + TORCH_VERSION;
}

cli::Choices<c10::ScalarType> dtype_choices() {
  return {{"fp32", c10::kFloat}, {"fp16", c10::kHalf}, {"bf16", c10::kBFloat16}};
}

}  // namespace sd
