// SPDX-License-Identifier: Apache-2.0
// Prints the sizes of the files of every kind for Stable Diffusion 1.5 as a Markdown table.
#include "research/study/file_sizes.h"
#include "support/cli/app.h"
#include "support/cli/fmt.h"
#include "support/cli/run.h"

int main(int argc, char** argv) {
  int64_t rank = 4;
  cli::App app("file_sizes_benchmark",
               "Prints the sizes of the files of every kind for Stable Diffusion 1.5.",
               "file_sizes_benchmark --rank 8");
  app.add_option("--rank", rank, "Rank of the adapters")->check(cli::at_least(1));
  return cli::run(argc, argv, app, [&] {
    fmt::print("| weights | fp32 | fp16 |\n|---|---:|---:|\n");
    for (const auto& size : study::all_sizes(rank)) {
      fmt::print("| {} | {:.1f} KB | {:.1f} KB |\n", size.name,
                 static_cast<double>(size.fp32) / 1000, static_cast<double>(size.fp16) / 1000);
    }
  });
}
