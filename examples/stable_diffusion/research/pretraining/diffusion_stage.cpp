// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <filesystem>

#include "research/pretraining/dataset.h"
#include "research/pretraining/folder.h"
#include "research/pretraining/pictures.h"
#include "research/pretraining/sampling.h"
#include "research/pretraining/size_views.h"
#include "research/pretraining/stage_task.h"
#include "schedulers/schedulers.h"
#include "support/cli/fmt.h"
#include "support/cli/progress.h"
#include "support/files/outputs.h"

namespace pretraining {
namespace {

// Samples from here on are never trained on.
constexpr int64_t validation_start = 1'000'000'000;

/// Pictures as the UNet sees them, with the ids of their captions.
struct LatentPool {
  at::Tensor latents;  // (N, C, h, w) in the compute dtype, scaled to unit variance
  at::Tensor ids;      // (N, T) int64
  at::Tensor sizes;    // (N, 6), what a UNet in SDXL's form is told
};

class DiffusionStage : public StageTask {
 public:
  explicit DiffusionStage(const StageOptions& options)
      : StageTask("diffusion", options),
        tokenizer_(options.output_dir + "/tokenizer"),
        schedule_(sd::SchedulerConfig(options.config.at("scheduler"), "config")),
        composer_(load_composer()) {
    // For heads of 32 values and a few hundred tokens, as here, the fused attention's many small
    // products cost CPUs a third more than a few large ones.
    at::globalContext().setSDPUseFlash(false);
    // Without this those products would be of copies in fp32.
    at::globalContext().setAllowFP16BF16ReductionMathSDP(true);
    model_.scheduler = options.config.at("scheduler");
    model_.vae = load_vae(options.output_dir);
    model_.vae->to(dtype());
    const auto text_config = text_encoder_config(options.config, tokenizer_.size());
    model_.text_encoder = sd::CLIPTextModel(sd::CLIPTextModelOptions::from_json(text_config));
    if (is_sdxl(options.config)) make_second_encoder();
    model_.unet = sd::UNet2DConditionModel(
        sd::UNet2DConditionModelOptions::from_json(unet_config(options.config)));
    if (!options.init_from.empty()) start_from(options.init_from);
    model_.vae->to(options.device);
    model_.text_encoder->to(options.device);
    model_.unet->to(options.device);
    if (options.channels_last) {
      use_channels_last(*model_.vae);
      use_channels_last(*model_.unet);
    }
    const double text_rate = stage_.value("text_rate_scale", 1.0);
    std::vector<TrainedPart> parts{{*model_.text_encoder, "text_encoder.", text_rate},
                                   {*model_.unet, "unet."}};
    if (model_.text_encoder_2) {
      parts.push_back({*model_.text_encoder_2, "text_encoder_2.", text_rate});
    }
    train_parts(parts, {"blocks.", "mid_block.", "encoder.layers."});
    empty_ids_ = token_ids(tokenizer_, {""}).to(options.device);
    validation_ = encode(validation_start, stage_.value("validation_pictures", 128));
  }

 private:
  void make_second_encoder() {
    const auto config = text_encoder_config(options_.config, tokenizer_.size(), "text_encoder_2");
    model_.text_encoder_2 =
        sd::CLIPTextModel(sd::CLIPTextModelOptions::from_json(config).projection_dim(
            config.at("projection_dim").get<int64_t>()));
    model_.text_encoder_2->to(options_.device);
  }

  // For when only the weights of an earlier training are left: moments and averages begin anew.
  void start_from(const std::string& folder) {
    load_part(*model_.text_encoder, folder, "text_encoder");
    if (model_.text_encoder_2) load_part(*model_.text_encoder_2, folder, "text_encoder_2");
    load_part(*model_.unet, folder, "unet");
  }

  Composer load_composer() const {
    auto emoji = EmojiSet::load(options_.dataset_dir + "/emoji.safetensors");
    auto choice = emoji.with_roles({Role::kNamed});
    auto others = nameable(emoji, Role::kExtra);
    Composer composer(std::move(emoji), std::move(choice), options_.config.at("dataset"));
    composer.mix_in(std::move(others), options_.config.at("dataset").value("share_of_others", 0.0));
    return composer;
  }

