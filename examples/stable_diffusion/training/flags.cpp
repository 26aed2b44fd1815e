// SPDX-License-Identifier: Apache-2.0
#include "training/flags.h"

#include <filesystem>

#include "pipeline/device.h"

namespace training {

namespace {

void add_prior_flags(cli::App& app, Flags& f) {
  app.group("Prior preservation");
  app.add_flag("--with_prior_preservation", f.with_prior_preservation,
               "Train on pictures of the subject's class too, so that the class stays as it was");
  app.add_option("--class_data_dir", f.class_data_dir,
                 "Folder of class pictures; those it lacks are drawn first");
  app.add_option("--class_prompt", f.class_prompt, "What they show, such as 'a photo of a dog'");
  app.add_option("--num_class_images", f.num_class_images, "How many there should be")
      ->check(cli::at_least(1));
  app.add_option("--prior_loss_weight", f.prior_loss_weight, "Weight of their loss")
      ->check(cli::at_least(0));
  app.add_option("--sample_batch_size", f.sample_batch_size, "How many to draw at a time")
      ->check(cli::at_least(1));
  app.add_option("--prior_generation_precision", f.prior_generation_precision,
                 "Precision to draw them in; auto: that of training")
      ->check(cli::one_of({"auto", "no", "fp32", "fp16", "bf16"}));
}

void add_more_running_flags(cli::App& app, Flags& f) {
  app.add_flag("--pre_compute_text_embeddings", f.pre_compute_text_embeddings,
               "Encode captions once and drop the text encoder (done anyway unless it trains)");
  app.add_option("--clip_skip", f.clip_skip, "Layers of the text encoder to leave out at its end")
      ->check(cli::at_least(0));
  app.add_option("--cuda_graph", f.cuda_graph,
                 "Record forward and backward once and replay them: saves a GPU's waiting for "
                 "launches (auto: with a GPU and no training text encoder)")
      ->check(cli::one_of(cuda_graph_choices()));
}

}  // namespace

void add_flags(cli::App& app, Flags& f) {
  app.group("Required");
  sd::add_model_flag(app, f);
  app.add_option("--instance_data_dir", f.instance_data_dir,
                 "Folder with the subject's pictures, or with sub-folders N_name of them; captions "
                 "from photo.txt beside photo.jpg, or from metadata.jsonl")
      ->required();
  app.add_option("--instance_prompt", f.instance_prompt,
                 "What they show, with a rare word for the subject, such as 'a photo of sks dog': "
                 "the caption of pictures without one of their own")
      ->required();
  app.group("Files");
  app.add_config_flag();
  sd::add_single_file_flags(app, f);
  app.add_option("--learned_embeds", f.learned_embeds,
                 "Learned embedding to start from (textual_inversion writes one), as FILE or "
                 "FILE:TOKEN; the prompts may then use its token; repeatable");
  add_run_flags(app, f.run);
  add_data_flags(app, f.data);
  add_adapter_flags(app, f.adapter);
  add_optimization_flags(app, f.optimization);
  add_prior_flags(app, f);
  add_running_flags(app, f);
  add_more_running_flags(app, f);
  distributed::add_group_flags(app, f.group);
}

void Flags::check() const {
  data.check();
  adapter.check();
  TORCH_CHECK_VALUE(!pre_compute_text_embeddings || !adapter.train_text_encoder,
                    "--pre_compute_text_embeddings: expected none with --train_text_encoder, whose ",
                    "states change at every step, got both");
  if (with_prior_preservation) {
    TORCH_CHECK_VALUE(!class_data_dir.empty(), "--with_prior_preservation: expected ",
                      "--class_data_dir beside it, got none; hint: an empty folder will do");
    TORCH_CHECK_VALUE(!class_prompt.empty(), "--with_prior_preservation: expected --class_prompt ",
                      "beside it, got none; hint: such as 'a photo of a dog'");
  } else {
    TORCH_CHECK_VALUE(class_data_dir.empty() && class_prompt.empty(),
                      "--class_data_dir and --class_prompt: expected --with_prior_preservation ",
                      "beside them, got none");
  }
  TORCH_CHECK(std::filesystem::is_directory(instance_data_dir), "'", instance_data_dir,
              "': expected a folder with the subject's pictures, got ",
              std::filesystem::exists(instance_data_dir) ? "a file" : "nothing of that name",
              "; hint: check --instance_data_dir");
}

c10::ScalarType Flags::prior_dtype() const {
  if (prior_generation_precision == "auto") return weight_dtype();
  return sd::pick_dtype(prior_generation_precision == "no" ? "fp32" : prior_generation_precision);
}

ClassPictureOptions Flags::class_pictures() const {
  ClassPictureOptions options;
  options.folder = class_data_dir;
  options.prompt = class_prompt;
  options.count = num_class_images;
  options.batch_size = sample_batch_size;
  options.seed = seed;
  return options;
}

TrainerOptions Flags::trainer_options() const {
  TrainerOptions options = CommonFlags::trainer_options();
  options.prior_loss_weight = prior_loss_weight;
  options.cuda_graph = use_cuda_graph(cuda_graph, sd::pick_device(device));
  return options;
}

SampleOptions Flags::instance_samples() const {
  SampleOptions options;
  options.batch_size = optimization.train_batch_size;
  options.seed = seed;
  options.prompt = instance_prompt;
  options.caption_dropout_rate = data.caption_dropout_rate;
  return options;
}

SampleOptions Flags::class_samples() const {
  SampleOptions options = instance_samples();
  options.prompt = class_prompt;
  options.order = Stream::class_order;
  options.sample = Stream::class_sample;
  return options;
}

}  // namespace training
