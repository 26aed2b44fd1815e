// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <algorithm>

#include "support/images/measures.h"
#include "support/images/tensor.h"
#include "research/pretraining/dataset.h"
#include "research/pretraining/folder.h"
#include "research/pretraining/pictures.h"
#include "research/pretraining/sampling.h"
#include "research/pretraining/stages.h"
#include "pipeline/pipeline.h"

namespace pretraining {
namespace {

struct Prompts {
  std::vector<std::string> texts;
  std::vector<int64_t> emoji;  // place in the vocabulary
  std::vector<std::string> colors;
};

// Every emoji in its turn; the colours step so that each meets many emoji.
Prompts prompts_of(const EmojiSet& emoji, const std::vector<int64_t>& named, int64_t count) {
  Prompts prompts;
  for (int64_t i = 0; i < count; ++i) {
    const auto place = static_cast<int64_t>(i * named.size() / count);
    const std::string color = named_colors()[i * 5 % named_colors().size()].name;
    prompts.emoji.push_back(place);
    prompts.colors.push_back(color);
    prompts.texts.push_back("a " + emoji.names[named[place]] + " on a " + color + " background");
  }
  return prompts;
}

// Shapes: (vocabulary, 2304)
at::Tensor vocabulary_vectors(const EmojiSet& emoji, const std::vector<int64_t>& named) {
  std::vector<at::Tensor> vectors;
  for (const int64_t i : named) {
    vectors.push_back(images::reference_vector(emoji.bitmaps[i].to(at::kFloat) / 255));
  }
  return at::stack(vectors);
}

nlohmann::json measure_pictures(const at::Tensor& pictures, const at::Tensor& vectors,
                                const Prompts& prompts) {
  const auto count = static_cast<int64_t>(prompts.texts.size());
  double first = 0, among_five = 0, background = 0, cosine = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto image = images::to_image(pictures[i].contiguous());
    const auto cosines = vectors.mv(images::subject_vector(image));
    const auto own = cosines[prompts.emoji[i]];
    const auto rank = (cosines >= own).sum().item<int64_t>() - 1;
    first += rank == 0;
    among_five += rank < 5;
    cosine += own.item<double>();
    background += images::background(image).name == prompts.colors[i];
  }
  return {{"pictures", count},
          {"named_emoji_is_nearest", first / count},
          {"named_emoji_in_first_five", among_five / count},
          {"mean_cosine", cosine / count},
          {"background_as_asked", background / count}};
}

// The vocabulary's own pictures of the same prompts: what a perfect model would reach.
at::Tensor drawn_pictures(Composer& composer, const std::vector<int64_t>& named,
                          const Prompts& prompts) {
  std::mt19937_64 random(1);
  std::vector<at::Tensor> pictures;
  for (size_t i = 0; i < prompts.texts.size(); ++i) {
    const auto color = std::find_if(
        named_colors().begin(), named_colors().end(),
        [&](const NamedColor& candidate) { return candidate.name == prompts.colors[i]; });
    pictures.push_back(composer.draw(named[prompts.emoji[i]], color - named_colors().begin(),
                                     random, composer.size()));
  }
  return at::stack(pictures).to(at::kFloat).mul(2.0 / 255).sub(1);
}

double psnr_of_unseen(sd::AutoencoderKL vae, const EmojiSet& emoji, const StageOptions& options) {
  Composer unseen(emoji, emoji.with_roles({Role::kUnseen, Role::kSubject}),
                  options.config.at("dataset"));
  const auto settings = options.config.value("measure", nlohmann::json::object());
  const auto pictures = unseen.batch(/*first=*/1'000'000'000, settings.value("unseen_pictures", 256));
  std::vector<at::Tensor> outputs;
  for (const auto& piece : pictures.split(32)) {
    outputs.push_back(vae->decode(vae->encode(piece).mode()));
  }
  return mean_psnr(at::cat(outputs), pictures);
}

}  // namespace

nlohmann::json measure_model(const StageOptions& options) {
  torch::NoGradGuard no_grad;
  const auto settings = options.config.value("measure", nlohmann::json::object());
  const auto emoji = EmojiSet::load(options.dataset_dir + "/emoji.safetensors");
  const auto named = emoji.with_roles({Role::kNamed});
  const Prompts prompts = prompts_of(emoji, named, settings.value("prompts", 64));
  const auto vectors = vocabulary_vectors(emoji, named);
  const sd::StableDiffusion pipeline(options.output_dir);
  sd::AutoencoderKL vae = pipeline.vae();
  const SamplingModel model{pipeline.text_encoder(), pipeline.unet(), vae,
                            options.config.at("scheduler")};
  const auto pictures =
      draw_pictures(model, token_ids(pipeline.tokenizer(), prompts.texts),
                    token_ids(pipeline.tokenizer(), {""}),
                    settings.value("steps", 30), settings.value("guidance", 4.0),
                    settings.value("seed", 0));
  Composer composer(emoji, named, options.config.at("dataset"));
  const auto drawn = drawn_pictures(composer, named, prompts);
  const nlohmann::json figures = {
      {"psnr_unseen", psnr_of_unseen(vae, emoji, options)},
      {"vocabulary", named.size()},
      {"model", measure_pictures(pictures, vectors, prompts)},
      {"training_pictures", measure_pictures(drawn, vectors, prompts)},
      {"training_pictures_through_autoencoder",
       measure_pictures(vae->decode(vae->encode(drawn).mode()), vectors, prompts)}};
  make_folder(options.output_dir + "/samples");
  save_sheet(options.output_dir + "/samples/measure.png", pictures, /*columns=*/8, /*factor=*/2);
  write_text(options.output_dir + "/figures.json", figures.dump(2) + "\n");
  return figures;
}

}  // namespace pretraining
