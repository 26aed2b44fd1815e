// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>

#include <algorithm>

#include "pipeline/pipeline.h"
#include "research/pretraining/classifier.h"
#include "research/pretraining/dataset.h"
#include "research/pretraining/folder.h"
#include "research/pretraining/pictures.h"
#include "research/pretraining/placing.h"
#include "research/pretraining/sampling.h"
#include "research/pretraining/stages.h"
#include "support/cli/progress.h"
#include "support/files/outputs.h"
#include "support/images/measures.h"
#include "support/images/tensor.h"

namespace pretraining {
namespace {

struct Prompts {
  std::vector<std::string> texts;
  std::vector<int64_t> emoji;  // place in the vocabulary
  std::vector<int64_t> colors;
  std::vector<const Layout*> layouts;
  std::vector<int64_t> places;  // of the nine; negative: none asked
};

std::string prompt_of(const std::string& name, const std::string& size_word, int64_t place,
                      int64_t color) {
  return "a " + (size_word.empty() ? "" : size_word + " ") + name +
         (place < 0 ? "" : " " + place_phrases()[place]) + " on a " + named_colors()[color].name +
         " background";
}

// Every emoji in its turn; the colours step so that each meets many emoji.
Prompts prompts_of(const Composer& composer, int64_t count) {
  Prompts prompts;
  const auto& named = composer.choice();
  const auto colors = static_cast<int64_t>(named_colors().size());
  for (int64_t i = 0; i < count; ++i) {
    prompts.emoji.push_back(i * named.size() / count);
    prompts.colors.push_back(i * 5 % colors);
    prompts.layouts.push_back(&composer.layouts().front());
    prompts.places.push_back(-1);
    prompts.texts.push_back(prompt_of(composer.emoji().names[named[prompts.emoji.back()]], "",
                                      prompts.places.back(), prompts.colors.back()));
  }
  return prompts;
}

// Every layout that captions have words for, every place, many emoji and colours.
Prompts prompts_with_words(const Composer& composer, int64_t count) {
  Prompts prompts;
  const auto& named = composer.choice();
  const auto colors = static_cast<int64_t>(named_colors().size());
  const auto places = static_cast<int64_t>(place_phrases().size());
  std::vector<const Layout*> layouts;
  for (const Layout& layout : composer.layouts()) {
    if (layout.placed || layout.size_said > 0) layouts.push_back(&layout);
  }
  for (int64_t i = 0; i < count && !layouts.empty(); ++i) {
    const auto kinds = static_cast<int64_t>(layouts.size());
    const Layout* layout = layouts[i % kinds];
    prompts.layouts.push_back(layout);
    prompts.emoji.push_back(i * 7 % static_cast<int64_t>(named.size()));
    prompts.colors.push_back((i * 5 + i / colors) % colors);
    prompts.places.push_back(layout->placed ? i / kinds % places : -1);
    prompts.texts.push_back(prompt_of(composer.emoji().names[named[prompts.emoji.back()]],
                                      layout->size_word, prompts.places.back(),
                                      prompts.colors.back()));
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

// What a number of pictures is compared with.
struct Judges {
  at::Tensor vectors;
  Classifier classifier;
};

nlohmann::json measure_pictures(const at::Tensor& pictures, Judges& judges,
                                const Prompts& prompts) {
  const auto count = static_cast<int64_t>(prompts.texts.size());
  double first = 0, among_five = 0, background = 0, cosine = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto image = images::to_image(pictures[i].contiguous());
    const auto cosines = judges.vectors.mv(images::subject_vector(image));
    const auto own = cosines[prompts.emoji[i]];
    const auto rank = (cosines >= own).sum().item<int64_t>() - 1;
    first += rank == 0;
    among_five += rank < 5;
    cosine += own.item<double>();
    background += images::background(image).name == named_colors()[prompts.colors[i]].name;
  }
  return {{"pictures", count},
          {"named_emoji_is_nearest", first / count},
          {"named_emoji_in_first_five", among_five / count},
          {"mean_cosine", cosine / count},
          {"classifier_names_it", agreement(judges.classifier.classify(pictures), prompts.emoji)},
          {"background_as_asked", background / count}};
}

// The layout whose size word fits an emoji of this side best.
const Layout* nearest_size(const std::vector<Layout>& layouts, double side) {
  const Layout* best = nullptr;
  const auto distance = [&](const Layout& l) { return std::abs((l.least + l.most) / 2 - side); };
  for (const Layout& layout : layouts) {
    if (layout.size_said > 0 && (!best || distance(layout) < distance(*best))) best = &layout;
  }
  return best;
}

// Whether the words for size and place decide size and place.
nlohmann::json measure_words(const at::Tensor& pictures, Judges& judges, const Prompts& prompts,
                             const Composer& composer) {
  double places = 0, placed = 0, sizes = 0, sized = 0, background = 0;
  const auto count = static_cast<int64_t>(prompts.texts.size());
  for (int64_t i = 0; i < count; ++i) {
    const auto square = subject_square(pictures[i]);
    if (prompts.places[i] >= 0) {
      ++places;
      placed += square.side > 0 && square.place() == prompts.places[i];
    }
    if (prompts.layouts[i]->size_said > 0) {
      ++sizes;
      const auto whole =
          bitmap_square(composer.emoji().bitmaps[composer.choice()[prompts.emoji[i]]]);
      sized += nearest_size(composer.layouts(), square.side / whole.side) == prompts.layouts[i];
    }
    const auto image = images::to_image(pictures[i].contiguous());
    background += images::background(image).name == named_colors()[prompts.colors[i]].name;
  }
  return {{"pictures", count},
          {"place_as_asked", placed / std::max(1.0, places)},
          {"size_as_asked", sized / std::max(1.0, sizes)},
          {"background_as_asked", background / count},
          {"classifier_names_it", agreement(judges.classifier.classify(pictures), prompts.emoji)}};
}

// The vocabulary's own pictures of the same prompts: what a perfect model would reach.
at::Tensor true_pictures(Composer& composer, const Prompts& prompts) {
  std::mt19937_64 random(1);
  std::vector<at::Tensor> pictures;
  for (size_t i = 0; i < prompts.texts.size(); ++i) {
    Placement placement = place_by(*prompts.layouts[i], composer.size(), random);
    placement.place = prompts.places[i];
    pictures.push_back(composer.draw(composer.choice()[prompts.emoji[i]], prompts.colors[i],
                                     placement, random, composer.size()));
  }
  return at::stack(pictures).to(at::kFloat).mul(2.0 / 255).sub(1);
}

double psnr_of_unseen(sd::AutoencoderKL vae, const EmojiSet& emoji, const StageOptions& options) {
  Composer unseen(emoji, emoji.with_roles({Role::kUnseen, Role::kSubject}),
                  options.config.at("dataset"));
  const auto settings = options.config.value("measure", nlohmann::json::object());
  const auto pictures =
      unseen.batch(/*first=*/1'000'000'000, settings.value("unseen_pictures", 256));
  std::vector<at::Tensor> outputs;
  for (const auto& piece : pictures.split(32)) {
    outputs.push_back(vae->decode(vae->encode(piece).mode()));
  }
  return mean_psnr(at::cat(outputs), pictures);
}

Judges make_judges(Composer& composer, const StageOptions& options,
                   const nlohmann::json& settings) {
  Judges judges{vocabulary_vectors(composer.emoji(), composer.choice()),
                Classifier(static_cast<int64_t>(composer.choice().size()),
                           settings.value("classifier", nlohmann::json::object()))};
  const std::string folder = options.output_dir + "/checkpoints";
  sd::make_folder(folder);
  if (!judges.classifier.load(folder + "/classifier.safetensors")) {
    train_classifier(judges.classifier, composer, options);
    judges.classifier.save(folder + "/classifier.safetensors");
  }
  return judges;
}

// In pieces, so that memory does not grow with the number of prompts.
at::Tensor draw_all(const SamplingModel& model, const sd::Tokenizer& tokenizer,
                    const std::vector<std::string>& prompts, const nlohmann::json& settings) {
  const auto ids = token_ids(tokenizer, prompts), empty = token_ids(tokenizer, {""});
  std::vector<at::Tensor> pictures;
  uint64_t seed = settings.value("seed", 0);
  cli::Progress progress("drawing", ids.size(0));
  for (const auto& piece : ids.split(32)) {
    pictures.push_back(draw_pictures(model, piece, empty, settings.value("steps", 30),
                                     settings.value("guidance", 4.0), seed++));
    progress.update(pictures.size() == 1 ? piece.size(0)
                                         : 32 * (pictures.size() - 1) + piece.size(0));
  }
  progress.finish();
  return at::cat(pictures);
}

}  // namespace

nlohmann::json measure_model(const StageOptions& options) {
  torch::NoGradGuard no_grad;
  const auto settings = options.config.value("measure", nlohmann::json::object());
  const auto emoji = EmojiSet::load(options.dataset_dir + "/emoji.safetensors");
  Composer composer(emoji, emoji.with_roles({Role::kNamed}), options.config.at("dataset"));
  Judges judges = make_judges(composer, options, settings);
  const Prompts prompts = prompts_of(composer, settings.value("prompts", 64));
  const Prompts wordy = prompts_with_words(composer, settings.value("prompts_with_words", 108));
  const sd::StableDiffusion pipeline(options.output_dir);
  sd::AutoencoderKL vae = pipeline.vae();
  const SamplingModel model{pipeline.text_encoder(), pipeline.unet(), vae,
                            options.config.at("scheduler"),
                            pipeline.text_encoders() == 2 ? pipeline.text_encoder(1) : nullptr};
  const auto pictures = draw_all(model, pipeline.tokenizer(), prompts.texts, settings);
  const auto drawn = true_pictures(composer, prompts);
  nlohmann::json figures = {
      {"psnr_unseen", psnr_of_unseen(vae, emoji, options)},
      {"unseen_pictures", settings.value("unseen_pictures", 256)},
      {"vocabulary", composer.choice().size()},
      {"model", measure_pictures(pictures, judges, prompts)},
      {"training_pictures", measure_pictures(drawn, judges, prompts)},
      {"training_pictures_through_autoencoder",
       measure_pictures(vae->decode(vae->encode(drawn).mode()), judges, prompts)}};
  sd::make_folder(options.output_dir + "/samples");
  save_sheet(options.output_dir + "/samples/measure.png", pictures, /*columns=*/8, /*factor=*/2);
  if (!wordy.texts.empty()) {
    const auto asked = draw_all(model, pipeline.tokenizer(), wordy.texts, settings);
    figures["words"] = measure_words(asked, judges, wordy, composer);
    figures["words_in_training_pictures"] =
        measure_words(true_pictures(composer, wordy), judges, wordy, composer);
    save_sheet(options.output_dir + "/samples/measure_words.png", asked, /*columns=*/9,
               /*factor=*/2);
  }
  write_text(options.output_dir + "/figures.json", figures.dump(2) + "\n");
  return figures;
}

}  // namespace pretraining
