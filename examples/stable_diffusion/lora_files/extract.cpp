// SPDX-License-Identifier: Apache-2.0
#include "lora_files/extract.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>
#include <utility>

#include "pipeline/pipeline.h"
#include "support/cli/fmt.h"
#include "support/cli/progress.h"

namespace lora_files {
namespace {

// Where two models of one architecture differ.
struct Differences {
  std::vector<std::string> selected;  // layers, in the model's order
  std::vector<std::string> others;    // layers and tensors
};

std::string layer_of(const std::string& parameter) {
  return parameter.substr(0, parameter.rfind('.'));
}

Differences compare(torch::nn::Module& base, torch::nn::Module& tuned,
                    const std::vector<std::string>& names) {
  const auto layers = lightlora::adaptable_layers(base);
  const auto paths = lightlora::Targets(names).select(layers.targets);
  const std::set<std::string> wanted(paths.begin(), paths.end());
  const auto after = tuned.named_parameters();
  Differences result;
  for (const auto& item : base.named_parameters()) {
    const auto* other = after.find(item.key());
    if (other != nullptr && at::equal(item.value(), *other)) continue;
    const std::string layer = layer_of(item.key());
    const bool is_weight = item.key() == layer + ".weight";
    (is_weight && wanted.count(layer) ? result.selected : result.others)
        .push_back(is_weight ? layer : item.key());
  }
  return result;
}

double squared_norm(const at::Tensor& matrix) {
  return matrix.to(at::kDouble).square().sum().item<double>();
}

// The squared norm of up * down, from the small products of each factor with itself.
double squared_norm(const lightlora::LayerState& layer) {
  const at::Tensor down = layer.trained.at("down").to(at::kDouble).flatten(1);
  const at::Tensor up = layer.trained.at("up").to(at::kDouble).flatten(1);
  return (up.t().mm(up) * down.mm(down.t())).sum().item<double>();
}

// Sums over all layers, of what is kept and of what there was.
struct Energy {
  double kept = 0, whole = 0;
};

class Extractor {
 public:
  Extractor(const ExtractOptions& options, Extracted& result)
      : options_(options), result_(result) {}

  void take(const std::string& component, torch::nn::Module& base, torch::nn::Module& tuned,
            const std::vector<std::string>& names) {
    const auto differences = compare(base, tuned, names);
    if (!differences.others.empty()) {
      result_.notices.push_back(
          fmt::format("{} other tensors of the {} differ too, the first is '{}'; layers among them "
                      "can be asked for "
                      "by name, biases and norms have no place in a LoRA",
                      differences.others.size(), component, differences.others.front()));
    }
    if (differences.selected.empty()) return;
    cli::Progress progress("Extracting the " + component,
                           static_cast<int64_t>(differences.selected.size()));
    const auto before = base.named_parameters(), after = tuned.named_parameters();
    auto& state = result_.components[component];
    for (const auto& layer : differences.selected) {
      const lightlora::Pattern exactly(layer,
                                       [&](const std::string& path) { return path == layer; });
      state.push_back(lightlora::extract(base, tuned, {exactly}, options_.keep).front());
      energy_.whole += squared_norm(after[layer + ".weight"].to(at::kDouble) -
                                    before[layer + ".weight"].to(at::kDouble));
      progress.update(static_cast<int64_t>(state.size()));
    }
    progress.finish();
  }

  void finish() {
    TORCH_CHECK(!result_.components.empty(), "'", options_.tuned,
                "': expected a model that differs ", "from '", options_.base.path,
                "' in the selected layers, got equal ones; hint: ",
                result_.notices.empty() ? "is it the right file?" : result_.notices.front());
    for (const auto& [component, state] : result_.components) {
      for (const auto& layer : state) energy_.kept += squared_norm(layer);
    }
    result_.kept = std::min(energy_.kept / energy_.whole, 1.0);
  }

 private:
  const ExtractOptions& options_;
  Extracted& result_;
  Energy energy_;
};

sd::StableDiffusion load(const std::string& model, const ExtractOptions& options, bool unet) {
  auto load = options.base.load;
  load.pack_weights(sd::PackWeights::off).load_unet(unet).load_vae(false).load_text_encoder(!unet);
  // It is for the one of the two that is a file.
  const bool other_is_file = !std::filesystem::is_directory(options.base.path) ||
                             !std::filesystem::is_directory(options.tuned);
  if (std::filesystem::is_directory(model) && other_is_file) load.model_config("");
  return sd::StableDiffusion(model, load);
}

}  // namespace

Extracted extract(const ExtractOptions& options) {
  Extracted result;
  Extractor extractor(options, result);
  {
    auto base = load(options.base.path, options, /*unet=*/true);
    auto tuned = load(options.tuned, options, /*unet=*/true);
    extractor.take("unet", *base.unet(), *tuned.unet(), options.unet);
  }
  auto base = load(options.base.path, options, /*unet=*/false);
  auto tuned = load(options.tuned, options, /*unet=*/false);
  TORCH_CHECK(base.text_encoders() == tuned.text_encoders(), "'", options.tuned,
              "': expected a model of the family of '", options.base.path, "', got another one");
  for (size_t i = 0; i < base.text_encoders(); ++i) {
    extractor.take(i == 0 ? "text_encoder" : "text_encoder_2", *base.text_encoder(i),
                   *tuned.text_encoder(i), options.text_encoder);
  }
  extractor.finish();
  return result;
}

}  // namespace lora_files
