// SPDX-License-Identifier: Apache-2.0
#include "support/cuda/libraries.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>

#include <filesystem>

#include "support/cuda/cards.h"

namespace cuda {

namespace {

namespace fs = std::filesystem;

constexpr const char* kInstall =
    "; hint: LIGHTLORA_CUDA=ON scripts/bootstrap.sh installs LibTorch with everything it needs";

bool has_cuda() { return at::CUDAHooksRegistry()->Has("CUDAHooks"); }

bool has_driver() {
  return fs::exists("/proc/driver/nvidia/version") || find_driver_function("cuInit") != nullptr;
}

// Beside the program, or in lib/ beside its folder. Without it nothing is recorded, and several
// GPUs exchange through the CPU, which is said where it happens.
void load_own_part() {
  // A simulated device brings its own.
  const auto real = fs::path(torch_folder()) / "libtorch_cuda.so";
  if (dlopen(real.c_str(), RTLD_LAZY | RTLD_NOLOAD) == nullptr) return;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) return;
  const fs::path folder = program.parent_path();
  for (const auto& place : {folder, folder.parent_path() / "lib", folder.parent_path() / "lib64"}) {
    const auto path = place / "liblightlora_cuda.so";
    if (fs::exists(path) && dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) return;
  }
}

std::string load() {
  if (!has_cuda()) {
    if (!has_driver()) return "";
    auto problem = load_library(torch_folder());
    if (!problem.empty()) return problem;
  }
  load_own_part();
  return "";
}

}  // namespace

const std::string& load_libraries() {
  static const std::string problem = load();
  return problem;
}

std::string load_library(const std::string& torch_folder) {
  const fs::path library = fs::path(torch_folder) / "libtorch_cuda.so";
  if (!fs::exists(library)) {
    return "LibTorch in '" + torch_folder + "' has no CUDA libraries" + kInstall;
  }
  if (dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    const char* why = dlerror();
    return std::string("LibTorch's CUDA libraries cannot be loaded (") + (why ? why : "unknown") +
           ")" + kInstall;
  }
  if (!has_cuda()) return "'" + library.string() + "' holds no CUDA kernels" + kInstall;
  return "";
}

std::string torch_folder() {
  Dl_info info{};
  // A function of libtorch_cpu.so, and no inline one.
  const auto* inside = reinterpret_cast<const void*>(&at::CUDAHooksRegistry);
  if (dladdr(inside, &info) == 0 || info.dli_fname == nullptr) return "";
  return fs::path(info.dli_fname).parent_path().string();
}

void* find_driver_function(const char* name) {
  static void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  return library == nullptr ? nullptr : dlsym(library, name);
}

void* find_function(const char* name) {
  load_libraries();
  return dlsym(RTLD_DEFAULT, name);
}

}  // namespace cuda
