// SPDX-License-Identifier: Apache-2.0
#include "training/common_flags.h"

#include <ATen/Context.h>

#include <iostream>
#include <utility>

#include "pipeline/device.h"

namespace training {

c10::ScalarType CommonFlags::weight_dtype() const {
  return sd::pick_dtype(mixed_precision == "no" ? "fp32" : mixed_precision);
}

sd::StableDiffusionOptions CommonFlags::pipeline_options(c10::ScalarType dtype) const {
  if (allow_tf32) at::globalContext().setAllowTF32CuBLAS(true);
  return sd::StableDiffusionOptions()
      .device(sd::pick_device(device))
      .dtype(dtype)
      .model_config(model_config)
      .allow_trailing_bytes(allow_trailing_bytes)
      .pack_weights(packing(optimization.gradient_checkpointing ? sd::PackWeights::off
                                                                : sd::PackWeights::if_small));
}

TrainerOptions CommonFlags::trainer_options() const {
  TrainerOptions options;
  options.gradient_accumulation_steps = optimization.gradient_accumulation_steps;
  options.seed = seed;
  options.max_grad_norm = optimization.max_grad_norm;
  options.scale_loss = mixed_precision == "fp16";
  options.gradient_checkpointing = optimization.gradient_checkpointing;
  options.batch_invariant = optimization.batch_invariant;
  options.optimizer = optimization.optimizer_options();
  return options;
}

void add_running_flags(cli::App& app, CommonFlags& f) {
  app.group("Running");
  app.add_option("--seed", f.seed, "Seed of everything random; equal runs give equal bytes");
  app.add_option("--mixed_precision", f.mixed_precision,
                 "Precision of the frozen weights; what trains stays fp32")
      ->check(cli::one_of({"no", "fp16", "bf16"}));
  app.add_option("--device", f.device, "Where to compute")->check(cli::one_of(sd::device_names()));
  sd::add_pack_weights_flag(app, f, ", and not with --gradient_checkpointing");
  app.add_flag("--allow_tf32", f.allow_tf32,
               "On NVIDIA GPUs since Ampere, multiply fp32 matrices in TF32: faster, less exact");
  app.add_flag("--enable_xformers_memory_efficient_attention",
               f.enable_xformers_memory_efficient_attention,
               "diffusers' flag; attention saves memory anyway");
  app.add_option("--dataloader_num_workers", f.dataloader_num_workers,
                 "diffusers' flag; pictures are read by the process that trains")
      ->check(cli::at_least(0));
  for (const char* flag : {"--push_to_hub", "--hub_token", "--hub_model_id"}) {
    app.absent(flag, "nothing is sent anywhere; upload the output folder yourself");
  }
  app.absent("--revision", "the model is a folder or file on this machine");
  app.absent("--tokenizer_name", "the tokenizer is the model's own");
  app.absent("--local_rank", "torchrun and mpirun tell it through the environment");
}

std::vector<PictureFile> read_with_notices(const std::string& folder) {
  auto data = read_data_folder(folder);
  for (const auto& notice : data.notices) std::cout << "notice: " << notice << "\n";
  return std::move(data.pictures);
}

}  // namespace training