  at::TensorOptions noise_options() const {
    return at::TensorOptions().device(options_.device).dtype(at::kFloat);
  }

  LatentPool encode(int64_t first, int64_t count) {
    torch::NoGradGuard no_grad;
    const int64_t piece = 64;
    cli::Progress progress("latents", count);
    std::vector<at::Tensor> latents, sizes;
    std::vector<std::string> captions;
    for (int64_t done = 0; done < count; done += piece) {
      const int64_t now = std::min(piece, count - done);
      auto pictures = composer_.batch(first + done, now, &captions);
      sizes.push_back(plain_sizes(pictures.size(-1)).expand({now, 6}));
      if (is_sdxl(options_.config)) {
        const auto views = with_sizes(pictures, first + done, stage_.at("sizes"));
        pictures = views.pictures;
        sizes.back() = views.time_ids;
      }
      const auto input = pictures.to(options_.device, dtype()).contiguous(layout());
      const auto mean = model_.vae->encode(input).mean().to(at::kFloat);
      latents.push_back((mean * model_.vae->options.scaling_factor()).to(dtype()));
      progress.update(done + now);
    }
    return {at::cat(latents).contiguous(), token_ids(tokenizer_, captions).to(options_.device),
            at::cat(sizes).to(options_.device)};
  }

  std::string pool_path(int64_t number) const {
    return fmt::format("{}/latents-{}.safetensors", run_dir(), number);
  }

  // Other pictures after every `pool_steps` steps, so that places and sizes do not repeat. Encoding
  // costs minutes; a run that goes on takes the latents of the one before.
  void use_pool(int64_t number) {
    if (number == pool_number_) return;
    const int64_t count = stage_.at("latent_pool");
    const std::string path = pool_path(number);
    if (std::filesystem::exists(path)) {
      const lightlora::SafetensorsFile file(path);
      pool_ = {file.load("latents").to(options_.device, dtype()),
               file.load("ids").to(options_.device),
               file.contains("sizes") ? file.load("sizes").to(options_.device) : at::Tensor()};
      TORCH_CHECK(pool_.sizes.defined() || !is_sdxl(options_.config), "'", path,
                  "': expected sizes, got none; hint: remove the file");
      TORCH_CHECK(pool_.latents.size(0) == count, "'", path, "': expected ", count,
                  " latents, got ", pool_.latents.size(0), "; hint: remove the file");
    } else {
      pool_ = encode(/*first=*/number * count, count);
      if (options_.group.is_main()) {
        sd::make_folder(run_dir());
        lightlora::TensorMap kept{{"latents", pool_.latents.cpu()}, {"ids", pool_.ids.cpu()}};
        if (is_sdxl(options_.config)) kept["sizes"] = pool_.sizes.cpu();
        lightlora::save_safetensors(path, kept);
      }
    }
    if (number > 0 && options_.group.is_main()) std::filesystem::remove(pool_path(number - 1));
    pool_number_ = number;
  }

  at::Tensor loss_of(const LatentPool& batch, const at::Tensor& noise,
                     const at::Tensor& timesteps) {
    const auto& latents = batch.latents;
    const auto clean = latents.to(at::kFloat);
    const auto noisy = schedule_.add_noise(clean, noise, timesteps).to(dtype());
    const auto text = model_.embed(batch.ids);
    sd::AddedConditions added;
    if (text.pooled.defined()) added = {text.pooled, batch.sizes};
    const auto output =
        model_.unet->forward(noisy.contiguous(layout()), timesteps, text.states, added);
    return (output.to(at::kFloat) - schedule_.target(clean, noise, timesteps)).square().mean();
  }

  // One timestep in each of equally long intervals: the loss of a batch varies less.
  at::Tensor spread_timesteps(int64_t batch) const {
    const auto share =
        (at::arange(batch, noise_options()) + at::rand({batch}, noise_options())) / batch;
    return (share * schedule_.num_train_timesteps())
        .to(at::kLong)
        .clamp_max(schedule_.num_train_timesteps() - 1);
  }

