// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>

#include "models/weights.h"
#include "paths.h"
#include "pipeline/pipeline.h"
#include "research/pretraining/classifier.h"
#include "research/pretraining/dataset.h"
#include "research/pretraining/folder.h"
#include "research/pretraining/placing.h"
#include "research/pretraining/stages.h"
#include "support.h"
#include "support/files/json_file.h"
#include "text/tokenizer.h"

namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using pretraining::Role;

// A font is not needed: two coloured squares and a bar stand for emoji.
pretraining::EmojiSet square_emoji() {
  pretraining::EmojiSet set;
  set.bitmaps = at::zeros({4, 4, 40, 40}, at::kByte);
  for (int64_t i = 0; i < 4; ++i) {
    auto inside = set.bitmaps[i].slice(1, 4 + 4 * i, 36).slice(2, 4, 36);
    inside[i % 3].fill_(200);
    inside[3].fill_(255);
  }
  set.names = {"red box", "green box", "blue bar", "dark bar"};
  set.roles = {Role::kNamed, Role::kNamed, Role::kUnseen, Role::kSubject};
  return set;
}

json tiny_config() {
  json config = sd::read_json_file(std::string(LIGHTLORA_SOURCE_DIR) +
                                   "/examples/stable_diffusion/research/pretraining/base.json");
  config["dataset"]["size"] = 16;
  config["dataset"]["captions_with_made_up_word"] = 0.0;
  config["vae"]["model"].update(
      {{"block_out_channels", {8, 8, 8}}, {"norm_num_groups", 2}, {"sample_size", 16}});
  for (const char* stage : {"vae", "decoder", "diffusion"}) {
    config[stage].update({{"muon", true},
                          {"steps", 24},
                          {"batch", 4},
                          {"warmup_steps", 2},
                          {"validate_every", 24},
                          {"save_every", 12},
                          {"ema_decay", 0.5},
                          {"validation_pictures", 4},
                          {"validation_samples", 2},
                          {"validation_sampling_steps", 2},
                          {"learning_rate", 0.005}});
  }
  config["diffusion"].update({{"latent_pool", 32}, {"pool_steps", 10}});
  config["text_encoder"]["model"].update({{"hidden_size", 16},
                                          {"intermediate_size", 32},
                                          {"max_position_embeddings", 16},
                                          {"num_attention_heads", 2},
                                          {"num_hidden_layers", 1}});
  config["unet"]["model"].update({{"block_out_channels", {8, 8, 16}},
                                  {"norm_num_groups", 2},
                                  {"attention_head_dim", 2},
                                  {"cross_attention_dim", 16},
                                  {"sample_size", 4}});
  config["measure"] = {{"prompts", 24},
                       {"prompts_with_words", 18},
                       {"steps", 2},
                       {"unseen_pictures", 8},
                       {"classifier", {{"steps", 30}, {"batch", 8}}}};
  return config;
}

// A folder of its own for a test, with the data set in it; gone when the test ends.
class Workspace {
 public:
  explicit Workspace(const std::string& name)
      : root_(fs::temp_directory_path() / ("lightlora_pretrain_" + name)) {
    fs::remove_all(root_);
    fs::create_directories(root_ / "data");
    square_emoji().save((root_ / "data" / "emoji.safetensors").string());
  }
  ~Workspace() { fs::remove_all(root_); }

  pretraining::StageOptions options(const std::string& model, bool bf16 = false) const {
    pretraining::StageOptions options;
    options.config = tiny_config();
    options.dataset_dir = (root_ / "data").string();
    options.output_dir = (root_ / model).string();
    options.bf16 = bf16;
    return options;
  }

 private:
  fs::path root_;
};

std::vector<double> logged(const pretraining::StageOptions& options, const std::string& stage,
                           const std::string& key) {
  std::ifstream file(options.output_dir + "/runs/" + stage + "/metrics.jsonl");
  std::vector<double> values;
  for (std::string line; std::getline(file, line);) {
    const json entry = json::parse(line);
    if (entry.contains(key)) values.push_back(entry.at(key));
  }
  return values;
}

