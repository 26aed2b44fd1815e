// SPDX-License-Identifier: Apache-2.0
// Forward and backward time of one adapted Linear: every variant, route and shape against the bare
// frozen layer in the same run. Prints a table, and writes JSON for benchmarks/report.py.
#include <torch/torch.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>

#include "support/cli/app.h"
#include "support/cli/run.h"
#include "common/layer_case.h"
#include "common/measure.h"
#include "common/profile.h"
#include "pipeline/device.h"

namespace {

using bench::Form;
using bench::LayerCase;
using bench::Shape;
using nlohmann::json;

struct Flags {
  std::string device = "cpu", json_path, title;
  std::vector<std::string> variants, dtypes, shapes;
  int64_t rank = 4, threads = 1;
  double seconds = 12;
  bool quick = false, serve = false, profile = false;
};

// SD 1.5 at 512x512: self-attention of the four levels, cross-attention keys and values.
const std::vector<std::string> kStableDiffusion{
    "4096x320x320", "1024x640x640", "256x1280x1280", "64x1280x1280",
    "77x768x320",   "77x768x640",   "77x768x1280"};
const std::vector<std::string> kWide{"256x4096x4096", "1024x4096x4096", "4096x4096x4096",
                                     "16384x4096x4096"};

Shape parse_shape(const std::string& text) {
  Shape shape;
  char rest = 0;
  const int found = std::sscanf(text.c_str(), "%ldx%ldx%ld%c", &shape.n, &shape.k, &shape.m, &rest);
  TORCH_CHECK_VALUE(found == 3 && shape.n > 0 && shape.k > 0 && shape.m > 0,
                    "--shape: expected ROWSxINxOUT such as 4096x320x320, got '", text, "'");
  return shape;
}

// What this machine can do, measured in this run.
struct Peaks {
  double flops = 0, bytes = 0;  // per second
};

Peaks measure_peaks(at::ScalarType dtype, at::Device device, const measure::Clock& clock) {
  const int64_t n = device.is_cuda() ? 8192 : 1536;
  const auto options = at::TensorOptions(device).dtype(dtype);
  const auto a = at::randn({n, n}, options), b = at::randn({n, n}, options);
  const auto from = at::randn({32 << 20}, options), to = at::empty_like(from);
  auto result = at::empty_like(a);
  double product = 1e9, copy = 1e9;
  for (int i = 0; i < 5; ++i) {
    product = std::min(product, clock.time([&] { at::mm_out(result, a, b); }));
    copy = std::min(copy, clock.time([&] { to.copy_(from); }));
  }
  const auto cube = static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
  return {2 * cube / product, 2.0 * static_cast<double>(from.nbytes()) / copy};
}

// The least time of a step: two products at the peaks, plus the adapter's smallest work, one more
// read of x and the operations of the cheaper route.
double floor_seconds(const Shape& s, int64_t rank, double size, const Peaks& peaks, Form form) {
  const auto n = static_cast<double>(s.n), k = static_cast<double>(s.k),
             m = static_cast<double>(s.m), r = static_cast<double>(rank);
  const double product =
      std::max(2 * n * k * m / peaks.flops, (n * k + n * m + k * m) * size / peaks.bytes);
  if (form == Form::bare) return 2 * product;
  const double extra =
      std::min(6 * n * r * (k + m), 4 * n * r * (k + m) + 4 * k * m * r) / peaks.flops;
  return 2 * product + std::max(extra, n * k * size / peaks.bytes);
}

struct Entry {
  std::shared_ptr<LayerCase> layer;
  Form form = Form::bare;
  int64_t kernels = 0, kept = 0, peak = 0;
  double error = 0;
  std::vector<double> forward = {}, backward = {}, total = {}, ratio = {};
};

double tolerance(at::ScalarType dtype) { return at::isReducedFloatingType(dtype) ? 3e-2 : 1e-5; }

// One sample: the mean of `repeats` steps.
void sample(Entry& entry, const measure::Clock& clock, int64_t repeats) {
  double forward = 0, backward = 0;
  for (int64_t i = 0; i < repeats; ++i) {
    at::Tensor y;
    forward += clock.time([&] { y = entry.layer->forward(entry.form); });
    backward += clock.time([&] { entry.layer->backward(y, entry.form); });
  }
  entry.forward.push_back(forward / static_cast<double>(repeats));
  entry.backward.push_back(backward / static_cast<double>(repeats));
  entry.total.push_back(entry.forward.back() + entry.backward.back());
}

// Everything that is not a time.
void inspect(Entry& entry, at::Device device) {
  entry.error = entry.layer->error(entry.form);
  entry.kernels = measure::count_kernels(
      [&] { entry.layer->backward(entry.layer->forward(entry.form), entry.form); });
  const measure::Memory memory(device);
  const at::Tensor y = entry.layer->forward(entry.form);
  entry.kept = memory.live() - static_cast<int64_t>(y.nbytes());
  const auto gradients = entry.layer->backward(y, entry.form);
  entry.peak = memory.peak();
}

// The bare layer and every form of every variant, in random order in each round.
std::vector<Entry> measure_group(const Flags& flags, const Shape& shape, at::ScalarType dtype,
                                 at::Device device, const measure::Clock& clock) {
  std::vector<Entry> entries;
  for (const auto& variant : flags.variants) {
    auto layer = std::make_shared<LayerCase>(
        bench::LayerSetup{variant, flags.rank, shape, dtype, device});
    if (entries.empty()) entries.push_back({layer, Form::bare});
    for (const Form form : {Form::composed, Form::bypass, Form::merged, Form::automatic}) {
      entries.push_back({layer, form});
    }
    if (layer->can_pack()) entries.push_back({layer, Form::packed});
  }
  for (auto& entry : entries) inspect(entry, device);
  for (auto& entry : entries) sample(entry, clock, 1);
  double sum = 0;
  for (auto& entry : entries) {
    sum += entry.total[0];
    entry.forward.clear(), entry.backward.clear(), entry.total.clear();
  }
  // Samples of a few milliseconds; as many rounds as the time allows.
  const double step = sum / static_cast<double>(entries.size());
  const auto repeats = std::max<int64_t>(1, static_cast<int64_t>(3e-3 / step));
  const auto rounds = static_cast<int64_t>(flags.seconds / (sum * static_cast<double>(repeats)));
  std::vector<std::size_t> order(entries.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::mt19937 random(7);
  for (int64_t round = 0; round < std::clamp<int64_t>(rounds, 7, 101); ++round) {
    std::shuffle(order.begin(), order.end(), random);
    for (const std::size_t i : order) sample(entries[i], clock, repeats);
    for (auto& entry : entries) {
      entry.ratio.push_back(entry.total.back() / entries[0].total.back());
    }
  }
  return entries;
}

const Entry& find(const std::vector<Entry>& entries, const Entry& like, Form form) {
  for (const auto& entry : entries) {
    if (entry.form == form && (form == Form::bare || entry.layer == like.layer)) return entry;
  }
  TORCH_INTERNAL_ASSERT(false);
}

json to_row(const std::vector<Entry>& entries, const Entry& entry, const Peaks& peaks) {
  const auto& setup = entry.layer->setup();
  const auto& s = setup.shape;
  const bool bare = entry.form == Form::bare;
  json row{{"variant", bare ? "bare" : setup.variant},
           {"route", bench::to_string(entry.form)},
           {"n", s.n},
           {"k", s.k},
           {"m", s.m},
           {"rank", bare ? 0 : entry.layer->inner_rank()},
           {"dtype", setup.dtype == at::kFloat ? "fp32" : setup.dtype == at::kHalf ? "fp16" : "bf16"},
           {"error", entry.error}};
  if (!(entry.error <= tolerance(setup.dtype))) return row;  // a wrong result has no time
  const auto total = measure::statistics(entry.total);
  const auto ratio = measure::statistics(entry.ratio);
  const auto composed = measure::statistics(find(entries, entry, bare ? Form::bare : Form::composed).ratio);
  const double floor = floor_seconds(s, bare ? 0 : entry.layer->inner_rank(),
                                     static_cast<double>(c10::elementSize(setup.dtype)), peaks,
                                     entry.form);
  const double useful = 4.0 * static_cast<double>(s.n) * static_cast<double>(s.k) * static_cast<double>(s.m);
  row.update({{"forward_us", 1e6 * measure::statistics(entry.forward).median},
              {"backward_us", 1e6 * measure::statistics(entry.backward).median},
              {"total_us", 1e6 * total.median},
              {"total_iqr_us", 1e6 * total.quartile_range},
              {"samples", total.samples},
              {"ratio_to_bare", ratio.median},
              {"ratio_iqr", ratio.quartile_range},
              {"ratio_to_composed", ratio.median / composed.median},
              {"gflops", 1e-9 * useful / total.median},
              {"share_of_gemm_peak", useful / total.median / peaks.flops},
              {"floor_us", 1e6 * floor},
              {"gap_to_floor", total.median / floor},
              {"kernels", entry.kernels},
              {"kept_for_backward_bytes", entry.kept},
              {"peak_bytes_above_bare", entry.peak - entries[0].peak}});
  return row;
}

void print_row(const json& row) {
  std::ostringstream shape;
  shape << row["n"] << "x" << row["k"] << "x" << row["m"];
  std::printf("%-14s %-5s %-9s %4ld  ", shape.str().c_str(),
              row["variant"].get<std::string>().c_str(), row["route"].get<std::string>().c_str(),
              row["rank"].get<long>());
  if (!row.contains("total_us")) {
    std::printf("wrong: relative error %.1e, no time\n", row["error"].get<double>());
    return;
  }
  const auto number = [&](const char* name) { return row[name].get<double>(); };
  std::printf("%9.0f %9.0f %9.0f %7.0f | %6.3f %6.3f %6.3f | %7.0f %4.0f%% %6.2f | %3.0f %8.1f %8.1f  %.1e\n",
              number("forward_us"), number("backward_us"), number("total_us"),
              number("total_iqr_us"), number("ratio_to_bare"), number("ratio_iqr"),
              number("ratio_to_composed"), number("gflops"), 100 * number("share_of_gemm_peak"),
              number("gap_to_floor"), number("kernels"), number("kept_for_backward_bytes") / 1024,
              number("peak_bytes_above_bare") / 1024, number("error"));
}

// Whether the library's own form is correct and not slower than the composed operators: ratios of
// one run, so that a busy machine disturbs both.
bool acceptable(const json& rows) {
  bool good = true;
  for (const auto& row : rows) {
    if (!row.contains("total_us")) good = false;
    if (row["route"] != "auto" || !row.contains("total_us")) continue;
    if (row["ratio_to_composed"].get<double>() > 1.05) {
      std::printf("too slow: %s at %s\n", row["variant"].dump().c_str(), row.dump().c_str());
      good = false;
    }
  }
  return good;
}

void measure_all(const Flags& flags) {
  const at::Device device = sd::pick_device(flags.device);
  const measure::Clock clock(device, static_cast<int>(flags.threads));
  json result{{"machine", measure::machine(device, static_cast<int>(flags.threads))},
              {"title", flags.title}, {"peaks", json::object()}, {"rows", json::array()}};
  std::cout << result["machine"].dump() << "\n";
  for (const auto& name : flags.dtypes) {
    const at::ScalarType dtype = sd::pick_dtype(name);
    const Peaks peaks = measure_peaks(dtype, device, clock);
    result["peaks"][name] = {{"gflops", 1e-9 * peaks.flops}, {"gbytes_per_s", 1e-9 * peaks.bytes}};
    std::printf("\n%s: product %.0f GFLOP/s, copy %.1f GB/s\n", name.c_str(), 1e-9 * peaks.flops,
                1e-9 * peaks.bytes);
    std::printf("%-14s %-5s %-9s %4s  %9s %9s %9s %7s | %6s %6s %6s | %7s %5s %6s | %3s %8s %8s  %s\n",
                "rows x in x out", "kind", "route", "rank", "fwd us", "bwd us", "total us", "iqr",
                "/bare", "iqr", "/comp.", "GFLOP/s", "peak", "gap", "ops", "kept KB", "extra KB",
                "error");
    for (const auto& text : flags.shapes) {
      const auto entries = measure_group(flags, parse_shape(text), dtype, device, clock);
      for (const auto& entry : entries) {
        result["rows"].push_back(to_row(entries, entry, peaks));
        print_row(result["rows"].back());
        std::fflush(stdout);
      }
    }
  }
  if (!flags.json_path.empty()) {
    std::ofstream(flags.json_path) << result.dump(1) << "\n";
    std::cout << "written: " << flags.json_path << "\n";
  }
  TORCH_CHECK(acceptable(result["rows"]), "layer_benchmark: expected correct results that are not ",
              "slower than the composed operators, got the rows above");
}

// For a caller that alternates with another library. Each line of standard input,
//   <rows> <in> <out> <dtype> <variant> <rank> <form> <repeats>
// runs one sample and answers "<forward us> <backward us> <bytes kept for backward>".
void serve(const Flags& flags) {
  const at::Device device = sd::pick_device(flags.device);
  const measure::Clock clock(device, static_cast<int>(flags.threads));
  std::map<std::string, Entry> entries;
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
          bench::LayerSetup{variant, rank, shape, sd::pick_dtype(dtype), device});
      entry.form = bench::parse_form(form);
      inspect(entry, device);
      TORCH_CHECK(entry.error <= tolerance(entry.layer->setup().dtype), "'", line,
                  "': expected a correct result, got a relative error of ", entry.error);
    }
    sample(entry, clock, repeats);
    std::cout << 1e6 * entry.forward.back() << " " << 1e6 * entry.backward.back() << " "
              << entry.kept << std::endl;
  }
}

