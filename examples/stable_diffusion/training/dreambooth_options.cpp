// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>
#include <lightlora/variants/variants.h>

#include <filesystem>
#include <string>
#include <utility>

#include "training/adapters.h"
#include "training/options.h"

namespace training {

namespace {

std::vector<std::string> variant_names() {
  std::vector<std::string> names;
  for (const auto& variant : lightlora::variants()) names.push_back(variant.name);
  return names;
}

// Enumerations of the library under the names that it gives them.
template <typename Value>
cli::Choices<Value> named(std::initializer_list<Value> values) {
  cli::Choices<Value> choices;
  for (const auto value : values) choices.emplace_back(lightlora::to_string(value), value);
  return choices;
}

// In diffusers' scripts the flag names a folder's files of half precision.
CLI::Validator no_precision() {
  const auto read = [](const std::string& word) {
    if (word != "fp16" && word != "bf16") return std::string();
    return "expected a kind of adapter, got '" + word +
           "'; hint: half-precision files of a folder are used if it has no others";
  };
  return CLI::Validator([read](std::string& word) { return read(word); }, "");
}

void bind_kind(cli::App& app, AdapterOptions& o) {
  app.add_option(
      "--init_from", o.init_from,
      "Native file to go on from, in place of --init; variant, rank and bases are the file's");
  app.add_option(
         "--relax_rank", o.relax_rank,
         "With --init_from: add the file to the weights and train new adapters of this rank; "
         "the result holds both")
      ->check(cli::at_least(1));
  app.add_option("--variant", o.variant, "Kind of adapter")
      ->check(no_precision())
      ->check(cli::one_of(variant_names()));
  app.add_option("--rank", o.lora.rank(), "Rank of the trained factors")->check(cli::at_least(1));
  app.add_option("--network_alpha", o.lora.network_alpha(),
                 "Scale times rank (default: the rank, so that the scale is 1)");
  app.add_option("--lora_dropout", o.lora.dropout(), "Dropout probability on the adapters' inputs")
      ->check(cli::between(0, 0.99));
  app.add_option("--rank_dropout", o.lora.rank_dropout(),
                 "Probability of leaving out each rank of the adapters in a step")
      ->check(cli::between(0, 0.99));
  app.add_option("--module_dropout", o.lora.module_dropout(),
                 "Probability of leaving out a layer's adapter in a step")
      ->check(cli::between(0, 0.99));
  using lightlora::Init;
  app.add_choice("--init", o.lora.init(), named({Init::up_zero, Init::down_zero, Init::both_zero}),
                 "Which factor starts at zero");
  o.own.add_to(app, variant_names());
  app.add_option("--split_rank", o.split_rank,
                 "Rank that the exported file of a fused or loha adapter is cut to (default: "
                 "exact, its full rank); variants without factors are exported with it alone")
      ->check(cli::at_least(1))
      ->free_on_resume();
}

void bind(cli::App& app, PriorOptions& o) {
  app.group("Prior preservation");
  app.add_flag("--with_prior_preservation", o.with_prior_preservation,
               "Train on pictures of the subject's class too, so that the class stays as it was");
  app.add_option("--class_data_dir", o.class_data_dir,
                 "Folder of class pictures; those it lacks are drawn first")
      ->free_on_resume();
  app.add_option("--class_prompt", o.class_prompt, "What they show, such as 'a photo of a dog'");
  app.add_option("--num_class_images", o.num_class_images, "How many there should be")
      ->check(cli::at_least(1));
  app.add_option("--prior_loss_weight", o.prior_loss_weight, "Weight of their loss")
      ->check(cli::at_least(0));
  app.add_option("--sample_batch_size", o.sample_batch_size, "How many to draw at a time")
      ->check(cli::at_least(1))
      ->free_on_resume();
  app.add_choice("--prior_generation_precision", o.prior_generation_precision,
                 {{"auto", std::nullopt},
                  {"no", c10::kFloat},
                  {"fp32", c10::kFloat},
                  {"fp16", c10::kHalf},
                  {"bf16", c10::kBFloat16}},
                 "Precision to draw them in; auto: that of training");
}

void bind_required(cli::App& app, DreamBoothOptions& o) {
  app.group("Required");
  sd::bind_model(app, o.model);
  app.add_option("--instance_data_dir", o.instance_data_dir,
                 "Folder with the subject's pictures, or with sub-folders N_name of them; captions "
                 "from photo.txt beside photo.jpg, or from metadata.jsonl (required)")
      ->free_on_resume();
  app.add_option("--instance_prompt", o.instance_prompt,
                 "What they show, with a rare word for the subject, such as 'a photo of sks dog': "
                 "the caption of pictures without one of their own (required)");
  app.group("Files");
  app.add_option("--dataset_config", o.dataset_config,
                 "TOML file of sd-scripts' kind that names the pictures, in place of "
                 "--instance_data_dir")
      ->free_on_resume();
  app.add_config_flag();
  sd::bind_single_file(app, o.model);
  sd::bind_vae(app, o.model);
  sd::bind_unet(app, o.model);
  app.add_option("--learned_embeds", o.learned_embeds,
                 "Learned embedding to start from (textual_inversion writes one), as FILE or "
                 "FILE:TOKEN; the prompts may then use its token; repeatable");
}

// Flags of diffusers' scripts, and the ones of sd-scripts that people have in their commands for SDXL.
void add_absent(cli::App& app) {
  const char* const local = "nothing is downloaded; --instance_data_dir names the pictures";
  const char* const captions = "captions lie beside the pictures, in .txt files or metadata.jsonl";
  const std::pair<const char*, const char*> table[] = {
      {"--do_edm_style_training",
       "models of that kind (Playground v2.5) scale inputs and outputs in another way"},
      {"--output_kohya_format", "convert_lora --to kohya writes such a file of the result"},
      {"--dataset_name", local},
      {"--dataset_config_name", local},
      {"--cache_dir", local},
      {"--image_column", "the pictures are the files of --instance_data_dir"},
      {"--caption_column", captions},
      {"--repeats", "pictures in a folder named 10_NAME come ten times in an epoch"},
      {"--lora_alpha", "its name is --network_alpha, as in sd-scripts"},
      {"--use_dora", "DoRA is an option of the library, and not of this program"},
      {"--use_8bit_adam", "adapters are small; --optimizer adafactor keeps almost no state"},
      {"--prodigy_decouple", "the decay of prodigy is always decoupled, as by default"},
      {"--adam_weight_decay_text_encoder", "--adam_weight_decay counts for all that trains"},
      {"--enable_npu_flash_attention", "attention saves memory anyway"},
      {"--network_module", "--variant says which kind of adapter"},
      {"--network_dim", "its name is --rank, as in diffusers"},
      {"--network_train_unet_only", "only --train_text_encoder trains more than the UNet"},
      {"--cache_text_encoder_outputs", "captions are encoded once anyway"},
      {"--no_half_vae", "the autoencoder stays in fp32 where its configuration says force_upcast"},
      {"--v_parameterization", "its name is --prediction_type v_prediction"},
      {"--zero_terminal_snr", "rescale_betas_zero_snr of the model's scheduler says it"},
  };
  for (const auto& [flag, reason] : table) app.absent(flag, reason);
}

}  // namespace

void bind(cli::App& app, AdapterOptions& o) {
  app.group("Adapter");
  bind_kind(app, o);
  app.add_option("--target_modules", o.target_modules,
                 "Layers of the UNet by name or end of name; may be repeated");
  app.add_flag("--train_text_encoder", o.train_text_encoder,
               "Adapters in the text encoder too; of SDXL in both");
  app.add_option("--text_encoder_target_modules", o.text_encoder_target_modules,
                 "Layers of the text encoder by name or end of name; may be repeated");
  app.add_option("--text_encoder_lr", o.text_encoder_lr,
                 "Peak learning rate of the text encoder's adapters (default: --learning_rate)")
      ->check(cli::above(0));
  app.add_flag("--train_norms", o.train_norms,
               "Train weights and biases of all norms too, of each model that trains");
  app.add_flag("--train_biases", o.train_biases, "Train the biases of the adapted layers too");
  app.add_option("--rank_pattern", o.rank_pattern,
                 "Another rank for the layers of a pattern, as to_k=8 or mid_block.*=8: a regular "
                 "expression for the path of a layer or its end; may be repeated");
  app.add_option("--alpha_pattern", o.alpha_pattern,
                 "Another network_alpha for the layers of a pattern, as to_k=4; may be repeated");
  app.add_option(
      "--rate_pattern", o.rate_pattern,
      "Factor of the learning rate for the layers of a pattern, as up_blocks.3.*=0.5; may "
      "be repeated");
  app.add_option("--loraplus_lr_ratio", o.loraplus_lr_ratio,
                 "LoRA+: factor of the learning rate of the up factors, usually 4 to 16")
      ->check(cli::above(0));
}

void bind(cli::App& app, DreamBoothOptions& o) {
  bind_required(app, o);
  bind(app, o.run);
  bind(app, o.data);
  bind(app, o.adapter);
  bind(app, o.optimization);
  app.group("Training");
  sd::bind_prediction_type(app, o.model);
  bind(app, o.prior);
  app.group("Running");
  bind(app, o.machine);
  sd::bind_pack_weights(app, o.model, ", and not with --gradient_checkpointing");
  sd::bind_base_precision(app, o.model);
  sd::bind_memory_limit(app, o.model);
  app.add_flag("--pre_compute_text_embeddings", o.pre_compute_text_embeddings,
               "Encode captions once and drop the text encoder (done anyway unless it trains)")
      ->free_on_resume();
  app.add_option("--clip_skip", o.clip_skip, "Layers of the text encoder to leave out at its end")
      ->check(cli::at_least(0));
  app.add_choice<int64_t>(
      "--max_token_length", o.max_token_length, {{"75", 75}, {"150", 150}, {"225", 225}},
      "How many tokens of a caption are read, in chunks of the text encoder's 75");
  bind_cuda_graph(app, o.cuda_graph);
  distributed::bind(app, o.group);
  add_absent(app);
}

void AdapterOptions::check() const {
  TORCH_CHECK_VALUE(!relax_rank || !init_from.empty(),
                    "--relax_rank: expected --init_from beside it, got none");
  TORCH_CHECK_VALUE(!split_rank || variant == "fused" || variant == "loha" || !exports_factors(),
                    "--split_rank: expected --variant fused or loha, or one without factors, got ",
                    variant, "; hint: other variants are exported at their own rank");
  TORCH_CHECK_VALUE(!relax_rank || !(train_norms || train_biases), "--relax_rank cannot be ",
                    "combined with --train_norms and --train_biases: they have no ranks to join");
  TORCH_CHECK_VALUE(variant != "fused" || lora.init() == lightlora::Init::up_zero,
                    "--init: expected none with --variant fused, whose core always starts at ",
                    "zero, got ", lightlora::to_string(lora.init()));
  TORCH_CHECK_VALUE(variant != "fused" || !loraplus_lr_ratio,
                    "--loraplus_lr_ratio: expected --variant classic or light, got fused, whose ",
                    "core has no up factor");
  TORCH_CHECK_VALUE(train_text_encoder || !text_encoder_lr,
                    "--text_encoder_lr: expected --train_text_encoder beside it, got none");
  for (const auto& [pattern, value] : parse_patterns("--rank_pattern", rank_pattern)) {
    TORCH_CHECK_VALUE(value == static_cast<double>(static_cast<int64_t>(value)), "--rank_pattern ",
                      pattern.text(), ": expected a whole number, got ", value);
  }
  parse_patterns("--alpha_pattern", alpha_pattern);
  parse_patterns("--rate_pattern", rate_pattern);
  if (init_from.empty()) all();
}

bool AdapterOptions::exports_factors() const {
  const auto probe =
      lightlora::find_variant(variant).make(lightlora::LoRAOptions(4), {"probe", 64, 64, {}});
  return probe->has_factors();
}

lightlora::LoRAOptions AdapterOptions::all() const {
  lightlora::LoRAOptions options = lora;
  for (const auto& [name, value] : own.of(variant)) options.own()[name] = value;
  return options;
}

void PriorOptions::check() const {
  if (!with_prior_preservation) {
    TORCH_CHECK_VALUE(class_data_dir.empty() && class_prompt.empty(),
                      "--class_data_dir and --class_prompt: expected --with_prior_preservation ",
                      "beside them, got none");
    return;
  }
  TORCH_CHECK_VALUE(!class_data_dir.empty(), "--with_prior_preservation: expected ",
                    "--class_data_dir beside it, got none; hint: an empty folder will do");
  TORCH_CHECK_VALUE(!class_prompt.empty(), "--with_prior_preservation: expected --class_prompt ",
                    "beside it, got none; hint: such as 'a photo of a dog'");
}

void DreamBoothOptions::check() const {
  const bool config = !dataset_config.empty();
  TORCH_CHECK_VALUE(config || !instance_data_dir.empty(),
                    "missing required flag '--instance_data_dir'; hint: see --help");
  TORCH_CHECK_VALUE(!instance_prompt.empty(),
                    "missing required flag '--instance_prompt'; hint: see --help");
  TORCH_CHECK_VALUE(!config || instance_data_dir.empty(),
                    "'--dataset_config': cannot be combined with --instance_data_dir: both name ",
                    "the pictures; hint: image_dir of a subset");
  data.check();
  check_limits(*this);
  adapter.check();
  TORCH_CHECK_VALUE(
      !pre_compute_text_embeddings || !adapter.train_text_encoder,
      "--pre_compute_text_embeddings: expected none with --train_text_encoder, whose ",
      "states change at every step, got both");
  TORCH_CHECK_VALUE(
      !adapter.text_encoder_lr || optimization.optimizer.kind != OptimizerKind::prodigy,
      "'--text_encoder_lr': cannot be combined with --optimizer prodigy, which finds the ",
      "rate itself; hint: --rate_pattern and --prodigy_d_coef are factors of it");
  prior.check();
  TORCH_CHECK(config || std::filesystem::is_directory(instance_data_dir), "'", instance_data_dir,
              "': expected a folder with the subject's pictures, got ",
              std::filesystem::exists(instance_data_dir) ? "a file" : "nothing of that name",
              "; hint: check --instance_data_dir");
  check_apart("--instance_data_dir", instance_data_dir, run.output_dir);
  check_apart("--class_data_dir", prior.class_data_dir, run.output_dir);
}

}  // namespace training
