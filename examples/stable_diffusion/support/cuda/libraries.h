// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

// Programs are linked with LibTorch's CPU libraries alone, so that one binary runs on every machine.
// On one with a GPU the CUDA libraries beside LibTorch are loaded when a device is chosen, and with
// them this project's own part for CUDA (graphs and NCCL), liblightlora_cuda.so.

namespace cuda {

/// Loads LibTorch's CUDA libraries where an NVIDIA driver is, once in a process. It has to come
/// before the first question for CUDA, which LibTorch asks once for all.
/// Returns why a GPU cannot be used, with a hint; nothing if all is well, or if there is no driver
/// and so nothing to expect.
const std::string& load_libraries();

/// The same for a given library: what `load_libraries` does where a driver is.
/// Returns what went wrong, with a hint; nothing if it was loaded
std::string load_library(const std::string& torch_folder);

/// The folder that LibTorch was loaded from.
std::string torch_folder();

/// A function of NVIDIA's driver; null without one.
void* find_driver_function(const char* name);

/// A function of the part for CUDA, or of a library that was loaded in front; null without one.
void* find_function(const char* name);

}  // namespace cuda
