// SPDX-License-Identifier: Apache-2.0
// Forward and backward time of one adapted Linear: every variant, route and shape against the bare
// frozen layer in the same run. Prints a table, and writes JSON for report.py. Needs LibTorch
// alone.
#include <fmt/format.h>
#include <torch/cuda.h>
#include <torch/torch.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>

#include "common/layer_case.h"
#include "common/layer_group.h"
#include "common/layer_rows.h"
#include "common/measure.h"
#include "common/options.h"
#include "common/profile.h"

namespace {

using bench::Form;
using bench::LayerCase;
using bench::Shape;

struct Flags {
  std::string device = "cpu", json_path, title;
  std::vector<std::string> variants, dtypes, shapes;
  int64_t rank = 4, threads = 1;
  double seconds = 12;
  bool quick = false, serve = false, profile = false;
};

// SD 1.5 at 512x512: self-attention of the four levels, cross-attention keys and values.
const std::vector<std::string> kStableDiffusion{"4096x320x320", "1024x640x640", "256x1280x1280",
                                                "64x1280x1280", "77x768x320",   "77x768x640",
                                                "77x768x1280"};
const std::vector<std::string> kWide{"256x4096x4096", "1024x4096x4096", "4096x4096x4096",
                                     "16384x4096x4096"};

Shape parse_shape(const std::string& text) {
  Shape shape;
  char rest = 0;
  const int found = std::sscanf(text.c_str(), "%ldx%ldx%ld%c", &shape.n, &shape.k, &shape.m, &rest);
  TORCH_CHECK_VALUE(found == 3 && shape.n > 0 && shape.k > 0 && shape.m > 0,
                    "'--shape': expected ROWSxINxOUT such as 4096x320x320, got '", text, "'");
  return shape;
}

at::Device pick_device(const std::string& name) {
  const bool available = torch::cuda::is_available();
  TORCH_CHECK(available || name != "cuda", "'--device': expected a GPU for cuda, got none");
  // With its index, without which no memory can be asked for.
  return available && name != "cpu" ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
}

at::ScalarType pick_dtype(const std::string& name) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    if (bench::dtype_name(dtype) == name) return dtype;
  }
  TORCH_CHECK_VALUE(false, "'--dtype': expected fp32, bf16 or fp16, got '", name, "'");
}

void measure_all(const Flags& flags) {
  const at::Device device = pick_device(flags.device);
  const measure::Clock clock(device, static_cast<int>(flags.threads));
  const auto machine = measure::machine(device, static_cast<int>(flags.threads));
  std::vector<bench::Row> rows;
  measure::Json peaks_by_dtype;
  fmt::print("{}\n", machine.dump());
  for (const auto& name : flags.dtypes) {
    const at::ScalarType dtype = pick_dtype(name);
    const auto peaks = bench::measure_peaks(dtype, device, clock);
    measure::Json of_dtype;
    of_dtype.add("gflops", 1e-9 * peaks.flops).add("gbytes_per_s", 1e-9 * peaks.bytes);
    peaks_by_dtype.add(name, of_dtype);
    fmt::print("\n{}: product {:.0f} GFLOP/s, copy {:.1f} GB/s\n", name, 1e-9 * peaks.flops,
               1e-9 * peaks.bytes);
    bench::print_heading();
    for (const auto& text : flags.shapes) {
      const auto entries = bench::measure_group(
          {flags.variants, flags.rank, parse_shape(text), dtype, device, flags.seconds}, clock);
      for (const auto& entry : entries) {
        rows.push_back(bench::to_row(entries, entry, peaks));
        bench::print_row(rows.back());
        std::fflush(stdout);
      }
    }
  }
  if (!flags.json_path.empty()) {
    std::vector<measure::Json> lines;
    for (const auto& row : rows) lines.push_back(bench::to_json(row));
    measure::Json result;
    result.add("machine", machine).add("title", flags.title).add("peaks", peaks_by_dtype);
    std::ofstream(flags.json_path) << result.add("rows", lines).dump() << "\n";
    fmt::print("written: {}\n", flags.json_path);
  }
  TORCH_CHECK(bench::acceptable(rows), "expected correct results that are not slower than the ",
              "composed operators, got the rows above");
}