// Where the time of the library's own form goes, operator by operator.
void profile(const Flags& flags) {
  const at::Device device = sd::pick_device(flags.device);
  constexpr int64_t kRepeats = 300;
  for (const auto& name : flags.dtypes) {
    for (const auto& text : flags.shapes) {
      for (const auto& variant : flags.variants) {
        LayerCase layer({variant, flags.rank, parse_shape(text), sd::pick_dtype(name), device});
        for (const Form form : {Form::bare, Form::automatic}) {
          const auto steps = [&] {
            for (int64_t i = 0; i < kRepeats; ++i) layer.backward(layer.forward(form), form);
          };
          steps();
          std::printf("\n%s, %s, %s, %s\n", text.c_str(), name.c_str(), variant.c_str(),
                      bench::to_string(form).c_str());
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
  flags.profile ? profile(flags) : measure_all(flags);
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  cli::App app("layer_benchmark",
               "Measures forward and backward of one adapted Linear against the bare frozen layer.",
               "layer_benchmark --variant light --rank 1 --shape 4096x320x320 --json layer.json");
  app.group("What");
  app.add_option("--variant", flags.variants, "Variant; repeatable (default: classic light fused)");
  app.add_option("--rank", flags.rank, "Rank")->check(cli::at_least(1));
  app.add_option("--shape", flags.shapes,
                 "ROWSxINxOUT; repeatable (default: those of SD 1.5, and 4096 wide)");
  app.add_option("--dtype", flags.dtypes, "fp32, bf16 or fp16; repeatable (default: fp32 bf16)");
  app.group("How");
  app.add_option("--device", flags.device, "Where to compute")->check(cli::one_of(sd::device_names()));
  app.add_option("--threads", flags.threads, "Threads of LibTorch")->check(cli::at_least(1));
  app.add_option("--seconds", flags.seconds, "Time to spend on each shape and dtype");
  app.add_option("--json", flags.json_path, "Write the figures to this file");
  app.add_option("--title", flags.title, "A remark that goes into the file");
  app.add_flag("--quick", flags.quick, "Two small shapes, a few seconds: what the tests run");
  app.add_flag("--profile", flags.profile, "Show where the time of the layer's own form goes instead");
  app.add_flag("--serve", flags.serve, "Take cases from standard input, for layer_vs_peft.py");
  return cli::run(argc, argv, app, [&] { run(flags); });
}
