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
      ->check(cli::at_least(1));
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
  app.add_option("--validation_steps", o.validation_steps, "Steps between two validations")
      ->check(cli::at_least(1))
      ->free_on_resume();
  app.group("Running");
  app.add_seed("--seed", o.seed, o.new_seed, "Seed of everything random; -1 is a new one, printed");
  app.add_choice("--mixed_precision", o.mixed_precision, kPrecisions,
                 "Precision of the frozen weights; what trains stays fp32");
  app.add_option("--device", o.device, "Where to compute")
      ->check(cli::one_of(sd::device_names()))
      ->free_on_resume();
  distributed::bind(app, o.group);
}

void PersonalizeOptions::check() const {
  TORCH_CHECK(std::filesystem::is_regular_file(image), "'", image,
              "': expected a picture for --image, got none");
  TORCH_CHECK_VALUE(num_images <= 100, "--num_images: expected at most 100, got ", num_images);
}

void bind(cli::App& app, PersonalizeOptions& o) {
  app.group("Required");
  sd::bind_model(app, o.model);
  app.add_option("--hypernetwork", o.hypernetwork, "Folder that train_hypernetwork wrote")
      ->required();
  app.add_option("--image", o.image, "One picture of the thing")->required();
  app.add_option("--prompt", o.prompt, "What to draw")->required();
  app.group("Personalisation");
  app.add_option("--instance_prompt", o.instance_prompt,
                 "What the thing is called (default: as in the network's training)");
  app.add_option("--iterations", o.iterations,
                 "How often the prediction is refined (default: as in training)")
      ->check(cli::at_least(1));
  app.add_option("--max_train_steps", o.max_train_steps,
                 "Steps of fine-tuning after the prediction; 0: none")
      ->check(cli::at_least(0));
  app.add_option("--rank", o.rank, "Rank of the fine-tuning")->check(cli::at_least(1));
  app.add_option("--learning_rate", o.learning_rate,
                 "Its learning rate (default: that of train_dreambooth_lora)")
      ->check(cli::above(0));
  app.group("Output");
  app.add_option("--num_images", o.num_images, "How many pictures to draw")
      ->check(cli::at_least(1));
  app.add_option("--num_inference_steps", o.num_inference_steps, "Denoising steps")
      ->check(cli::between(1, 1000));
  app.add_option("--guidance_scale", o.guidance_scale,
                 "How far to go beyond the prompt's prediction; up to 1 there is no guidance")
      ->check(cli::at_least(0));
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