// For a caller that alternates with another library. Each line of standard input,
//   <rows> <in> <out> <dtype> <variant> <rank> <form> <repeats>
// runs one sample and answers "<forward us> <backward us> <bytes kept for backward>".
void serve(const Flags& flags) {
  const at::Device device = pick_device(flags.device);
  const measure::Clock clock(device, static_cast<int>(flags.threads));
  std::map<std::string, bench::Entry> entries;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    Shape shape;
    std::string dtype, variant, form;
    int64_t rank = 0, repeats = 0;
    words >> shape.n >> shape.k >> shape.m >> dtype >> variant >> rank >> form >> repeats;
    TORCH_CHECK_VALUE(words && repeats > 0, "--serve: expected eight fields, got '", line, "'");
    auto& entry = entries[line];
    if (!entry.layer) {
      entry.layer = std::make_shared<LayerCase>(
          bench::LayerSetup{variant, rank, shape, pick_dtype(dtype), device});
      entry.form = bench::parse_form(form);
      bench::inspect(entry, device);
      TORCH_CHECK(entry.error <= bench::tolerance(entry.layer->setup().dtype, entry.form), "'",
                  line, "': expected a correct result, got a relative error of ", entry.error);
    }
    bench::sample(entry, clock, repeats);
    fmt::print("{:.6g} {:.6g} {}\n", 1e6 * entry.forward.back(), 1e6 * entry.backward.back(),
               entry.kept);
    std::fflush(stdout);
  }
}

// Where the time of the library's own form goes, operator by operator.
void profile(const Flags& flags) {
  const at::Device device = pick_device(flags.device);
  constexpr int64_t kRepeats = 300;
  for (const auto& name : flags.dtypes) {
    for (const auto& text : flags.shapes) {
      for (const auto& variant : flags.variants) {
        LayerCase layer({variant, flags.rank, parse_shape(text), pick_dtype(name), device});
        for (const Form form : {Form::bare, Form::automatic}) {
          const auto steps = [&] {
            for (int64_t i = 0; i < kRepeats; ++i) layer.backward(layer.forward(form), form);
          };
          steps();
          fmt::print("\n{}, {}, {}, {}\n", text, name, variant, bench::to_string(form));
          measure::Profile(steps).print(/*most=*/12, kRepeats);
        }
      }
    }
  }
}

void run(Flags flags) {
  at::set_num_threads(static_cast<int>(flags.threads));
  if (flags.serve) return serve(flags);
  if (flags.quick) {
    flags.shapes = {"1024x320x320", "77x768x320"};
    flags.seconds = 1.5;
  }
  if (flags.variants.empty()) flags.variants = {"classic", "light", "fused"};
  if (flags.dtypes.empty()) flags.dtypes = {"fp32", "bf16"};
  if (flags.shapes.empty()) {
    flags.shapes = kStableDiffusion;
    // The larger two take minutes for each row on a CPU.
    const auto last = flags.device == "cpu" ? kWide.begin() + 2 : kWide.end();
    flags.shapes.insert(flags.shapes.end(), kWide.begin(), last);
  }
  for (const auto& shape : flags.shapes) parse_shape(shape);  // before anything takes time
  for (const auto& dtype : flags.dtypes) pick_dtype(dtype);
  flags.profile ? profile(flags) : measure_all(flags);
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  bench::Options options(
      "layer_benchmark",
      "Measures forward and backward of one adapted Linear against the bare frozen layer.",
      "layer_benchmark --variant light --rank 1 --shape 4096x320x320 --json layer.json");
  options.group("What");
  options.add("--variant", flags.variants, "Variant; repeatable (default: classic light fused)");
  options.add("--rank", flags.rank, "Rank");
  options.add("--shape", flags.shapes,
              "ROWSxINxOUT; repeatable (default: those of SD 1.5, and 4096 wide)");
  options.add("--dtype", flags.dtypes, "fp32, bf16 or fp16; repeatable (default: fp32 bf16)");
  options.group("How");
  options.add("--device", flags.device, "Where to compute", {"auto", "cpu", "cuda"});
  options.add("--threads", flags.threads, "Threads of LibTorch");
  options.add("--seconds", flags.seconds, "Time to spend on each shape and dtype");
  options.add("--json", flags.json_path, "Write the figures to this file");
  options.add("--title", flags.title, "A remark that goes into the file");
  options.add("--quick", flags.quick, "Two small shapes, a few seconds: what the tests run");
  options.add("--profile", flags.profile,
              "Show where the time of the layer's own form goes instead");
  options.add("--serve", flags.serve, "Take cases from standard input, for layer_vs_peft.py");
  return options.run(argc, argv, [&] { run(flags); });
}
