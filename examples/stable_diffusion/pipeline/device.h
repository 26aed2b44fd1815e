// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>
#include <vector>

#include "support/cli/choices.h"

namespace sd {

/// The words that `pick_device` and `pick_dtype` take, for flags.
const std::vector<std::string>& device_names();
const std::vector<std::string>& dtype_names();

/// "cpu", "cuda", "cuda:1" and so on, or "auto": the GPU if this build of LibTorch and this machine
/// have one. A GPU comes with its index, that of the current one if the name has none, and is the
/// calling thread's current one from then on.
/// Errors: c10::ValueError for another word; c10::Error for a GPU that is not there
c10::Device pick_device(const std::string& name);

/// Where and in what precision a program computes, such as "NVIDIA H200 (cuda:0), bf16, LibTorch
/// 2.11.0".
std::string describe_device(c10::Device device, c10::ScalarType dtype);

/// What `auto` prints once where it chose the CPU: nothing, unless there is a GPU of this name, or
/// a reason why one cannot be used.
std::string unused_gpu_warning(const std::string& gpu, const std::string& problem);

/// Asks LibTorch for algorithms that give equal bytes for equal work on a GPU too, where it has
/// them; others throw. Before the first use of the GPU.
void use_deterministic_algorithms();

/// A CPU tensor's copy on `device`, which nobody waits for: on the way to a GPU it is staged in
/// memory that the GPU reads by itself. A tensor that is there already comes back as it is.
at::Tensor upload(const at::Tensor& host, c10::Device device);

/// "fp32", "fp16" or "bf16".
/// Errors: c10::ValueError for another word
c10::ScalarType pick_dtype(const std::string& name);

/// The same words with their meaning, for flags.
cli::Choices<c10::ScalarType> dtype_choices();

}  // namespace sd
