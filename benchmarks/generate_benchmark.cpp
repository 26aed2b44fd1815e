// SPDX-License-Identifier: Apache-2.0
// Time of one guided denoising step: the UNet on both halves of the guidance, then the scheduler,
// as text_to_image takes it. Merged adapters cost nothing, so there are none here.
#include "common/unet_case.h"
#include "pipeline/recorded_unet.h"
#include "schedulers/schedulers.h"
#include "support/cli/run.h"

namespace {

struct Flags : bench::UNetFlags {
  std::string scheduler_folder = "examples/stable_diffusion/assets/base/scheduler";
};

void run(const Flags& flags) {
  at::set_num_threads(static_cast<int>(flags.threads));
  torch::manual_seed(0);
  auto unet = bench::random_unet(flags);
  unet->eval();
  const at::NoGradGuard no_grad;
  const auto scheduler =
      sd::make_scheduler("ddim", sd::read_scheduler_config(flags.scheduler_folder));
  scheduler->set_timesteps(50);
  const auto options = flags.options();
  const at::Tensor latents =
      at::randn({flags.batch, unet->options.in_channels(), flags.size, flags.size},
                at::TensorOptions(options).dtype(at::kFloat));
  const at::Tensor context =
      at::randn({2 * flags.batch, 77, unet->options.cross_attention_dim().front()}, options);
  sd::RecordedUNet recorded(unet, flags.records());
  bench::run_steps(flags, [&] {
    const at::Tensor input = flags.in_format(at::cat({latents, latents}).to(options));
    const auto halves =
        recorded(input, scheduler->timesteps()[10], context, {}).to(at::kFloat).chunk(2);
    scheduler->step(halves[0] + 7.5 * (halves[1] - halves[0]), 10, latents, {});
  });
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  cli::App app("generate_benchmark", "Measures one guided denoising step of a UNet.",
               "generate_benchmark --unet_config benchmarks/sd15_unet.json");
  flags.add_to(app);
  app.add_option("--scheduler_folder", flags.scheduler_folder, "Folder of a scheduler_config.json");
  return cli::run(argc, argv, app, [&] { run(flags); });
}
