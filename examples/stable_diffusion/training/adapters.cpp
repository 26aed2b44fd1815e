// SPDX-License-Identifier: Apache-2.0
#include "training/adapters.h"

#include <lightlora/files.h>
#include <lightlora/regex.h>
#include <torch/utils.h>

#include <algorithm>
#include <cstdlib>
#include <map>

#include "support/cli/fmt.h"

namespace training {

namespace {

// The biases of layers with these names.
lightlora::Pattern biases_of(const std::vector<std::string>& names) {
  return {"the biases of the adapted layers", [names](const lightlora::TargetLayer& layer) {
            return layer.type == "Bias" &&
                   std::any_of(names.begin(), names.end(), [&](const std::string& name) {
                     return lightlora::Pattern(name + ".bias").selects(layer);
                   });
          }};
}

// Of the weights and biases of norms, and of biases.
bool has_vectors(const lightlora::AdapterState& state) {
  return std::any_of(state.begin(), state.end(),
                     [](const auto& layer) { return layer.layer.is_vector(); });
}

// What says which variant a state is of: norms and biases may train beside it.
const lightlora::LayerState& first_layer(const lightlora::AdapterState& state) {
  const auto found = std::find_if(state.begin(), state.end(),
                                  [](const auto& layer) { return !layer.layer.is_vector(); });
  return found == state.end() ? state.front() : *found;
}

// A pattern may be about one of several models; that it is about none is found by `require_used`.
lightlora::Patched patch_with_patterns(torch::nn::Module& model, const AdapterOptions& options,
                                       const std::vector<std::string>& names) {
  lightlora::Targets targets(names);
  const auto layers = lightlora::adaptable_layers(model).targets;
  const auto is_here = [&](const PathPattern& pattern) {
    return std::any_of(layers.begin(), layers.end(),
                       [&](const auto& layer) { return pattern.pattern().selects(layer); });
  };
  for (const auto& [pattern, value] : parse_patterns("--rank_pattern", options.rank_pattern)) {
    if (is_here(pattern)) targets.rank(pattern.pattern(), static_cast<int64_t>(value));
  }
  for (const auto& [pattern, value] : parse_patterns("--alpha_pattern", options.alpha_pattern)) {
    if (is_here(pattern)) targets.alpha(pattern.pattern(), value);
  }
  if (options.train_norms) targets.vectors({lightlora::Targets::norms()});
  if (options.train_biases) targets.vectors({biases_of(names)});
  return lightlora::patch(model, options.variant, options.all(), targets);
}

// The layer of that name in another state.
const lightlora::LayerState& layer_of(const lightlora::AdapterState& state,
                                      const lightlora::LayerState& like) {
  const auto found = std::find_if(state.begin(), state.end(), [&](const auto& layer) {
    return layer.layer.name == like.layer.name;
  });
  TORCH_CHECK(found != state.end(), "'", like.layer.name,
              "': expected this layer in the file of --init_from, got none");
  return *found;
}

// Two adapters of one variant, with factors `down` and `up`, as one: their ranks add up.
lightlora::LayerState join_layers(const lightlora::LayerState& first,
                                  const lightlora::LayerState& second) {
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
lightlora::LayerState take_off(const lightlora::LayerState& first,
                               const lightlora::LayerState& both) {
  lightlora::LayerState second = both;
  const int64_t rank = first.trained.at("down").size(0);
  auto& down = second.trained.at("down");
  auto& up = second.trained.at("up");
  TORCH_CHECK(down.size(0) > rank, "'", both.layer.name, "': expected a rank above ", rank,
              ", which is that of the file of --init_from, got ", down.size(0),
              "; hint: the checkpoint is of a run without --relax_rank");
  down = down.slice(0, rank).contiguous();
  up = up.slice(1, rank).contiguous();
  second.options.rank(down.size(0));
  return second;
}

template <typename Combine>
lightlora::Components layer_by_layer(const lightlora::Components& start,
                                     lightlora::Components state, const Combine& combine) {
  for (auto& [component, layers] : state) {
    const auto found = start.find(component);
    TORCH_CHECK(found != start.end(), "expected adapters of the ", component,
                " in the file of --init_from, got none");
    for (auto& layer : layers) layer = combine(layer_of(found->second, layer), layer);
  }
  return state;
}

void require_used(const std::string& flag, const std::vector<std::string>& texts,
                  const sd::PipelineAdapters& adapters) {
  for (const auto& [pattern, value] : parse_patterns(flag, texts)) {
    bool used = false;
    for (const auto& model : adapters.all()) {
      for (const auto& adapter : model->adapters()) {
        used = used || pattern.matches(adapter->layer().name);
      }
    }
    TORCH_CHECK(
        used, flag, " ", pattern.text(),
        ": expected a pattern for the path of an adapted layer or its end, got one that no layer ",
        "has; hint: to_k, or mid_block.* for everything below mid_block");
  }
}

// Files do not say what was left out at random.
lightlora::AdapterState with_dropout(lightlora::AdapterState state,
                                     const lightlora::LoRAOptions& options) {
  for (auto& layer : state) {
    layer.options.dropout(options.dropout())
        .rank_dropout(options.rank_dropout())
        .module_dropout(options.module_dropout());
  }
  return state;
}

lightlora::Patched adapt(const std::string& component, torch::nn::Module& model,
                         const AdapterOptions& options, const std::vector<std::string>& names,
                         const lightlora::Components& start) {
  if (start.empty()) return patch_with_patterns(model, options, names);
  if (!options.relax_rank) {
    return lightlora::patch(model, with_dropout(start.at(component), options.lora));
  }
  auto lora = lightlora::patch(model, start.at(component));
  lora->merge_and_unload(/*safe=*/true);
  std::vector<std::string> layers;
  for (const auto& layer : start.at(component)) layers.push_back(layer.layer.name);
  return patch_with_patterns(model, options, layers);
}

}  // namespace

namespace {

lightlora::Pattern from_any_dot(const std::string& text) {
  lightlora::matches(text);  // an error then names what was given
  const auto whole = lightlora::matches("(?:.*\\.)?(?:" + text + ")");
  return {text, [whole](const lightlora::TargetLayer& layer) { return whole.selects(layer); }};
}

}  // namespace

PathPattern::PathPattern(std::string text)
    : text_(std::move(text)), pattern_(from_any_dot(text_)) {}

std::vector<std::pair<PathPattern, double>> parse_patterns(const std::string& flag,
                                                           const std::vector<std::string>& texts) {
  std::vector<std::pair<PathPattern, double>> patterns;
  for (const auto& text : texts) {
    const auto equals = text.rfind('=');
    char* end = nullptr;
    const char* number = text.c_str() + (equals == std::string::npos ? 0 : equals + 1);
    const double value = std::strtod(number, &end);
    TORCH_CHECK_VALUE(
        equals != std::string::npos && equals > 0 && end != number && *end == '\0' && value > 0,
        flag, ": expected PATTERN=NUMBER with a positive number, such as mid_block.*=8, ", "got '",
        text, "'");
    patterns.emplace_back(PathPattern(text.substr(0, equals)), value);
  }
  return patterns;
}

lightlora::Components read_start(const AdapterOptions& options) {
  if (options.init_from.empty()) return {};
  auto start = lightlora::read_adapters(options.init_from).components;
  TORCH_CHECK(start.count("unet") && !start["unet"].empty(), "--init_from '", options.init_from,
              "': expected adapters of a UNet, got none");
  TORCH_CHECK((start.count("text_encoder") > 0) == options.train_text_encoder, "--init_from '",
              options.init_from, "': expected adapters of the text encoder if and only if ",
              "--train_text_encoder is given, got ", options.train_text_encoder ? "none" : "some");
  const auto& variant = first_layer(start["unet"]).variant;
  TORCH_CHECK(!options.relax_rank || variant == "light" || variant == "classic",
              "--relax_rank: ", "expected a light or classic adapter in '", options.init_from,
              "', got a ", variant, " one");
  for (const auto& item : start) {
    TORCH_CHECK(!options.relax_rank || !has_vectors(item.second),
                "--relax_rank cannot be combined with '", options.init_from,
                "', which holds norms or biases: they have no ranks to join");
  }
  const auto& own = first_layer(start["unet"]).options.own();
  TORCH_CHECK(!options.relax_rank || own.count("channel_scaling") == 0,
              "--relax_rank cannot be combined with '", options.init_from,
              "', whose channels are scaled; hint: convert it --to kohya and go on from that");
  const auto begun = own.find("init_lora_weights");
  TORCH_CHECK(!options.relax_rank || begun == own.end(), "--relax_rank cannot be combined with '",
              options.init_from, "', whose adapters started as ",
              begun == own.end() ? "" : begun->second,
              ": their factors are not the delta; hint: convert it --to kohya and go on from that");
  return start;
}

AdapterOptions with_start(AdapterOptions options, const lightlora::Components& start) {
  if (start.empty()) return options;
  const auto& first = first_layer(start.at("unet"));
  options.variant = first.variant;
  options.lora.rank(options.relax_rank.value_or(first.options.rank())).own(first.options.own());
  options.own = OwnFlags();
  if (!options.relax_rank) options.lora.network_alpha(first.options.network_alpha());
  return options;
}

// Light's first steps move the weights far less than Classic's at one rate: its step does not grow
// with the layer's width.
double usual_rate(const AdapterOptions& options) {
  // Whole differences are what diffusers' train_dreambooth trains.
  if (options.variant == "full") return 5e-6;
  return options.variant == "classic" ? 5e-4 : 2e-3;
}

sd::PipelineAdapters add_adapters(const AdapterOptions& options, torch::nn::Module& unet,
                                  const std::vector<torch::nn::Module*>& text_encoders,
                                  uint64_t seed, const lightlora::Components& start) {
  torch::manual_seed(seed);
  sd::PipelineAdapters adapters;
  adapters.unet = adapt("unet", unet, options, options.target_modules, start);
  for (size_t i = 0; i < text_encoders.size(); ++i) {
    const std::string component = i == 0 ? "text_encoder" : "text_encoder_2";
    TORCH_CHECK(start.empty() || start.count(component) > 0, "--init_from '", options.init_from,
                "': expected adapters of the ", component, ", got none; hint: the file is for ",
                "another kind of model");
    adapters.of_text_encoder(i) =
        adapt(component, *text_encoders[i], options, options.text_encoder_target_modules, start);
  }
  require_used("--rank_pattern", options.rank_pattern, adapters);
  require_used("--alpha_pattern", options.alpha_pattern, adapters);
  require_used("--rate_pattern", options.rate_pattern, adapters);
  return adapters;
}

std::vector<ParameterGroup> parameter_groups(const sd::PipelineAdapters& adapters,
                                             const AdapterOptions& options, double learning_rate) {
  const auto patterns = parse_patterns("--rate_pattern", options.rate_pattern);
  std::map<double, ParameterGroup> by_factor;
  const auto add = [&](const lightlora::Patched& model, double factor) {
    for (const auto& adapter : model->adapters()) {
      double of_layer = factor;
      for (const auto& [pattern, value] : patterns) {
        if (pattern.matches(adapter->layer().name)) of_layer *= value;
      }
      for (const auto& item : adapter->trained()) {
        const double ratio =
            adapter->is_up_side(item.key()) ? options.loraplus_lr_ratio.value_or(1) : 1;
        auto& group = by_factor[of_layer * ratio];
        group.rate_factor = of_layer * ratio;
        group.name = fmt::format("rate x {}", group.rate_factor);
        group.parameters.push_back(item.value());
      }
    }
  };
  add(adapters.unet, 1);
  for (const auto& text_encoder : {adapters.text_encoder, adapters.text_encoder_2}) {
    if (!text_encoder) continue;
    add(text_encoder, options.text_encoder_lr.value_or(learning_rate) / learning_rate);
  }
  std::vector<ParameterGroup> groups;
  for (auto& item : by_factor) groups.push_back(std::move(item.second));
  return groups;
}

lightlora::Components joined(const lightlora::Components& start,
                             const lightlora::Components& state) {
  return layer_by_layer(start, state, join_layers);
}

lightlora::Components without(const lightlora::Components& start,
                              const lightlora::Components& both) {
  return layer_by_layer(start, both, take_off);
}

}  // namespace training
