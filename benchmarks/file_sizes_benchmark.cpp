// SPDX-License-Identifier: Apache-2.0
// Prints the sizes of the files of every kind for Stable Diffusion 1.5 as a Markdown table.
//
//   build/bin/file_sizes_benchmark [rank, default 4]
#include <cstdlib>
#include <iomanip>
#include <iostream>

#include "research/study/file_sizes.h"

int main(int argc, char** argv) {
  const int64_t rank = argc > 1 ? std::atoll(argv[1]) : 4;
  std::cout << "| weights | fp32 | fp16 |\n|---|---:|---:|\n" << std::fixed << std::setprecision(1);
  for (const auto& size : study::all_sizes(rank)) {
    std::cout << "| " << size.name << " | " << static_cast<double>(size.fp32) / 1000 << " KB | "
              << static_cast<double>(size.fp16) / 1000 << " KB |\n";
  }
  return 0;
}
