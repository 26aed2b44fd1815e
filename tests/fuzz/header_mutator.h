// SPDX-License-Identifier: Apache-2.0
// How the fuzzers of safetensors files change their inputs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

/// Most mutations of a whole file only break its length field. So three times in four the header's
/// text alone is changed and the length made to fit again, and half of these times the data as
/// well.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  if (seed % 4 == 0 || size < 10 || max_size < size + 8)
    return LLVMFuzzerMutate(data, size, max_size);
  uint64_t length = 0;
  std::memcpy(&length, data, 8);
  if (length > size - 8) length = size - 8;
  std::string tail(reinterpret_cast<char*>(data) + 8 + length, size - 8 - length);
  length = LLVMFuzzerMutate(data + 8, length, max_size - 8);
  if (seed % 2 == 0) tail.resize((seed >> 8) % 65);
  tail.resize(std::min<size_t>(tail.size(), max_size - 8 - length));
  std::memcpy(data, &length, 8);
  std::memcpy(data + 8 + length, tail.data(), tail.size());
  return 8 + length + tail.size();
}
