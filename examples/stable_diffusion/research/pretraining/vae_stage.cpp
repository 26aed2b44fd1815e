// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <utility>

#include "models/vae.h"
#include "research/pretraining/dataset.h"
#include "research/pretraining/folder.h"
#include "research/pretraining/pictures.h"
#include "research/pretraining/stage_task.h"
#include "support/cli/fmt.h"
#include "support/files/outputs.h"

namespace pretraining {
namespace {

// Differences of neighbours in both directions: where edges are, and how sharp.
at::Tensor edge_distance(const at::Tensor& x, const at::Tensor& y) {
  const auto difference = x - y;
  return difference.diff(1, 2).abs().mean() + difference.diff(1, 3).abs().mean();
}

at::Tensor kl_divergence(const sd::DiagonalGaussianDistribution& posterior) {
  const auto mean = posterior.mean().to(at::kFloat), logvar = posterior.logvar().to(at::kFloat);
  return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean();
}

class VaeStage : public StageTask {
 public:
  VaeStage(const StageOptions& options, const std::string& name)
      : StageTask(name, options),
        composer_(load_composer({Role::kNamed, Role::kExtra})),
        unseen_(load_composer({Role::kUnseen, Role::kSubject})) {
    if (decoder_only()) {
      vae_ = load_vae(options.output_dir);
      scaling_factor_ = vae_->options.scaling_factor();
      for (auto& item : vae_->named_parameters()) {
        const std::string& name = item.key();
        item.value().requires_grad_(name.rfind("encoder.", 0) != 0 &&
                                    name.rfind("quant_conv.", 0) != 0);
      }
    } else {
      vae_ = sd::AutoencoderKL(
          sd::AutoencoderKLOptions::from_json(vae_config(options.config, 1.0), "config"));
    }
    vae_->to(options.device);
    if (options.channels_last) use_channels_last(*vae_);
    train_parts({{*vae_, ""}}, {"blocks.", "mid_block."});
  }

 private:
  bool decoder_only() const { return name_ == "decoder"; }

  Composer load_composer(const std::vector<Role>& roles) const {
    auto emoji = EmojiSet::load(options_.dataset_dir + "/emoji.safetensors");
    auto choice = emoji.with_roles(roles);
    return Composer(std::move(emoji), std::move(choice), options_.config.at("dataset"));
  }

  at::Tensor as_input(const at::Tensor& pictures) const {
    return pictures.to(options_.device, dtype()).contiguous(layout());
  }

  sd::DiagonalGaussianDistribution encode(const at::Tensor& pictures) {
    torch::AutoGradMode gradients(!decoder_only());
    return vae_->encode(as_input(pictures));
  }

  // In `scaled_share` of the steps both are made smaller alike: latents of a small thing then look like
  // those of a large one, and the diffusion model has less to learn (scale equivariance as in EQ-VAE,
  // Kouzelis et al. 2025).
  std::pair<at::Tensor, at::Tensor> scaled(const at::Tensor& latents, const at::Tensor& pictures) {
    const auto drawn = at::rand({2}, at::kDouble);
    if (drawn[0].item<double>() >= stage_.value("scaled_share", 0.0)) return {latents, pictures};
    const int64_t side = latents.size(-1), factor = pictures.size(-1) / side, least = side / 2;
    const int64_t smaller =
        least + static_cast<int64_t>(drawn[1].item<double>() * static_cast<double>(side - least));
    const auto resized = [](const at::Tensor& x, int64_t to) {
      return at::_upsample_bilinear2d_aa(x.to(at::kFloat), {to, to}, /*align_corners=*/false)
          .to(x.scalar_type());
    };
    return {resized(latents, smaller), resized(pictures, smaller * factor)};
  }

  double backward(int64_t step) override {
    const int64_t batch = stage_.at("batch");
    const int64_t own = batch / options_.group.size();
    const at::Tensor pictures =
        composer_.batch(step * batch + options_.group.rank() * own, own).to(options_.device);
    const auto posterior = encode(pictures);
    auto sizes = posterior.mean().sizes().vec();
    sizes[0] = batch;
    const auto noise = share_of_batch(options_.group, at::randn(sizes, posterior.mean().options()));
    const auto [latents, wanted] = scaled(posterior.sample(noise), pictures);
    const auto output = vae_->decode(latents.contiguous(layout())).to(at::kFloat);
    const auto difference = output - wanted;
    at::Tensor loss = difference.abs().mean() + difference.square().mean() +
                      stage_.at("edge_weight").get<double>() * edge_distance(output, wanted);
    if (!decoder_only())
      loss = loss + stage_.at("kl_weight").get<double>() * kl_divergence(posterior);
    loss.backward();
    return loss.item<double>();
  }

  training::Numbers figures(int64_t step) override {
    torch::NoGradGuard no_grad;
    const int64_t count = stage_.value("validation_pictures", 128), piece = 32;
    std::vector<at::Tensor> pictures, outputs;
    for (int64_t first = 0; first < count; first += piece) {
      pictures.push_back(unseen_.batch(first, std::min(piece, count - first)));
      outputs.push_back(
          vae_->decode(vae_->encode(as_input(pictures.back())).mode()).to(at::kFloat).cpu());
    }
    const auto all = at::cat(pictures), output = at::cat(outputs);
    const int64_t shown = std::min<int64_t>(16, count);
    sd::make_folder(options_.output_dir + "/samples");
    save_sheet(fmt::format("{}/samples/{}-{}.png", options_.output_dir, name_, step),
               at::cat({all.narrow(0, 0, shown), output.narrow(0, 0, shown)}), /*columns=*/8,
               /*factor=*/2);
    return {{"psnr_unseen", mean_psnr(output, all)}};
  }

  double measure_scaling_factor() {
    torch::NoGradGuard no_grad;
    const at::Tensor pictures = composer_.batch(/*first=*/1'000'000'000, /*count=*/128);
    return 1.0 / vae_->encode(as_input(pictures)).mean().to(at::kFloat).std().item<double>();
  }

  void save_model(const MasterWeights& weights) override {
    if (!decoder_only()) scaling_factor_ = measure_scaling_factor();
    save_part(options_.output_dir, "vae", vae_config(options_.config, scaling_factor_),
              weights.averages(""));
  }

  Composer composer_, unseen_;
  sd::AutoencoderKL vae_{nullptr};
  double scaling_factor_ = 1;
};

}  // namespace

int64_t train_vae(const StageOptions& options) { return VaeStage(options, "vae").run(); }

int64_t train_decoder(const StageOptions& options) { return VaeStage(options, "decoder").run(); }

}  // namespace pretraining
