// SPDX-License-Identifier: Apache-2.0
// A UNet of given sizes with random weights, and what its benchmarks share.
#pragma once

#include <torch/torch.h>

#include <functional>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "common/measure.h"
#include "common/profile.h"
#include "models/packing.h"
#include "models/unet.h"
#include "models/weights.h"
#include "pipeline/device.h"
#include "support/cli/app.h"
#include "support/cuda/graph.h"
#include "support/files/json_file.h"

namespace bench {

struct UNetFlags {
  std::string config, device = "cpu", dtype = "fp32";
  int64_t size = 64, batch = 1, threads = 1, steps = 5;
  bool serve = false, profile = false, channels_last = false, cudnn_benchmark = false;
  std::string pack_weights = "on", base_precision = "same", attention = "usual";
  std::optional<bool> cuda_graph;

  void add_to(cli::App& app) {
    app.group("Model");
    app.add_option("--unet_config", config, "config.json of a UNet in diffusers' form")->required();
    app.add_option("--size", size, "Height and width of the latents")->check(cli::at_least(1));
    app.add_option("--batch", batch, "Pictures at once")->check(cli::at_least(1));
    app.group("How");
    app.add_option("--device", device, "Where to compute")->check(cli::one_of(sd::device_names()));
    app.add_option("--dtype", dtype, "Precision of the weights")
        ->check(cli::one_of(sd::dtype_names()));
    app.add_option("--threads", threads, "Threads of LibTorch")->check(cli::at_least(1));
    app.add_option("--steps", steps, "Steps to measure, after those that warm up")
        ->check(cli::at_least(1));
    app.add_option("--pack_weights", pack_weights, "As of the programs")
        ->check(cli::one_of({"on", "off"}));
    app.add_option("--base_precision", base_precision,
                   "As of the programs; int8 and nf4 pack nothing")
        ->check(cli::one_of({"same", "int8", "nf4"}));
    app.add_choice("--cuda_graph", cuda_graph,
                   {{"auto", std::nullopt}, {"on", true}, {"off", false}}, "As of the programs");
    app.add_option("--attention", attention, "The only kernels for attention that may be used")
        ->check(cli::one_of({"usual", "flash", "efficient", "math", "cudnn"}));
    app.add_flag("--channels_last", channels_last, "Convolve with channels as the last dimension");
    app.add_flag("--cudnn_benchmark", cudnn_benchmark,
                 "Let cuDNN time its algorithms for each size first");
    app.add_flag("--profile", profile, "Show where the time of one step goes instead");
    app.add_flag("--serve", serve,
                 "Take one step for each line of standard input, for program_vs_diffusers.py");
  }

  at::TensorOptions options() const {
    return at::TensorOptions(sd::pick_device(device)).dtype(sd::pick_dtype(dtype));
  }
  // Steps that are not measured: a recorded one is recorded after two.
  int64_t warm_ups() const { return records() ? 4 : 2; }
  bool records() const { return cuda::use_graph(cuda_graph, sd::pick_device(device)); }
  at::Tensor in_format(const at::Tensor& map) const {
    return channels_last ? map.contiguous(at::MemoryFormat::ChannelsLast) : map;
  }

  /// LibTorch's switches; after the device, which sets some.
  void set_switches() const {
    auto& context = at::globalContext();
    context.setBenchmarkCuDNN(cudnn_benchmark);
    if (attention == "usual") return;
    context.setSDPUseFlash(attention == "flash");
    context.setSDPUseMemEfficient(attention == "efficient");
    context.setSDPUseMath(attention == "math");
    context.setSDPUseCuDNN(attention == "cudnn");
  }
};

/// Frozen, with small random weights: only its time matters.
inline sd::UNet2DConditionModel random_unet(const UNetFlags& flags) {
  const auto options =
      sd::UNet2DConditionModelOptions::from_json(sd::read_json_file(flags.config), flags.config);
  const sd::UninitializedModules uninitialized(sd::pick_dtype(flags.dtype));
  sd::UNet2DConditionModel unet(options);
  const at::Tensor numbers = at::randn({1 << 20}, at::TensorOptions().dtype(at::kFloat)) * 0.02;
  for (auto& parameter : unet->parameters()) {
    const int64_t copies = (parameter.numel() + numbers.numel() - 1) / numbers.numel();
    parameter.detach().copy_(
        numbers.repeat({copies}).narrow(0, 0, parameter.numel()).view(parameter.sizes()));
    parameter.set_requires_grad(false);
  }
  const auto device = sd::pick_device(flags.device);
  unet->to(device);
  flags.set_switches();
  if (device.is_cuda()) unet->group_projections();
  for (auto& parameter : unet->parameters()) {
    if (parameter.dim() == 4) parameter.set_data(flags.in_format(parameter.detach()));
  }
  if (flags.base_precision != "same") {
    sd::quantise(*unet,
                 flags.base_precision == "int8" ? sd::BasePrecision::int8 : sd::BasePrecision::nf4);
  } else if (flags.pack_weights == "on") {
    sd::pack_weights(unet);
  }
  return unet;
}

/// Prints the time of steps, or serves them to a caller that alternates with another program: for
/// each line of standard input one step, answered by its seconds.
inline void run_steps(const UNetFlags& flags, const std::function<void()>& step) {
  const measure::Clock clock(sd::pick_device(flags.device), static_cast<int>(flags.threads));
  if (flags.serve) {
    std::string line;
    while (std::getline(std::cin, line)) {
      fmt::print("{:.6g}\n", clock.time(step));
      std::fflush(stdout);
    }
    return;
  }
  if (flags.profile) {
    for (int64_t i = 0; i < flags.warm_ups(); ++i) step();
    return measure::Profile(step).print(/*most=*/16);
  }
  std::vector<double> times;
  for (int64_t i = -flags.warm_ups(); i < flags.steps; ++i) {
    const double seconds = clock.time(step);
    if (i >= 0) times.push_back(seconds);
  }
  const auto result = measure::statistics(times);
  fmt::print(
      "{}\nmedian of {} steps: {:.6g} s ({:.6g} it/s), distance of the quartiles {:.6g} s\n",
      measure::machine(sd::pick_device(flags.device), static_cast<int>(flags.threads)).dump(),
      result.samples, result.median, 1 / result.median, result.quartile_range);
}

}  // namespace bench
