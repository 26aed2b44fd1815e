// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>

#include "support/cli/message.h"
#include "support/files/limits.h"
#include "training/inversion.h"
#include "training/options.h"

namespace training {

InversionOptions::InversionOptions() {
  run.output_dir = "text-inversion-model";
  data.random_flip = true;
  data.image_interpolation_mode = images::Filter::kBicubic;
  optimization.train_batch_size = 16;
  optimization.num_train_epochs = 100;
  optimization.max_train_steps = 5000;
}

namespace {

// What readers of the file refuse is said before the word is learned.
void check_token(const std::string& token) {
  const bool control = std::any_of(token.begin(), token.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
  });
  TORCH_CHECK_VALUE(!control && token.find_first_not_of(' ') != std::string::npos &&
                        token.size() <= sd::limits::kTokenBytes && cli::is_utf8(token),
                    "--placeholder_token: expected a word of 1 to ", sd::limits::kTokenBytes,
                    " bytes of UTF-8 without control characters, got '", token, "'");
}

}  // namespace

void InversionOptions::check() const {
  check_token(placeholder_token);
  data.check();
  check_limits(*this);
  check_apart("--train_data_dir", train_data_dir, run.output_dir);
  if (save_as_full_pipeline) check_full_pipeline(model.path, layerwise, run.output_dir);
}

namespace {

void bind_word(cli::App& app, InversionOptions& o) {
  app.group("Word");
  app.add_choice("--learnable_property", o.learnable_property,
                 {{"object", Property::object}, {"style", Property::style}},
                 "What the pictures have in common");
  app.add_option("--num_vectors", o.num_vectors, "How many tokens the word stands for")
      ->check(cli::at_least(1));
  app.add_flag("--layerwise", o.layerwise,
               "Vectors of their own for each cross attention of the UNet (XTI, P+): 16 times as "
               "many for Stable Diffusion 1.x; not for SDXL");
  app.add_option("--repeats", o.repeats, "How often each picture comes in one epoch")
      ->check(cli::at_least(1));
  app.add_option("--save_steps", o.save_steps,
                 "Also write learned_embeds-steps-N.safetensors after so many steps")
      ->check(cli::at_least(1))
      ->free_on_resume();
}

}  // namespace

void bind(cli::App& app, InversionOptions& o) {
  app.group("Required");
  sd::bind_model(app, o.model);
  app.add_option("--train_data_dir", o.train_data_dir, "Folder with pictures of the thing or style")
      ->required()
      ->free_on_resume();
  app.add_option("--placeholder_token", o.placeholder_token,
                 "The new word, such as <my-cat>; prompts use it afterwards")
      ->required();
  app.add_option("--initializer_token", o.initializer_token,
                 "A word of one token to start from, such as cat")
      ->required();
  bind_word(app, o);
  app.group("Files");
  app.add_config_flag();
  app.add_flag(
         "--save_as_full_pipeline", o.save_as_full_pipeline,
         "Also write the whole model, in diffusers layout, with the word in its tokenizer and "
         "text encoder")
      ->free_on_resume();
  sd::bind_single_file(app, o.model);
  sd::bind_vae(app, o.model);
  bind(app, o.run);
  bind(app, o.data);
  bind(app, o.optimization);
  app.group("Training");
  sd::bind_prediction_type(app, o.model);
  app.group("Running");
  bind(app, o.machine);
  sd::bind_pack_weights(app, o.model, ", and not with --gradient_checkpointing");
  sd::bind_memory_limit(app, o.model);
  bind_cuda_graph(app, o.cuda_graph);
  distributed::bind(app, o.group);
  app.absent("--no_safe_serialization",
             "files are safetensors, which diffusers, A1111 and ComfyUI read, and never pickles");
  app.absent("--variant", "the half-precision files of a folder are used if it has no others");
}

}  // namespace training
