// SPDX-License-Identifier: Apache-2.0
#include "training/adapters.h"

#include <lightlora/files.h>
#include <lightlora/variants/variants.h>
#include <torch/utils.h>

#include <algorithm>
#include <cstdlib>
#include <map>

namespace training {

namespace {

// The variants that a file for other programs can hold as low-rank factors.
std::vector<std::string> variant_names() {
  std::vector<std::string> names;
  for (const auto& variant : lightlora::variants()) {
    const auto probe = variant.make(lightlora::LoRAOptions(4), {"probe", 64, 64, {}});
    if (probe->has_factors()) names.push_back(variant.name);
  }
  return names;
}

struct Pattern {
  std::string name;
  double value;
};

// Patterns of the form NAME=NUMBER.
std::vector<Pattern> parse_patterns(const std::string& flag, const std::vector<std::string>& texts) {
  std::vector<Pattern> patterns;
  for (const auto& text : texts) {
    const auto equals = text.rfind('=');
    char* end = nullptr;
    const char* number = text.c_str() + (equals == std::string::npos ? 0 : equals + 1);
    const double value = std::strtod(number, &end);
    TORCH_CHECK_VALUE(equals != std::string::npos && equals > 0 && end != number && *end == '\0' &&
                          value > 0,
                      flag, ": expected NAME=NUMBER with a positive number, such as mid_block=8, got '",
                      text, "'");
    patterns.push_back({text.substr(0, equals), value});
  }
  return patterns;
}

lightlora::Patched patch_with_patterns(torch::nn::Module& model, const AdapterFlags& flags,
                                       const std::vector<std::string>& names) {
  lightlora::Targets targets(names);
  const auto ranks = parse_patterns("--rank_pattern", flags.rank_pattern);
  const auto alphas = parse_patterns("--alpha_pattern", flags.alpha_pattern);
  if (!ranks.empty() || !alphas.empty()) {
    for (const auto& path : targets.select(lightlora::adaptable_layers(model).targets)) {
      for (const auto& [name, value] : ranks) {
        if (names_layer(name, path)) targets.rank(path, static_cast<int64_t>(value));
      }
      for (const auto& [name, value] : alphas) {
        if (names_layer(name, path)) targets.alpha(path, value);
      }
    }
  }
  return lightlora::patch(model, flags.variant, flags.lora_options(), targets);
}

// The layer of that name in another state.
const lightlora::LayerState& layer_of(const lightlora::AdapterState& state,
                                      const lightlora::LayerState& like) {
  const auto found = std::find_if(state.begin(), state.end(), [&](const auto& layer) {
    return layer.layer.name == like.layer.name;
  });
  TORCH_CHECK(found != state.end(), "training: '", like.layer.name,
              "': expected this layer in the file of --init_from, got none");
  return *found;
}

// Two adapters of one variant, with factors `down` and `up`, as one: their ranks add up.
lightlora::LayerState joined(const lightlora::LayerState& first, const lightlora::LayerState& second) {
  lightlora::LayerState both = second;
  auto& down = both.trained.at("down");
  auto& up = both.trained.at("up");
  down = at::cat({first.trained.at("down"), down}, 0);
  up = at::cat({first.trained.at("up") * (first.scale / second.scale), up}, 1);
  both.options.rank(down.size(0));
  if (both.scale != 1) both.options.network_alpha(both.scale * static_cast<double>(down.size(0)));
  return both;
}

// The second of two that were joined.
lightlora::LayerState without(const lightlora::LayerState& first, const lightlora::LayerState& both) {
  lightlora::LayerState second = both;
  const int64_t rank = first.trained.at("down").size(0);
  auto& down = second.trained.at("down");
  auto& up = second.trained.at("up");
  TORCH_CHECK(down.size(0) > rank, "training: '", both.layer.name, "': expected a rank above ", rank,
              ", which is that of the file of --init_from, got ", down.size(0),
              "; hint: the checkpoint is of a run without --relax_rank");
  down = down.slice(0, rank).contiguous();
  up = up.slice(1, rank).contiguous();
  second.options.rank(down.size(0));
  return second;
}

void require_used(const std::string& flag, const std::vector<std::string>& texts,
                  const std::vector<lightlora::Patched>& models) {
  for (const auto& pattern : parse_patterns(flag, texts)) {
    bool used = false;
    for (const auto& model : models) {
      for (const auto& adapter : model->adapters()) {
        used = used || names_layer(pattern.name, adapter->layer().name);
      }
    }
    TORCH_CHECK(used, flag, " ", pattern.name,
                ": expected the name of an adapted layer or block, such as mid_block or ",
                "down_blocks.1, got one that no layer has");
  }
}

}  // namespace

bool names_layer(const std::string& pattern, const std::string& path) {
  return ("." + path + ".").find("." + pattern + ".") != std::string::npos;
}

void add_adapter_flags(cli::App& app, AdapterFlags& f) {
  app.group("Adapter");
  app.add_option("--init_from", f.init_from,
                 "Native file to go on from, in place of --init; variant, rank and bases are the file's");
  app.add_option("--relax_rank", f.relax_rank,
                 "With --init_from: add the file to the weights and train new adapters of this rank; "
                 "the result holds both")
      ->check(cli::at_least(1));
  app.add_option("--variant", f.variant, "Kind of adapter")->check(cli::one_of(variant_names()));
  app.add_option("--rank", f.rank, "Rank of the trained factors")->check(cli::at_least(1));
  app.add_option("--network_alpha", f.network_alpha,
                 "Scale times rank (default: the rank, so that the scale is 1)");
  app.add_option("--lora_dropout", f.lora_dropout,
                 "Share of each adapted layer's inputs that its adapter does not see, at random")
      ->check(cli::between(0, 0.99));
  app.add_option("--init", f.init, "Which factor starts at zero")
      ->check(cli::one_of({"up_zero", "down_zero", "both_zero"}));
  f.own.add_to(app, variant_names());
  app.add_option("--split_rank", f.split_rank,
                 "Rank of the exported file of a fused adapter (default: exact, its full rank)")
      ->check(cli::at_least(1));
  app.add_option("--target_modules", f.target_modules,
                 "Layers of the UNet by name or end of name; may be repeated");
  app.add_flag("--train_text_encoder", f.train_text_encoder, "Adapters in the text encoder too");
  app.add_option("--text_encoder_target_modules", f.text_encoder_target_modules,
                 "Layers of the text encoder by name or end of name; may be repeated");
  app.add_option("--text_encoder_lr", f.text_encoder_lr,
                 "Peak learning rate of the text encoder's adapters (default: --learning_rate)")
      ->check(cli::above(0));
  app.add_option("--rank_pattern", f.rank_pattern,
                 "Another rank for a block or layer, as mid_block=8; may be repeated");
  app.add_option("--alpha_pattern", f.alpha_pattern,
                 "Another network_alpha for a block or layer, as mid_block=4; may be repeated");
  app.add_option("--rate_pattern", f.rate_pattern,
                 "Factor of the learning rate for a block or layer, as up_blocks.3=0.5; may be "
                 "repeated");
  app.add_option("--loraplus_lr_ratio", f.loraplus_lr_ratio,
                 "LoRA+: factor of the learning rate of the up factors, usually 4 to 16")
      ->check(cli::above(0));
}

void AdapterFlags::check() const {
  TORCH_CHECK_VALUE(!relax_rank || !init_from.empty(),
                    "--relax_rank: expected --init_from beside it, got none");
  TORCH_CHECK_VALUE(!split_rank || variant == "fused",
                    "--split_rank: expected --variant fused, got ", variant,
                    "; hint: other variants are exported at their own rank");
  TORCH_CHECK_VALUE(variant != "fused" || init == "up_zero",
                    "--init: expected none with --variant fused, whose core always starts at ",
                    "zero, got ", init);
  TORCH_CHECK_VALUE(variant != "fused" || !loraplus_lr_ratio,
                    "--loraplus_lr_ratio: expected --variant classic or light, got fused, whose ",
                    "core has no up factor");
  TORCH_CHECK_VALUE(train_text_encoder || !text_encoder_lr,
                    "--text_encoder_lr: expected --train_text_encoder beside it, got none");
  for (const auto& pattern : parse_patterns("--rank_pattern", rank_pattern)) {
    TORCH_CHECK_VALUE(pattern.value == static_cast<double>(static_cast<int64_t>(pattern.value)),
                      "--rank_pattern ", pattern.name, ": expected a whole number, got ",
                      pattern.value);
  }
  parse_patterns("--alpha_pattern", alpha_pattern);
  parse_patterns("--rate_pattern", rate_pattern);
  if (init_from.empty()) own.of(variant);
}

lightlora::Components AdapterFlags::read_start() {
  if (init_from.empty()) return {};
  auto start = lightlora::read_adapters(init_from).components;
  TORCH_CHECK(start.count("unet") && !start["unet"].empty(), "--init_from '", init_from,
              "': expected adapters of a UNet, got none");
  TORCH_CHECK((start.count("text_encoder") > 0) == train_text_encoder, "--init_from '", init_from,
              "': expected adapters of the text encoder if and only if --train_text_encoder is given, got ",
              train_text_encoder ? "none" : "some");
  const auto& first = start["unet"].front();
  TORCH_CHECK(!relax_rank || first.variant == "light" || first.variant == "classic", "--relax_rank: ",
              "expected a light or classic adapter in '", init_from, "', got a ", first.variant, " one");
  variant = first.variant;
  rank = relax_rank.value_or(first.options.rank());
  own.set_all(first.options.own());
  if (!relax_rank) network_alpha = first.options.network_alpha();
  return start;
}

// Light's first steps move the weights far less than Classic's at one rate: its step does not grow
// with the layer's width.
double AdapterFlags::usual_rate() const { return variant == "classic" ? 5e-4 : 2e-3; }

lightlora::LoRAOptions AdapterFlags::lora_options() const {
  return lightlora::LoRAOptions(rank)
      .network_alpha(network_alpha)
      .dropout(lora_dropout)
      .init(lightlora::parse_init(init))
      .own(own.of(variant));
}

Adapters::Adapters(const AdapterFlags& flags, torch::nn::Module& unet,
                   torch::nn::Module* text_encoder, uint64_t seed, lightlora::Components start)
    : flags_(flags), start_(std::move(start)) {
  torch::manual_seed(seed);
  unet_ = make("unet", unet, flags.target_modules);
  if (flags.train_text_encoder) {
    text_encoder_ = make("text_encoder", *text_encoder, flags.text_encoder_target_modules);
  }
  require_used("--rank_pattern", flags.rank_pattern, all());
  require_used("--alpha_pattern", flags.alpha_pattern, all());
  require_used("--rate_pattern", flags.rate_pattern, all());
}

lightlora::Patched Adapters::make(const std::string& component, torch::nn::Module& model,
                                  const std::vector<std::string>& names) {
  if (start_.empty()) return patch_with_patterns(model, flags_, names);
  auto lora = lightlora::patch(model, start_.at(component));
  if (!flags_.relax_rank) return lora;
  lora->merge_and_unload(/*safe=*/true);
  std::vector<std::string> layers;
  for (const auto& layer : start_.at(component)) layers.push_back(layer.layer.name);
  return patch_with_patterns(model, flags_, layers);
}

std::vector<lightlora::Patched> Adapters::all() const {
  std::vector<lightlora::Patched> models{unet_};
  if (text_encoder_) models.push_back(text_encoder_);
  return models;
}

std::vector<ParameterGroup> Adapters::groups(double learning_rate) const {
  const auto patterns = parse_patterns("--rate_pattern", flags_.rate_pattern);
  std::map<double, ParameterGroup> by_factor;
  const auto add = [&](const lightlora::Patched& model, double factor) {
    for (const auto& adapter : model->adapters()) {
      double of_layer = factor;
      for (const auto& pattern : patterns) {
        if (names_layer(pattern.name, adapter->layer().name)) of_layer *= pattern.value;
      }
      for (const auto& item : adapter->trained()) {
        const double ratio = adapter->is_up_side(item.key()) ? flags_.loraplus_lr_ratio.value_or(1) : 1;
        auto& group = by_factor[of_layer * ratio];
        group.rate_factor = of_layer * ratio;
        group.name = "rate x " + std::to_string(group.rate_factor);
        group.parameters.push_back(item.value());
      }
    }
  };
  add(unet_, 1);
  if (text_encoder_) add(text_encoder_, flags_.text_encoder_lr.value_or(learning_rate) / learning_rate);
  std::vector<ParameterGroup> groups;
  for (auto& item : by_factor) groups.push_back(std::move(item.second));
  return groups;
}

lightlora::Components Adapters::state() const {
  lightlora::Components state{{"unet", unet_->state()}};
  if (text_encoder_) state["text_encoder"] = text_encoder_->state();
  if (!flags_.relax_rank) return state;
  for (auto& [component, layers] : state) {
    for (auto& layer : layers) layer = joined(layer_of(start_.at(component), layer), layer);
  }
  return state;
}

void Adapters::load_state(const lightlora::Components& state) {
  const auto part = [&](const std::string& name) {
    const auto found = state.find(name);
    TORCH_CHECK(found != state.end(), "training: expected adapters of the ", name,
                " in the checkpoint, got none; hint: was it trained with --train_text_encoder?");
    lightlora::AdapterState layers = found->second;
    if (flags_.relax_rank) {
      for (auto& layer : layers) layer = without(layer_of(start_.at(name), layer), layer);
    }
    return layers;
  };
  unet_->assign(part("unet"));
  if (text_encoder_) text_encoder_->assign(part("text_encoder"));
}

}  // namespace training
