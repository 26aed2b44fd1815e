// SPDX-License-Identifier: Apache-2.0
// A UNet of given sizes with random weights, and what its benchmarks share.
#pragma once

#include <torch/torch.h>

#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include "common/measure.h"
#include "common/profile.h"
#include "models/packing.h"
#include "models/unet.h"
#include "models/weights.h"
#include "pipeline/device.h"
#include "support/cli/app.h"
#include "support/files/json_file.h"

namespace bench {

struct UNetFlags {
  std::string config, device = "cpu", dtype = "fp32";
  int64_t size = 64, batch = 1, threads = 1, steps = 5;
  bool serve = false, profile = false;
  std::string pack_weights = "on";

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
    app.add_option("--steps", steps, "Steps to measure, after two that are not")
        ->check(cli::at_least(1));
    app.add_option("--pack_weights", pack_weights, "As of the programs")
        ->check(cli::one_of({"on", "off"}));
    app.add_flag("--profile", profile, "Show where the time of one step goes instead");
    app.add_flag("--serve", serve,
                 "Take one step for each line of standard input, for program_vs_diffusers.py");
  }

  at::TensorOptions options() const {
    return at::TensorOptions(sd::pick_device(device)).dtype(sd::pick_dtype(dtype));
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
  unet->to(sd::pick_device(flags.device));
  if (flags.pack_weights == "on") sd::pack_weights(unet);
  return unet;
}

/// Prints the time of steps, or serves them to a caller that alternates with another program: for
/// each line of standard input one step, answered by its seconds.
inline void run_steps(const UNetFlags& flags, const std::function<void()>& step) {
  const measure::Clock clock(sd::pick_device(flags.device), static_cast<int>(flags.threads));
  if (flags.serve) {
    std::string line;
    while (std::getline(std::cin, line)) std::cout << clock.time(step) << std::endl;
    return;
  }
  if (flags.profile) {
    for (int i = 0; i < 2; ++i) step();
    return measure::Profile(step).print(/*most=*/16);
  }
  std::vector<double> times;
  for (int64_t i = -2; i < flags.steps; ++i) {
    const double seconds = clock.time(step);
    if (i >= 0) times.push_back(seconds);
  }
  const auto result = measure::statistics(times);
  std::cout
      << measure::machine(sd::pick_device(flags.device), static_cast<int>(flags.threads)).dump()
      << "\nmedian of " << result.samples << " steps: " << result.median << " s ("
      << 1 / result.median << " it/s), distance of the quartiles " << result.quartile_range
      << " s\n";
}

}  // namespace bench
