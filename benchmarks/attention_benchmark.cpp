// SPDX-License-Identifier: Apache-2.0
// Attention of the sizes of Stable Diffusion on a CPU, forward and backward: this application's own
// kernels and LibTorch's, in turns, and the share of the processor's peak that each reaches.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "common/measure.h"
#include "common/options.h"
#include "kernels/fused_attention.h"
#include "kernels/simd.h"

namespace {

struct Flags {
  std::vector<std::string> shapes, dtypes;
  std::string json_path;
  int64_t threads = 1, rounds = 7;
  bool quick = false;
};

struct Shape {
  int64_t queries = 0, keys = 0, heads = 0, width = 0;
};

// SD 1.5 at 512x512: self-attention of three levels, and cross-attention of the first two.
const std::vector<std::string> kShapes{"4096x4096x8x40", "1024x1024x8x80", "256x256x8x160",
                                       "4096x77x8x40", "1024x77x8x80"};

Shape parse_shape(const std::string& text) {
  Shape shape;
  char rest = 0;
  const int found = std::sscanf(text.c_str(), "%ldx%ldx%ldx%ld%c", &shape.queries, &shape.keys,
                                &shape.heads, &shape.width, &rest);
  TORCH_CHECK_VALUE(
      found == 4 && shape.queries > 0 && shape.keys > 0 && shape.heads > 0 && shape.width > 0,
      "'--shape': expected QUERIESxKEYSxHEADSxWIDTH such as 4096x77x8x40, got '", text, "'");
  return shape;
}

at::ScalarType parse_dtype(const std::string& name) {
  TORCH_CHECK_VALUE(name == "fp32" || name == "bf16", "'--dtype': expected fp32 or bf16, got '",
                    name, "'");
  return name == "fp32" ? at::kFloat : at::kBFloat16;
}

#if SD_SIMD
SD_SIMD_BEGIN
// Operations that no memory holds up, 16 sums at a time.
template <typename T>
SD_SIMD_TARGET __attribute__((noinline)) void keep_busy(int64_t steps, float* out) {
  constexpr int kSums = 16;
  __m512 sums[kSums] = {};
  for (auto& sum : sums) __asm__ volatile("" : "+v"(sum));  // else equal sums would be one
  __m512i factor = sd::simd::broadcast_word(out);
  for (int64_t i = 0; i < steps; ++i) {
    SD_SIMD_UNROLL
    for (int j = 0; j < kSums; ++j) {
      sums[j] = sd::simd::multiply_add<T>(sums[j], factor, factor);
    }
    __asm__ volatile("" : "+v"(factor));  // else one step would do for all
  }
  for (int j = 1; j < kSums; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  _mm512_storeu_ps(out, sums[0]);
}
SD_SIMD_END

template <typename T>
double busiest(const measure::Clock& clock) {
  constexpr int64_t kSteps = 2000000;
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    float out[16] = {};
    best = std::min(best, clock.time([&] { keep_busy<T>(kSteps, out); }));
  }
  return 2.0 * 16 * 16 * sd::simd::kPair<T> * kSteps / best;
}
#endif

// Operations that one thread can do in a second, or 0 where our kernels do not run.
double peak_of(at::ScalarType dtype, const measure::Clock& clock) {
#if SD_SIMD
  if (dtype == at::kFloat && sd::simd::has_avx512()) return busiest<float>(clock);
  if (dtype == at::kBFloat16 && sd::simd::has_avx512_bf16()) {
    return busiest<sd::simd::Bf16>(clock);
  }
#else
  (void)dtype, (void)clock;
#endif
  return 0;
}

at::Tensor libtorch_attention(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, int64_t heads) {
  const auto split = [&](const at::Tensor& x) {
    return x.unflatten(2, {heads, x.size(2) / heads}).transpose(1, 2);
  };
  return at::scaled_dot_product_attention(split(query), split(key), split(value))
      .transpose(1, 2)
      .flatten(2);
}

class Case {
 public:
  Case(const Shape& shape, at::ScalarType dtype) : shape_(shape) {
    const auto tokens = [&](int64_t count) {
      return at::randn({1, count, shape.heads * shape.width}, dtype);
    };
    inputs_ = {tokens(shape.queries), tokens(shape.keys), tokens(shape.keys)};
    for (auto& input : inputs_) input.requires_grad_();
    gradient_ = tokens(shape.queries);
  }

  struct Seconds {
    double forward = 0, backward = 0;
  };
  Seconds time(bool own, const measure::Clock& clock) {
    Seconds result;
    result.forward = clock.time([&] { out_ = compute(own); });
    result.backward =
        clock.time([&] { gradients_ = torch::autograd::grad({out_}, inputs_, {gradient_}); });
    return result;
  }

  // The largest relative distance of results and gradients between the two.
  double difference(const measure::Clock& clock) {
    time(/*own=*/true, clock);
    auto ours = gradients_;
    ours.push_back(out_);
    time(/*own=*/false, clock);
    auto theirs = gradients_;
    theirs.push_back(out_);
    double largest = 0;
    for (std::size_t i = 0; i < ours.size(); ++i) {
      const auto wide = theirs[i].to(at::kDouble);
      const double error = ((ours[i].to(at::kDouble) - wide).norm() / wide.norm()).item<double>();
      if (!(error <= largest)) largest = error;  // a NaN stays
    }
    return largest;
  }

