// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork_study/settings.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "support/cli/fmt.h"
#include "support/cli/format.h"

namespace hyperstudy {
namespace {

std::vector<int64_t> distinct(std::vector<int64_t> points) {
  std::sort(points.begin(), points.end());
  points.erase(std::unique(points.begin(), points.end()), points.end());
  return points;
}

// Networks of the same adapters learn from the same ones, whatever their own seeds.
Network with(const Settings& settings, const std::string& name, const std::string& title,
             hypernetwork::TrainOptions options) {
  options.targets_dir =
      settings.path(fmt::format("targets-{}-{}", options.adapter.variant, options.adapter_rank));
  options.target_seed = 0;
  return {name, title, std::move(options)};
}

}  // namespace

void Settings::make_quick() {
  seeds = 1;
  few = {2};
  identities = rate_identities = pictures = batch_size = 1;
  tuning_steps = inversion_steps = picture_steps = 2;
  long_steps = 3;
  lowest_rate_factor = 1;
  highest_rate_factor = 2;
  class_prompts.resize(1);
  recogniser_steps = 3;
  train.max_train_steps = 2;
  train.train_batch_size = 2;
  train.pictures_per_identity = 1;
  train.lr_warmup_steps = train.lr_decay_steps = train.validation_steps = 0;
  train.targets.steps = train.targets.pictures = 1;
  train.network.width(16).heads(2).encoder_layers(1).decoder_layers(1);
  train.adapter.target_modules = {"attn2.to_v"};
}

void Settings::check() const {
  train.check();
  const bool has_targets =
      train.targets.steps > 0 && train.weight_loss > 0 && train.diffusion_loss > 0;
  TORCH_CHECK_VALUE(by_things() || has_targets,
                    "--target_steps: expected adapters to learn from, since networks without them ",
                    "are compared with those that have some, got none");
  TORCH_CHECK_VALUE(lowest_rate_factor <= highest_rate_factor,
                    "--highest_rate_factor: expected at least ", lowest_rate_factor, ", got ",
                    highest_rate_factor);
  TORCH_CHECK_VALUE(!train.validation_dir.empty(),
                    "--validation_dir: expected things that no network learns from, got none");
  auto all = *this;
  all.without.clear();
  std::vector<std::string> names{kWord};
  for (const auto& network : networks(all)) {
    if (network.name != kMain) names.push_back(network.name);
  }
  for (const auto& name : without) {
    TORCH_CHECK_VALUE(
        std::count(names.begin(), names.end(), name) > 0,
        fmt::format("--without: expected one of '{}', got '{}'", fmt::join(names, "', '"), name));
  }
  TORCH_CHECK_VALUE(pictures <= static_cast<int64_t>(backgrounds.size()) - 1,
                    "--pictures: expected at most ", backgrounds.size() - 1, ", got ", pictures);
}

std::string describe(const hypernetwork::TrainOptions& t) {
  const auto exact = [](double value) { return cli::format_exact(value); };
  return fmt::format(
      "{}, '{}', {} {} rank {} of {}, {}, {} steps of {} x {} at {} ({} up, {} down), {} things, "
      "targets: {} steps of {} at {}, losses {} {} {}",
      t.model.path, t.instance_prompt, t.adapter.variant, t.resolution.value_or(0), t.adapter_rank,
      fmt::join(t.adapter.target_modules, " "), t.network.to_json().dump(), t.max_train_steps,
      t.train_batch_size, t.pictures_per_identity, exact(t.learning_rate), t.lr_warmup_steps,
      t.lr_decay_steps, t.num_identities.value_or(0), t.targets.steps, t.targets.pictures,
      exact(t.targets.learning_rate), exact(t.weight_loss), exact(t.diffusion_loss),
      exact(t.prediction_penalty));
}

std::vector<double> Settings::rate_factors() const {
  std::vector<double> factors;
  for (double f = lowest_rate_factor; f <= highest_rate_factor; f *= 2) factors.push_back(f);
  return factors;
}

bool Settings::leaves_out(const std::string& name) const {
  return std::count(without.begin(), without.end(), name) > 0;
}

std::string Settings::to_string() const {
  return fmt::format(
      "{}; {}, {} and {} steps of {} pictures, rank {}; from '{}'; {} pictures of {} steps, "
      "guidance {}, on {}; {}; {} steps of the recogniser",
      data, tuning_steps, long_steps, inversion_steps, batch_size, rank, initializer, pictures,
      picture_steps, cli::format_exact(guidance_scale), fmt::join(backgrounds, " "),
      fmt::join(class_prompts, ", "), recogniser_steps);
}

std::vector<std::string> Settings::prompts(const std::string& shown_caption) const {
  std::vector<std::string> prompts;
  for (const auto& colour : backgrounds) {
    if (static_cast<int64_t>(prompts.size()) == pictures) break;
    if (shown_caption.find(" " + colour + " ") != std::string::npos) continue;
    prompts.push_back(fmt::format("{} on a {} background", train.instance_prompt, colour));
  }
  return prompts;
}

std::vector<Network> networks(const Settings& settings) {
  const auto& base = settings.train;
  if (settings.by_things()) return {with(settings, kMain, "the network given", base)};
  std::vector<Network> all{with(settings, kMain, "all identities, both losses, rank 1", base)};
  auto one = base;
  one.network.iterations(1);
  all.push_back(with(settings, kOnce, "k = 1", one));
  for (const auto count : settings.few) {
    auto fewer = base;
    fewer.num_identities = count;
    all.push_back(
        with(settings, fmt::format("few{}", count), fmt::format("{} identities", count), fewer));
  }
  auto pictures = base;
  pictures.targets.steps = 0;
  pictures.prediction_penalty = 1e-3;
  all.push_back(with(settings, "pictures", "no weight loss", pictures));
  auto weights = base;
  weights.diffusion_loss = 0;
  all.push_back(with(settings, "weights", "weight loss alone", weights));
  auto fused = base;
  fused.adapter.variant = "fused";
  all.push_back(with(settings, "fused", "core of Fused", fused));
  auto higher = base;
  higher.adapter_rank = settings.rank;
  all.push_back(with(settings, "higher", fmt::format("rank {}", settings.rank), higher));
  const auto left_out = [&](const Network& network) { return settings.leaves_out(network.name); };
  all.erase(std::remove_if(all.begin() + 1, all.end(), left_out), all.end());
  return all;
}

std::string Method::family() const {
  return fmt::format("{}-{}-{}-{}", word ? "word" : variant, relaxes ? "relaxed" : "own",
                     start == Start::zero ? "zero" : "started", points.back());
}

std::vector<Method> methods(const Settings& s) {
  const auto steps = s.tuning_steps, most = s.long_steps;
  const auto all = distinct({0, steps / 4, steps / 2, steps});
  const std::string after = fmt::format(" + {} relaxed steps", steps);
  // A network that learned from pictures alone knows no other adapter of a thing.
  const std::string nearest =
      s.by_things() ? "prediction for the nearest identity" : "nearest identity's adapter";
  std::vector<Method> methods{
      {kRelaxed, "hypernetwork" + after, kMain, Start::prediction, true, "light", false, all},
      {kContinued,
       fmt::format("no relaxing: {} steps of the prediction itself", steps),
       kMain,
       Start::prediction,
       false,
       "light",
       false,
       {steps}},
      {kZero, fmt::format("no hypernetwork: Light, {} steps", steps), "", Start::zero, false,
       "light", false, all},
      {kDreamBooth, fmt::format("LoRA DreamBooth, {} steps", steps), "", Start::zero, false,
       "classic", false, all},
      {kDreamBoothLong, fmt::format("LoRA DreamBooth, {} steps", most), "", Start::zero, false,
       "classic", false, distinct({most / 4, most / 2, most})},
      {kWord,
       fmt::format("textual inversion, {} steps", s.inversion_steps),
       "",
       Start::zero,
       false,
       "",
       true,
       {s.inversion_steps}},
      {kMean, "mean adapter" + after, kMain, Start::mean, true, "light", false, all},
      {kNearest, nearest + after, kMain, Start::nearest, true, "light", false, all},
      {kShuffled, "prediction for another picture" + after, kMain, Start::shuffled, true, "light",
       false, all}};
  methods.erase(std::remove_if(
                    methods.begin(), methods.end(),
                    [&](const Method& method) { return method.word && s.leaves_out(method.name); }),
                methods.end());
  for (const auto& network : networks(s)) {
    if (network.name == kMain) continue;
    // A core has no rank to relax: it is tuned as it is.
    const bool factors = network.options.adapter.variant != "fused";
    methods.push_back({network.name,
                       network.title + (factors ? after : fmt::format(" + {} steps", steps)),
                       network.name, Start::prediction, factors, network.options.adapter.variant,
                       false, distinct({0, steps})});
  }
  return methods;
}

}  // namespace hyperstudy