  double backward(int64_t step) override {
    const int64_t pool_steps = stage_.value("pool_steps", 0);
    use_pool(pool_steps > 0 ? step / pool_steps : 0);
    const int64_t batch = stage_.at("batch");
    const auto rows = at::randint(pool_.latents.size(0), {batch}, pool_.ids.options());
    const auto latents = pool_.latents.index_select(0, rows);
    const auto without =
        at::rand({batch, 1}, noise_options()) < stage_.at("empty_captions").get<double>();
    const auto ids = at::where(without, empty_ids_, pool_.ids.index_select(0, rows));
    const auto noise = at::randn(latents.sizes(), noise_options());
    const auto timesteps = spread_timesteps(batch);
    const auto own = [&](const at::Tensor& all) { return share_of_batch(options_.group, all); };
    LatentPool drawn{own(latents), own(ids), {}};
    if (is_sdxl(options_.config)) drawn.sizes = own(pool_.sizes.index_select(0, rows));
    const auto loss = loss_of(drawn, own(noise), own(timesteps));
    loss.backward();
    return loss.item<double>();
  }

  double validation_loss() {
    torch::NoGradGuard no_grad;
    torch::manual_seed(validation_start);
    const int64_t count = validation_.latents.size(0);
    const auto noise = at::randn(validation_.latents.sizes(), noise_options());
    const auto order = at::randperm(count, validation_.ids.options());
    return loss_of(validation_, noise, spread_timesteps(count).index_select(0, order))
        .item<double>();
  }

  training::Numbers figures(int64_t step) override {
    const double loss = validation_loss();
    const int64_t shown = stage_.value("validation_samples", 32);
    std::vector<std::string> prompts;
    for (int64_t i = 0; i < shown; ++i) {
      const auto& choice = composer_.choice();
      const std::string name = composer_.emoji().names[choice[i * choice.size() / shown]];
      const auto& color = named_colors()[i * 5 % named_colors().size()];
      prompts.push_back("a " + name + " on a " + color.name + " background");
    }
    const auto draw = [&](const std::string& name, const at::Tensor& sizes) {
      const auto pictures =
          draw_pictures(model_, token_ids(tokenizer_, prompts), empty_ids_,
                        stage_.value("validation_sampling_steps", 20),
                        stage_.value("validation_guidance", 3.0), /*seed=*/7, sizes);
      sd::make_folder(options_.output_dir + "/samples");
      save_sheet(fmt::format("{}/samples/diffusion-{}{}.png", options_.output_dir, step, name),
                 pictures, /*columns=*/8, /*factor=*/2);
      return pictures;
    };
    const auto pictures = draw("", {});
    training::Numbers figures{{"validation_loss", loss}};
    if (!is_sdxl(options_.config)) return figures;
    // As if the pictures had been small, and as if they were cut out from the bottom right.
    const int64_t side = pictures.size(-1);
    auto small = plain_sizes(side), cut = plain_sizes(side);
    small.narrow(1, 0, 2).fill_(static_cast<double>(side / 8));
    cut.narrow(1, 2, 2).fill_(static_cast<double>(side / 2));
    figures.emplace_back("sharpness", sharpness(pictures));
    figures.emplace_back("sharpness_if_small", sharpness(draw("-small", small)));
    draw("-cut", cut);
    return figures;
  }

  // How much neighbouring pixels differ.
  static double sharpness(const at::Tensor& pictures) {
    return pictures.diff(1, /*dim=*/-1).abs().mean().item<double>();
  }

  void save_model(const MasterWeights& weights) override {
    save_part(options_.output_dir, "text_encoder",
              text_encoder_config(options_.config, tokenizer_.size()),
              weights.averages("text_encoder."));
    if (model_.text_encoder_2) {
      save_part(options_.output_dir, "text_encoder_2",
                text_encoder_config(options_.config, tokenizer_.size(), "text_encoder_2"),
                weights.averages("text_encoder_2."));
    }
    save_part(options_.output_dir, "unet", unet_config(options_.config), weights.averages("unet."));
    save_index(options_.output_dir, options_.config);
  }

  sd::Tokenizer tokenizer_;
  sd::NoiseSchedule schedule_;
  Composer composer_;
  SamplingModel model_{nullptr, nullptr, nullptr, {}};
  at::Tensor empty_ids_;
  LatentPool pool_, validation_;
  int64_t pool_number_ = -1;
};

}  // namespace

int64_t train_diffusion(const StageOptions& options) { return DiffusionStage(options).run(); }

}  // namespace pretraining