// Single losses jump: the means of the first and the last third are compared.
bool falls(const std::vector<double>& losses) {
  const auto part = static_cast<std::ptrdiff_t>(losses.size() / 3);
  return part > 0 && std::accumulate(losses.end() - part, losses.end(), 0.0) <
                         std::accumulate(losses.begin(), losses.begin() + part, 0.0);
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

}  // namespace

TEST_CASE("pretrain: a sample depends on the seed and its index alone", "[pretrain]") {
  const json options = tiny_config().at("dataset");
  pretraining::Composer one(square_emoji(), {0, 1}, options),
      other(square_emoji(), {0, 1}, options);
  other.sample(3);
  const auto expected = one.sample(11), sample = other.sample(11);
  CHECK(sample.caption == expected.caption);
  CHECK(at::equal(sample.picture, expected.picture));
  CHECK_FALSE(at::equal(one.sample(12).picture, expected.picture));
  CHECK(expected.emoji < 2);
}

TEST_CASE("pretrain: captions say how large the emoji is and where", "[pretrain]") {
  json options = tiny_config().at("dataset");
  options["size"] = 64;
  pretraining::Composer composer(square_emoji(), {0, 1}, options);
  std::map<std::string, int> seen;
  for (int64_t i = 0; i < 400; ++i) {
    const auto sample = composer.sample(i);
    INFO(i << ": " << sample.caption);
    const auto square = pretraining::subject_square(sample.picture.to(at::kFloat) / 127.5 - 1);
    const bool is_small = sample.caption.find("a small ") == 0;
    const bool is_large = sample.caption.find("a large ") == 0;
    // A box fills 0.8 of its own square, so its side lies below what the layout says.
    if (is_small) CHECK(square.side < 0.5);
    if (is_large) CHECK(square.side > 0.55);
    seen[is_small ? "small" : (is_large ? "large" : "")]++;
    for (size_t place = 0; place < 9; ++place) {
      const std::string& phrase = pretraining::place_phrases()[place];
      if (sample.caption.find(phrase + " on") == std::string::npos) continue;
      CHECK(square.place() == static_cast<int64_t>(place));
      seen[phrase]++;
    }
  }
  CHECK(seen.size() == 12);  // three of sizes and nine of places
}

TEST_CASE("pretrain: other emoji are mixed in by their names", "[pretrain]") {
  json options = tiny_config().at("dataset");
  pretraining::Composer composer(square_emoji(), {0, 1}, options);
  composer.mix_in({2, 3}, 0.25);
  int others = 0;
  for (int64_t i = 0; i < 400; ++i) {
    const auto sample = composer.sample(i);
    others += sample.emoji >= 2;
    CHECK_THAT(sample.caption, ContainsSubstring(square_emoji().names[sample.emoji]));
  }
  CHECK((others > 70 && others < 130));
  auto emoji = square_emoji();
  emoji.names[2] = "pi\u00f1ata";
  emoji.roles[3] = Role::kUnseen;
  CHECK(pretraining::nameable(emoji, Role::kUnseen) == std::vector<int64_t>{3});
}

TEST_CASE("pretrain: the classifier learns true pictures and comes back from its file",
          "[pretrain]") {
  const Workspace workspace("classifier");
  pretraining::Composer composer(square_emoji(), {0, 1}, tiny_config().at("dataset"));
  const json options = {{"steps", 40}, {"batch", 16}};
  pretraining::Classifier classifier(2, options);
  pretraining::train_classifier(classifier, composer, workspace.options("model"));
  std::vector<int64_t> expected;
  for (int64_t i = 5000; i < 5040; ++i) expected.push_back(composer.sample(i).emoji);
  const auto pictures = composer.batch(5000, 40);
  CHECK(pretraining::agreement(classifier.classify(pictures), expected) > 0.9);
  const std::string path = workspace.options("model").dataset_dir + "/classifier.safetensors";
  classifier.save(path);
  pretraining::Classifier again(2, options), other(2, {{"steps", 41}});
  REQUIRE(again.load(path));
  CHECK(at::equal(again.classify(pictures), classifier.classify(pictures)));
  CHECK_FALSE(other.load(path));
  pretraining::Classifier resumed(2, options);  // from its last checkpoint
  pretraining::train_classifier(resumed, composer, workspace.options("model"));
  CHECK(at::equal(resumed.classify(pictures), classifier.classify(pictures)));
}

