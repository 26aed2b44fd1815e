// SPDX-License-Identifier: Apache-2.0
// Prints the sizes of the files of every kind for Stable Diffusion 1.5 as a Markdown table.
//
//   build/bin/file_sizes_benchmark [rank, default 4]
#include <cstdlib>

#include "research/study/file_sizes.h"
#include "support/cli/fmt.h"

int main(int argc, char** argv) {
  const int64_t rank = argc > 1 ? std::atoll(argv[1]) : 4;
  fmt::print("| weights | fp32 | fp16 |\n|---|---:|---:|\n");
  for (const auto& size : study::all_sizes(rank)) {
    fmt::print("| {} | {:.1f} KB | {:.1f} KB |\n", size.name, static_cast<double>(size.fp32) / 1000,
               static_cast<double>(size.fp16) / 1000);
  }
  return 0;
}
