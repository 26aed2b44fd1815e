// SPDX-License-Identifier: Apache-2.0
// Time of one training step of a UNet with adapters: forward, loss, backward, clipping, AdamW, as
// train_dreambooth_lora takes it. The text states and latents are given, as they are there.
#include <lightlora/lightlora.h>

#include "common/unet_case.h"
#include "support/cli/run.h"

namespace {

struct Flags : bench::UNetFlags {
  std::string variant = "classic", route = "auto";
  int64_t rank = 4;
};

void run(const Flags& flags) {
  at::set_num_threads(static_cast<int>(flags.threads));
  torch::manual_seed(0);
  auto unet = bench::random_unet(flags);
  unet->train();
  const auto lora = lightlora::patch(*unet, flags.variant, lightlora::LoRAOptions(flags.rank),
                                     {"to_q", "to_k", "to_v", "to_out.0"});
  lora->set_route(lightlora::parse_route(flags.route));
  lightlora::ParameterBank bank(lora->parameters());
  const at::Tensor first = at::zeros_like(bank.values()), second = at::zeros_like(first);
  const at::Tensor steps = at::zeros({}, first.options());
  const auto active = lora->activate();

  const auto options = flags.options();
  const auto channels = unet->options.in_channels();
  const at::Tensor noisy =
      flags.in_format(at::randn({flags.batch, channels, flags.size, flags.size}, options));
  const at::Tensor target = at::randn_like(noisy, at::TensorOptions().dtype(at::kFloat));
  const at::Tensor states =
      at::randn({flags.batch, 77, unet->options.cross_attention_dim().front()}, options);
  const at::Tensor timesteps =
      at::full({flags.batch}, 500, at::TensorOptions(options).dtype(at::kLong));
  cuda::Graph passes(
      [&] {
        bank.zero_gradients();
        const at::Tensor predicted = unet->forward(noisy, timesteps, states);
        torch::mse_loss(predicted.to(at::kFloat), target).backward();
      },
      options.device(), flags.records());
  bench::run_steps(flags, [&] {
    passes.run();
    bank.clip(1.0);
    const at::NoGradGuard no_grad;
    steps.add_(1);
    at::_fused_adamw_({bank.values()}, {bank.gradients()}, {first}, {second}, {}, {steps},
                      /*lr=*/1e-4, /*beta1=*/0.9, /*beta2=*/0.999, /*weight_decay=*/1e-2,
                      /*eps=*/1e-8, /*amsgrad=*/false, /*maximize=*/false);
    bank.changed();
  });
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  cli::App app("step_benchmark", "Measures one training step of a UNet with adapters.",
               "step_benchmark --unet_config benchmarks/sd15_unet.json --size 32");
  flags.add_to(app);
  app.group("Adapter");
  app.add_option("--variant", flags.variant, "Variant");
  app.add_option("--rank", flags.rank, "Rank")->check(cli::at_least(1));
  app.add_option("--route", flags.route, "auto, bypass or merged");
  return cli::run(argc, argv, app, [&] { run(flags); });
}