TEST_CASE("pretrain: every word of a caption is one token", "[pretrain]") {
  const Workspace workspace("tokenizer");
  const auto options = workspace.options("model");
  const int64_t size = pretraining::train_tokenizer(options);
  const sd::Tokenizer tokenizer(options.output_dir + "/tokenizer");
  CHECK(tokenizer.size() == size);
  CHECK(tokenizer.tokenize("a red box on a purple background").size() == 7);
  CHECK(tokenizer.tokenize("an small large red box in the middle top bottom left right").size() ==
        12);
  CHECK(tokenizer.encode("a sks box").size() == 16);
}

TEST_CASE("pretrain: each stage's loss falls and the folder loads", "[pretrain]") {
  const Workspace workspace("stages");
  const bool bf16 = GENERATE(false, true);
  const auto options = workspace.options(bf16 ? "bf16" : "fp32", bf16);
  pretraining::train_tokenizer(options);
  CHECK(pretraining::train_vae(options) == 24);
  CHECK(pretraining::train_diffusion(options) == 24);
  for (const char* stage : {"vae", "diffusion"}) {
    const auto losses = logged(options, stage, "loss");
    INFO(stage);
    REQUIRE(losses.size() == 24);
    CHECK(falls(losses));
  }
  // Before the first step and after the last.
  CHECK(logged(options, "vae", "psnr_unseen").size() == 2);
  CHECK(logged(options, "diffusion", "validation_loss").size() == 2);

  const std::string unet_config = options.output_dir + "/unet/config.json";
  sd::UNet2DConditionModel unet(
      sd::UNet2DConditionModelOptions::from_json(sd::read_json_file(unet_config), unet_config));
  sd::load_weights(*unet,
                   sd::find_weights(options.output_dir + "/unet", "diffusion_pytorch_model"));
  CHECK(fs::exists(options.output_dir + "/model_index.json"));
  CHECK(fs::exists(options.output_dir + "/samples/diffusion-24.png"));
}

TEST_CASE("pretrain: a model in SDXL's form trains, and its folder draws", "[pretrain]") {
  const Workspace workspace("sdxl");
  auto options = workspace.options("model");
  auto& config = options.config;
  config["text_encoder_2"] = config["text_encoder"];
  config["text_encoder_2"]["model"].update({{"hidden_act", "gelu"}, {"projection_dim", 8}});
  config["unet"]["model"].update({{"cross_attention_dim", 32},
                                  {"addition_embed_type", "text_time"},
                                  {"addition_time_embed_dim", 4},
                                  {"projection_class_embeddings_input_dim", 8 + 6 * 4}});
  config["diffusion"]["sizes"] = {{"small", 0.5}, {"cut", 0.5}};
  pretraining::train_tokenizer(options);
  pretraining::train_vae(options);
  CHECK(pretraining::train_diffusion(options) == 24);
  CHECK(logged(options, "diffusion", "sharpness_if_small").size() == 2);
  CHECK(fs::exists(options.output_dir + "/samples/diffusion-24-cut.png"));
  sd::StableDiffusion model(options.output_dir);
  CHECK(model.is_sdxl());
  const auto drawn = model.sample(
      sd::SampleOptions().prompt("a red box").num_inference_steps(2).scheduler("euler"));
  CHECK(drawn.pictures.isfinite().all().item<bool>());
}

