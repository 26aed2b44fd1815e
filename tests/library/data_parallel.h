// SPDX-License-Identifier: Apache-2.0
// LibTorch's data_parallel. Its header includes CUDA's, which machines without a toolkit lack.
#pragma once

#if __has_include(<cuda_runtime_api.h>)
#include <torch/nn/parallel/data_parallel.h>
#define LIGHTLORA_TESTS_DATA_PARALLEL 1
#else
#define LIGHTLORA_TESTS_DATA_PARALLEL 0
#endif

namespace lightlora_tests {

constexpr const char* kNoDataParallel =
    "not tested: expected CUDA's headers, which LibTorch's data_parallel.h includes, got none";

}  // namespace lightlora_tests