 private:
  at::Tensor compute(bool own) const {
    const auto& q = inputs_[0];
    return own ? sd::fused_attention(q, inputs_[1], inputs_[2], shape_.heads)
               : libtorch_attention(q, inputs_[1], inputs_[2], shape_.heads);
  }

  Shape shape_;
  std::vector<at::Tensor> inputs_, gradients_;
  at::Tensor gradient_, out_;
};

measure::Json measure_shape(const std::string& text, const std::string& dtype_name, double peak,
                            const Flags& flags, const measure::Clock& clock) {
  const Shape shape = parse_shape(text);
  const auto dtype = parse_dtype(dtype_name);
  Case work(shape, dtype);
  const double difference = work.difference(clock), allowed = dtype == at::kFloat ? 1e-4 : 3e-2;
  TORCH_CHECK(difference <= allowed, "'", text, "', ", dtype_name,
              ": expected LibTorch's result within ", allowed, ", got a difference of ",
              difference);
  std::vector<double> forward[2], backward[2];
  for (int64_t i = 0; i < (flags.quick ? 2 : flags.rounds); ++i) {
    for (const bool own : {true, false}) {
      const auto seconds = work.time(own, clock);
      forward[own].push_back(seconds.forward);
      backward[own].push_back(seconds.backward);
    }
  }
  // Two products of queries x keys x width in each head, and five for the gradients.
  const double product = 2.0 * static_cast<double>(shape.queries * shape.keys) *
                         static_cast<double>(shape.heads * shape.width);
  measure::Json row;
  row.add("shape", text).add("dtype", dtype_name).add("difference", difference);
  fmt::print("{:<16} {}", text, dtype_name);
  const auto report = [&](const char* name, std::vector<double>(&seconds)[2], double products) {
    const double own = measure::quantile(seconds[1], 0.5);
    const double theirs = measure::quantile(seconds[0], 0.5);
    const double whole = peak > 0 ? products * product / peak : 0;
    fmt::print("   {} {:>8.2f} ms {:>3.0f}%, LibTorch {:>8.2f} ms {:>3.0f}%, {:.2f} times as fast",
               name, 1e3 * own, 1e2 * whole / own, 1e3 * theirs, 1e2 * whole / theirs,
               theirs / own);
    const std::string start = name;
    row.add(start + "_ms", 1e3 * own).add(start + "_libtorch_ms", 1e3 * theirs);
    row.add(start + "_share_of_peak", whole / own).add(start + "_times_as_fast", theirs / own);
  };
  report("forward", forward, 2);
  report("backward", backward, 5);
  fmt::print("\n");
  std::fflush(stdout);
  return row;
}

void run(Flags flags) {
  at::set_num_threads(static_cast<int>(flags.threads));
  if (flags.quick) flags.shapes = {"256x256x2x40", "100x77x2x80"};
  if (flags.shapes.empty()) flags.shapes = kShapes;
  if (flags.dtypes.empty()) flags.dtypes = {"fp32", "bf16"};
  for (const auto& shape : flags.shapes) parse_shape(shape);  // before anything takes time
  for (const auto& dtype : flags.dtypes) parse_dtype(dtype);
  const measure::Clock clock(at::kCPU, static_cast<int>(flags.threads));
  const auto machine = measure::machine(at::kCPU, static_cast<int>(flags.threads));
  fmt::print("{}\n", machine.dump());
  std::vector<measure::Json> rows;
  for (const auto& dtype : flags.dtypes) {
    const double one = peak_of(parse_dtype(dtype), clock);
    const double peak = one * static_cast<double>(flags.threads);
    fmt::print("{}: peak {:.0f} GFLOP/s\n", dtype, 1e-9 * peak);
    for (const auto& shape : flags.shapes) {
      rows.push_back(measure_shape(shape, dtype, peak, flags, clock).add("peak", peak));
    }
  }
  if (flags.json_path.empty()) return;
  measure::Json result;
  std::ofstream(flags.json_path) << result.add("machine", machine).add("rows", rows).dump() << "\n";
  fmt::print("written: {}\n", flags.json_path);
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  bench::Options options(
      "attention_benchmark",
      "Measures attention on a CPU, forward and backward: our kernels against LibTorch's.",
      "attention_benchmark --shape 4096x4096x8x40 --dtype bf16 --json attention.json");
  options.group("What");
  options.add("--shape", flags.shapes,
              "QUERIESxKEYSxHEADSxWIDTH; repeatable (default: those of SD 1.5)");
  options.add("--dtype", flags.dtypes, "fp32 or bf16; repeatable (default: both)");
  options.group("How");
  options.add("--threads", flags.threads, "Threads of LibTorch");
  options.add("--rounds", flags.rounds, "How often each is measured");
  options.add("--json", flags.json_path, "Write the figures to this file");
  options.add("--quick", flags.quick, "Two small shapes, two rounds: what the tests run");
  return options.run(argc, argv, [&] { run(flags); });
}