TEST_CASE("pretrain: the measures recognise true pictures and not an untrained model's",
          "[pretrain]") {
  const Workspace workspace("measure");
  auto options = workspace.options("model");
  pretraining::train_tokenizer(options);
  options.stop_at = 1;
  pretraining::train_vae(options);
  pretraining::train_diffusion(options);
  const json figures = pretraining::measure_model(options);
  CHECK(figures.at("training_pictures").at("named_emoji_is_nearest") == 1.0);
  CHECK(figures.at("training_pictures").at("background_as_asked") == 1.0);
  CHECK(figures.at("training_pictures").at("mean_cosine") > 0.9);
  CHECK(figures.at("model").at("pictures") == 24);
  CHECK(figures.at("model").at("background_as_asked") < 0.5);
  CHECK(figures.at("psnr_unseen") < 20);
  CHECK(figures.at("training_pictures").at("classifier_names_it") > 0.9);
  CHECK(figures.at("words_in_training_pictures").at("place_as_asked") == 1.0);
  CHECK(figures.at("words_in_training_pictures").at("size_as_asked") == 1.0);
  CHECK(figures.at("words").at("place_as_asked") < 0.5);
  CHECK(sd::read_json_file(options.output_dir + "/figures.json") == figures);
  CHECK(fs::exists(options.output_dir + "/samples/measure.png"));
  CHECK(fs::exists(options.output_dir + "/samples/measure_words.png"));
}

TEST_CASE("pretrain: the decoder stage improves the decoder and keeps the latents", "[pretrain]") {
  const Workspace workspace("decoder");
  auto options = workspace.options("model");
  // Long enough that the batches' differences do not hide what is learned.
  options.config["decoder"]["steps"] = 96;
  options.stop_at = 2;
  pretraining::train_vae(options);
  options.stop_at = -1;
  const auto latents_of = [&] {
    torch::NoGradGuard no_grad;
    torch::manual_seed(1);
    return pretraining::load_vae(options.output_dir)->encode(at::randn({1, 3, 16, 16})).mean();
  };
  const auto latents = latents_of();
  const std::string config = bytes_of(options.output_dir + "/vae/config.json");
  CHECK(pretraining::train_decoder(options) == 96);
  CHECK(at::equal(latents_of(), latents));
  CHECK(bytes_of(options.output_dir + "/vae/config.json") == config);
  CHECK(falls(logged(options, "decoder", "loss")));
}

TEST_CASE("pretrain: a stage that paused ends with the same bytes", "[pretrain]") {
  const Workspace workspace("resume");
  auto paused = workspace.options("paused"), straight = workspace.options("straight");
  for (auto* options : {&paused, &straight}) {
    pretraining::train_tokenizer(*options);
    options->stop_at = options == &paused ? 7 : -1;
    pretraining::train_vae(*options);
    const auto pause = fs::path(options->output_dir) / "runs" / "vae" / "checkpoint-7";
    CHECK(fs::exists(pause) == (options == &paused));
    options->stop_at = -1;
    pretraining::train_vae(*options);
    options->stop_at = options == &paused ? 5 : -1;
    pretraining::train_diffusion(*options);
    options->stop_at = -1;
    pretraining::train_diffusion(*options);
  }
  for (const char* file :
       {"/vae/diffusion_pytorch_model.safetensors", "/text_encoder/model.safetensors",
        "/unet/diffusion_pytorch_model.safetensors"}) {
    INFO(file);
    CHECK(bytes_of(paused.output_dir + file) == bytes_of(straight.output_dir + file));
  }
}

TEST_CASE("pretrain: a checkpoint of another size is refused", "[pretrain]") {
  const Workspace workspace("refused");
  auto options = workspace.options("model");
  options.stop_at = 1;
  pretraining::train_vae(options);
  options.config["vae"]["model"]["block_out_channels"] = {8, 16, 16};
  CHECK_THROWS_WITH(pretraining::train_vae(options), ContainsSubstring("of shape"));
}
