// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork/options.h"

#include <filesystem>

#include "pipeline/device.h"

namespace hypernetwork {
namespace {

const cli::Choices<c10::ScalarType> kPrecisions{
    {"no", c10::kFloat}, {"fp16", c10::kHalf}, {"bf16", c10::kBFloat16}};

void bind_network(cli::App& app, TrainOptions& o) {
  app.group("Adapters");
  app.add_option("--variant", o.adapter.variant, "Kind of the adapters: light, fused or classic")
      ->check(cli::one_of({"light", "fused", "classic"}));
  app.add_option("--rank", o.adapter_rank, "Their rank")->check(cli::at_least(1));
  app.add_option("--target_modules", o.adapter.target_modules,
                 "Layers of the UNet to adapt, once for each (default: the attention's)");
  app.add_flag("--train_text_encoder", o.adapter.train_text_encoder,
               "Adapters in the text encoder too; of SDXL in both");
  app.add_option("--text_encoder_target_modules", o.adapter.text_encoder_target_modules,
                 "Layers of the text encoder, once for each (default: the attention's)");
  app.group("Network");
  app.add_option("--width", o.network.width(), "Width of its tokens")->check(cli::at_least(8));
  app.add_option("--heads", o.network.heads(), "Heads of its attention")->check(cli::at_least(1));
  app.add_option("--grid", o.network.grid(), "The picture is read as so many by so many tokens")
      ->check(cli::at_least(1));
  app.add_option("--encoder_layers", o.network.encoder_layers(), "Layers that read the picture")
      ->check(cli::at_least(0));
  app.add_option("--decoder_layers", o.network.decoder_layers(),
                 "Layers of the decoder, which has a token for each adapted layer")
      ->check(cli::at_least(1));
  app.add_option("--iterations", o.network.iterations(), "How often a prediction is refined")
      ->check(cli::between(1, kMostIterations));
}

void bind_targets(cli::App& app, TrainOptions& o) {
  app.group("Adapters to learn from");
  app.add_option("--target_steps", o.targets.steps,
                 "Steps in which each identity's own adapters are trained first; 0: none, the "
                 "network learns from pictures alone")
      ->check(cli::at_least(0));
  app.add_option("--targets_at_once", o.targets.at_once, "Identities that share a pass of the UNet")
      ->check(cli::at_least(1));
  app.add_option("--target_pictures", o.targets.pictures, "Pictures of each in a step")
      ->check(cli::at_least(1));
  app.add_option("--target_learning_rate", o.targets.learning_rate, "Their learning rate")
      ->check(cli::above(0));
  app.add_option(
         "--targets_dir", o.targets_dir,
         "Folder that keeps them, for other networks of the same adapters to learn from too "
         "(default: OUTPUT/targets)")
      ->free_on_resume();
  app.add_option("--target_seed", o.target_seed,
                 "Seed of what they start from, the same for networks that share them (default: "
                 "--seed)");
}

void bind_training(cli::App& app, TrainOptions& o) {
  app.group("Training");
  app.add_option("--weight_loss", o.weight_loss,
                 "Weight of how far predictions are from the adapters to learn from")
      ->check(cli::at_least(0));
  app.add_option("--diffusion_loss", o.diffusion_loss,
                 "Weight of how badly predictions draw the identity's pictures")
      ->check(cli::at_least(0));
  app.add_option("--prediction_penalty", o.prediction_penalty,
                 "Weight of how far predictions are from the mean; for learning without targets")
      ->check(cli::at_least(0));
  app.add_option("--prediction_scale", o.prediction_scale,
                 "Without targets: in which units the values are predicted")
      ->check(cli::above(0));
  app.add_option("--train_batch_size", o.train_batch_size, "Identities per step, of all processes")
      ->check(cli::at_least(1));
  app.add_option("--pictures_per_identity", o.pictures_per_identity,
                 "Pictures of each that a prediction has to draw")
      ->check(cli::at_least(1));
  app.add_option("--max_train_steps", o.max_train_steps, "Updates")
      ->check(cli::at_least(1))
      ->free_on_resume();
  app.add_option("--learning_rate", o.learning_rate, "Peak learning rate")->check(cli::above(0));
  app.add_option("--lr_warmup_steps", o.lr_warmup_steps, "Steps of rising rate")
      ->check(cli::at_least(0));
  app.add_option("--lr_decay_steps", o.lr_decay_steps, "Last steps of falling rate")
      ->check(cli::at_least(0))
      ->free_on_resume();
  app.add_flag(
         "--gradient_checkpointing", o.gradient_checkpointing,
         "Compute the UNet's activations again in the backward pass: slower, in far less memory")
      ->free_on_resume();
}

}  // namespace

TrainOptions::TrainOptions() { adapter.lora.rank(1); }

void TrainOptions::check() const {
  TORCH_CHECK_VALUE(weight_loss > 0 || diffusion_loss > 0,
                    "--weight_loss, --diffusion_loss: expected one of them above 0, got none");
  TORCH_CHECK_VALUE(
      targets.steps > 0 || diffusion_loss > 0,
      "--target_steps 0: expected --diffusion_loss above 0, got nothing to learn from");
  TORCH_CHECK_VALUE(targets.at_once * targets.pictures <= 4096 &&
                        train_batch_size * pictures_per_identity <= 4096,
                    "--train_batch_size, --targets_at_once: expected at most 4096 pictures in a ",
                    "step, got more");
}

void bind(cli::App& app, TrainOptions& o) {
  app.group("Required");
  sd::bind_model(app, o.model);
  app.add_option("--identities_dir", o.identities_dir,
                 "Folder with a sub-folder for each thing, which holds pictures of it")
      ->required()
      ->free_on_resume();
  app.add_option("--instance_prompt", o.instance_prompt,
                 "What every one of them is called, such as \"a photo of sks object\", where a "
                 "picture has no caption of its own")
      ->required();
  app.add_option("--validation_dir", o.validation_dir,
                 "Folder of the same form with things to try the network on, which it does not "
                 "learn from")
      ->free_on_resume();
  app.add_option("--num_identities", o.num_identities,
                 "Learn from so many of the things, evenly chosen (default: all)")
      ->check(cli::at_least(1));
  app.add_option("--resolution", o.resolution, "Side of the pictures (default: the model's)")
      ->check(cli::at_least(8));
  bind_network(app, o);
  bind_targets(app, o);
  bind_training(app, o);
  app.group("Files");
  app.add_config_flag();
  app.add_option("--output_dir", o.output_dir,
                 "Folder for the network; called again, the same command goes on")
      ->free_on_resume();
  app.add_option("--checkpointing_steps", o.checkpointing_steps, "Steps between two checkpoints")
      ->check(cli::at_least(1))
      ->free_on_resume();
  app.add_option("--validation_steps", o.validation_steps, "Steps between two validations; 0: none")
      ->check(cli::at_least(0))
      ->free_on_resume();
  app.group("Running");
  app.add_option("--seed", o.seed, "Seed of everything random: the same command goes on");
  app.add_choice("--mixed_precision", o.mixed_precision, kPrecisions,
                 "Precision of the frozen weights; what trains stays fp32");
  app.add_option("--device", o.device, "Where to compute")
      ->check(cli::one_of(sd::device_names()))
      ->free_on_resume();
  distributed::bind(app, o.group);
}

PersonalizeOptions::PersonalizeOptions() {
  sample.num_images_per_prompt(4).batch_size(4).num_inference_steps(30);
  sample.prompt_syntax(sd::PromptSyntax::plain);  // captions are trained as they stand
}

void PersonalizeOptions::check() const {
  TORCH_CHECK(std::filesystem::is_regular_file(image), "'", image,
              "': expected a picture for --image, got none");
  TORCH_CHECK_VALUE(sample.num_images_per_prompt() <= 100,
                    "--num_images_per_prompt: expected at most 100, got ",
                    sample.num_images_per_prompt());
}

namespace {

void bind_pictures(cli::App& app, sd::SampleOptions& s) {
  app.group("Pictures");
  app.add_option("--negative_prompt", s.negative_prompt(), "What to keep away from");
  app.add_option("--num_images_per_prompt", s.num_images_per_prompt(), "How many pictures")
      ->check(cli::at_least(1));
  app.add_option("--batch_size", s.batch_size(), "Pictures computed at once")
      ->check(cli::at_least(1));
  app.add_option("--height", s.height(), "Height in pixels (default: the model's)")
      ->check(cli::at_least(1));
  app.add_option("--width", s.width(), "Width in pixels (default: the model's)")
      ->check(cli::at_least(1));
  app.add_option("--num_inference_steps", s.num_inference_steps(), "Denoising steps")
      ->check(cli::between(1, 1000));
  app.add_option("--guidance_scale", s.guidance_scale(),
                 "How far to go beyond the prompt's prediction; up to 1 there is no guidance")
      ->check(cli::at_least(0));
  app.add_option("--guidance_rescale", s.guidance_rescale(),
                 "Share of guidance whose contrast is that of the prompt alone")
      ->check(cli::between(0, 1));
  app.add_option("--scheduler", s.scheduler(),
                 "Sampling method (default: ddim; SDXL: what the model's folder says)")
      ->check(cli::one_of(sd::scheduler_names()));
  app.add_flag("--use_karras_sigmas", s.use_karras_sigmas(),
               "Karras' noise levels, for euler, dpmpp_2m and unipc");
  app.add_option("--timestep_spacing", s.timestep_spacing(),
                 "Which timesteps to take (default: the model's own)")
      ->check(cli::one_of({"leading", "linspace", "trailing"}));
  app.add_option("--eta", s.eta(), "Share of fresh noise of ddim, 0 to 1")
      ->check(cli::between(0, 1));
}

}  // namespace

void bind(cli::App& app, PersonalizeOptions& o) {
  app.group("Required");
  sd::bind_model(app, o.model);
  app.add_option("--hypernetwork", o.hypernetwork, "Folder that train_hypernetwork wrote")
      ->required();
  app.add_option("--image", o.image, "One picture of the thing")->required();
  app.add_option("--prompt", o.sample.prompt(), "What to draw")->required();
  app.group("Personalisation");
  app.add_option("--instance_prompt", o.instance_prompt,
                 "What the thing is called (default: as in the network's training)");
  app.add_option("--iterations", o.iterations,
                 "How often the prediction is refined (default: as in training)")
      ->check(cli::between(1, kMostIterations));
  app.add_option("--max_train_steps", o.max_train_steps,
                 "Steps of fine-tuning after the prediction; 0: none")
      ->check(cli::at_least(0));
  app.add_option("--rank", o.rank, "Rank of the fine-tuning")->check(cli::at_least(1));
  app.add_option("--learning_rate", o.learning_rate,
                 "Its learning rate (default: that of train_dreambooth_lora)")
      ->check(cli::above(0));
  bind_pictures(app, o.sample);
  app.group("Files");
  app.add_option("--output_dir", o.output_dir, "Folder for adapters and pictures");
  app.add_flag("--overwrite_output_dir", o.overwrite_output_dir,
               "Begin anew in a folder that holds the results of an earlier run");
  app.group("Running");
  app.add_seed("--seed", o.seed, o.new_seed, "Seed of everything random; -1 is a new one, printed");
  app.add_choice("--mixed_precision", o.mixed_precision, kPrecisions,
                 "Precision of the frozen weights; what trains stays fp32");
  app.add_option("--device", o.device, "Where to compute")->check(cli::one_of(sd::device_names()));
}

}  // namespace hypernetwork
