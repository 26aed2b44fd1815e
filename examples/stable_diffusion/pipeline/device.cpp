// SPDX-License-Identifier: Apache-2.0
#include "pipeline/device.h"

#include <c10/util/Exception.h>
#include <torch/cuda.h>

namespace sd {

const std::vector<std::string>& device_names() {
  static const std::vector<std::string> names{"auto", "cpu", "cuda"};
  return names;
}

const std::vector<std::string>& dtype_names() {
  static const std::vector<std::string> names{"fp32", "fp16", "bf16"};
  return names;
}

c10::Device pick_device(const std::string& name) {
  if (name == "cpu") return c10::kCPU;
  const bool available = torch::cuda::is_available();
  if (name == "auto") return available ? c10::kCUDA : c10::kCPU;
  TORCH_CHECK_VALUE(name == "cuda", "--device: expected auto, cpu or cuda, got '", name, "'");
  TORCH_CHECK(available,
              "--device: expected a GPU for cuda, got none; hint: check nvidia-smi, and that the ",
              "build links LibTorch's CUDA libraries (LIGHTLORA_CUDA=ON)");
  return c10::kCUDA;
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
