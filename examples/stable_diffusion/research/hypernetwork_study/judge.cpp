// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork_study/judge.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>

#include "research/hypernetwork/identities.h"
#include "support/cli/fmt.h"
#include "support/distributed/fingerprint.h"
#include "support/images/load.h"
#include "support/images/measures.h"

namespace hyperstudy {
namespace {

namespace fs = std::filesystem;

std::vector<images::Image> load_all(const Thing& thing) {
  std::vector<images::Image> pictures;
  for (const auto& file : thing.pictures) pictures.push_back(images::load_image(file.path));
  return pictures;
}

// The colour that a prompt asks for as "... a COLOUR background".
std::string asked_colour(const std::string& prompt) {
  const auto end = prompt.rfind(" background");
  if (end == std::string::npos || end == 0) return "";
  const auto start = prompt.rfind(' ', end - 1);
  return prompt.substr(start + 1, end - start - 1);
}

at::Tensor unit_mean(const at::Tensor& rows) {
  const at::Tensor mean = rows.mean(0);
  return mean / mean.norm().clamp_min(1e-12);
}

}  // namespace

std::vector<Thing> read_things(const std::string& folder) {
  std::vector<Thing> things;
  TORCH_CHECK(fs::is_directory(folder), "'", folder,
              "': expected a folder with a sub-folder for each thing, got none; hint: make_dataset "
              "--identities writes some");
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (!entry.is_directory()) continue;
    things.push_back({entry.path().filename().string(),
                      training::read_data_folder(entry.path().string()).pictures});
  }
  TORCH_CHECK(!things.empty(), "'", folder, "': expected a sub-folder for each thing, got none");
  std::sort(things.begin(), things.end(),
            [](const Thing& a, const Thing& b) { return a.name < b.name; });
  return things;
}

std::vector<Thing> some_of(const std::vector<Thing>& things, int64_t count) {
  std::vector<Thing> chosen;
  for (const auto i : hypernetwork::evenly_chosen(static_cast<int64_t>(things.size()), count)) {
    chosen.push_back(things[static_cast<size_t>(i)]);
  }
  return chosen;
}

Judge::Judge(const Settings& settings, const std::vector<Thing>& learned,
             const std::vector<Thing>& things)
    : recogniser_(static_cast<int64_t>(learned.size())) {
  distributed::Fingerprint print;
  for (const auto& thing : learned) print.add(thing.name);
  const auto made = fmt::format("{} steps of {}", settings.recogniser_steps, print.hexadecimal());
  const auto path = settings.path("recogniser.safetensors");
  if (!recogniser_.load(path, made)) {
    std::vector<at::Tensor> pictures;
    std::vector<int64_t> numbers;
    for (size_t i = 0; i < learned.size(); ++i) {
      pictures.push_back(small_pictures(load_all(learned[i])));
      numbers.insert(numbers.end(), learned[i].pictures.size(), static_cast<int64_t>(i));
    }
    recogniser_.train(at::cat(pictures), at::tensor(numbers, at::kLong), settings.recogniser_steps);
    recogniser_.save(path, made);
  }
  std::vector<at::Tensor> features;
  for (const auto& thing : things) {
    const auto pictures = load_all(thing);
    std::vector<at::Tensor> vectors;
    for (const auto& picture : pictures) vectors.push_back(images::subject_vector(picture));
    features.push_back(unit_mean(recogniser_.features(small_pictures(pictures))));
    truths_.push_back({at::stack(vectors), features.back()});
  }
  all_features_ = at::stack(features);
}

Scores Judge::scores(size_t thing, const std::vector<images::Image>& pictures,
                     const std::vector<std::string>& prompts) {
  const auto& truth = truths_.at(thing);
  const auto features = recogniser_.features(small_pictures(pictures));
  const auto taken_for = features.mm(all_features_.t()).argmax(1);
  const auto count = static_cast<double>(pictures.size());
  Scores scores;
  scores.features = features.mv(truth.feature).mean().item<double>();
  for (size_t i = 0; i < pictures.size(); ++i) {
    const auto cosines = truth.vectors.mv(images::subject_vector(pictures[i]));
    const bool right =
        taken_for[static_cast<int64_t>(i)].item<int64_t>() == static_cast<int64_t>(thing);
    scores.likeness += cosines.mean().item<double>() / count;
    scores.recognised += (right ? 1 : 0) / count;
    const bool obeys = images::background(pictures[i]).name == asked_colour(prompts.at(i));
    scores.followed += (obeys ? 1 : 0) / count;
  }
  return scores;
}

size_t nearest(const Thing& thing, const std::vector<Thing>& choice) {
  const auto own = images::subject_vector(images::load_image(thing.shown().path));
  size_t best = 0;
  double most = -2;
  for (size_t i = 0; i < choice.size(); ++i) {
    if (choice[i].shown().path == thing.shown().path) continue;
    const auto other = images::subject_vector(images::load_image(choice[i].shown().path));
    const double cosine = own.dot(other).item<double>();
    if (cosine <= most) continue;
    most = cosine;
    best = i;
  }
  return best;
}

}  // namespace hyperstudy
