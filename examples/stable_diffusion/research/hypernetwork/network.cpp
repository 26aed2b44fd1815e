// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork/network.h"

#include <ATen/ATen.h>
#include <torch/nn/init.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/fused_attention.h"
#include "support/files/json_file.h"

namespace hypernetwork {
namespace {

// What a network says at first is next to nothing, as in the public reproductions of the paper.
constexpr double kFirstOutputs = 1e-3;
constexpr const char* kOptions = "hypernetwork";

// The least that a network of these sizes has, also where sizes are so large that integers overflow.
double least_parameters(const HyperNetworkOptions& o) {
  const auto width = static_cast<double>(o.width()), grid = static_cast<double>(o.grid());
  const double patch = std::floor(static_cast<double>(o.side()) / grid);
  const auto layers = static_cast<double>(o.layers().size());
  double most = 0;
  for (const auto& layer : o.layers()) most = std::max(most, static_cast<double>(layer.values));
  const double blocks =
      width * width *
      (12 * static_cast<double>(o.encoder_layers()) + 16 * static_cast<double>(o.decoder_layers()));
  return blocks + width * (grid * grid + patch * patch * static_cast<double>(o.channels())) +
         layers * width * most;
}

// A few bytes that claim sizes take no more memory and time than the tensors beside them stand for.
void check_claims(const HyperNetworkFile& file, const std::string& path) {
  try {
    file.options.check();
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "'", path, "': ", error.what_without_backtrace());
  }
  int64_t held = 0;
  for (const auto& [name, tensor] : file.tensors) held += tensor.numel();
  TORCH_CHECK(least_parameters(file.options) <= static_cast<double>(held), "'", path,
              "': expected tensors for the sizes that the file says, got ", held,
              " values; hint: a damaged file? Download it again");
}

}  // namespace

int64_t HyperNetworkOptions::values() const {
  int64_t count = 0;
  for (const auto& layer : layers_) count += layer.values;
  return count;
}

void HyperNetworkOptions::check() const {
  TORCH_CHECK_VALUE(!layers_.empty(), "hypernetwork: expected layers to predict, got none");
  for (const auto& layer : layers_) {
    TORCH_CHECK_VALUE(layer.values > 0, "hypernetwork: expected layer '", layer.path,
                      "' to have values to predict, got ", layer.values);
  }
  TORCH_CHECK_VALUE(channels_ > 0, "hypernetwork: expected latents with channels, got ", channels_);
  TORCH_CHECK_VALUE(heads_ > 0 && width_ > 0 && width_ % heads_ == 0,
                    "hypernetwork: expected a width that the heads divide, got ", width_, " and ",
                    heads_, " heads");
  TORCH_CHECK_VALUE(grid_ > 0 && side_ >= grid_ && side_ % grid_ == 0,
                    "hypernetwork: expected a grid that divides the latents' side, got ", grid_,
                    " and ", side_);
  TORCH_CHECK_VALUE(
      iterations_ > 0 && decoder_layers_ > 0 && encoder_layers_ >= 0,
      "hypernetwork: expected at least one iteration and one layer of the decoder, got ",
      iterations_, " and ", decoder_layers_);
  TORCH_CHECK_VALUE(iterations_ <= kMostIterations, "hypernetwork: expected at most ",
                    kMostIterations, " iterations, got ", iterations_);
}

nlohmann::json HyperNetworkOptions::to_json() const {
  nlohmann::json layers = nlohmann::json::array();
  for (const auto& layer : layers_) layers.push_back({layer.path, layer.values});
  return {{"channels", channels_},
          {"side", side_},
          {"grid", grid_},
          {"width", width_},
          {"heads", heads_},
          {"encoder_layers", encoder_layers_},
          {"decoder_layers", decoder_layers_},
          {"iterations", iterations_},
          {"layers", layers}};
}

HyperNetworkOptions HyperNetworkOptions::from_json(const nlohmann::json& json) {
  std::vector<PredictedLayer> layers;
  for (const auto& layer : json.at("layers")) layers.push_back({layer.at(0), layer.at(1)});
  return HyperNetworkOptions()
      .channels(json.at("channels"))
      .side(json.at("side"))
      .grid(json.at("grid"))
      .width(json.at("width"))
      .heads(json.at("heads"))
      .encoder_layers(json.at("encoder_layers"))
      .decoder_layers(json.at("decoder_layers"))
      .iterations(json.at("iterations"))
      .layers(std::move(layers));
}

TransformerBlockImpl::TransformerBlockImpl(int64_t width, int64_t heads, bool reads_picture)
    : heads_(heads) {
  using torch::nn::LayerNorm;
  using torch::nn::LayerNormOptions;
  using torch::nn::Linear;
  norm1 = register_module("norm1", LayerNorm(LayerNormOptions({width})));
  query = register_module("query", Linear(width, width));
  key_value = register_module("key_value", Linear(width, 2 * width));
  out = register_module("out", Linear(width, width));
  if (reads_picture) {
    norm2 = register_module("norm2", LayerNorm(LayerNormOptions({width})));
    cross_query = register_module("cross_query", Linear(width, width));
    cross_key_value = register_module("cross_key_value", Linear(width, 2 * width));
    cross_out = register_module("cross_out", Linear(width, width));
  }
  norm3 = register_module("norm3", LayerNorm(LayerNormOptions({width})));
  expand = register_module("expand", Linear(width, 4 * width));
  contract = register_module("contract", Linear(4 * width, width));
}

at::Tensor TransformerBlockImpl::attend(torch::nn::Linear& query_of,
                                        torch::nn::Linear& key_value_of, torch::nn::Linear& out_of,
                                        const at::Tensor& x, const at::Tensor& context) const {
  const auto both = key_value_of(context).chunk(2, /*dim=*/-1);
  return out_of(sd::fused_attention(query_of(x), both[0], both[1], heads_));
}

at::Tensor TransformerBlockImpl::forward(at::Tensor x, const at::Tensor& picture) {
  const auto first = norm1(x);
  x = x + attend(query, key_value, out, first, first);
  if (cross_query) x = x + attend(cross_query, cross_key_value, cross_out, norm2(x), picture);
  return x + contract(at::gelu(expand(norm3(x))));
}

HyperNetworkImpl::HyperNetworkImpl(HyperNetworkOptions given) : options(std::move(given)) {
  using torch::nn::Linear;
  options.check();
  const int64_t width = options.width(), layers = static_cast<int64_t>(options.layers().size());
  const int64_t patch = options.side() / options.grid();
  for (const auto& layer : options.layers()) most_ = std::max(most_, layer.values);
  const int64_t values = options.values();
  mean = register_buffer("mean", at::zeros({values}));
  spread = register_buffer("spread", at::ones({values}));
  patches = register_module(
      "patches",
      torch::nn::Conv2d(torch::nn::Conv2dOptions(options.channels(), width, patch).stride(patch)));
  const auto small = [](at::IntArrayRef sizes, double size) { return at::randn(sizes) * size; };
  place = register_parameter("place", small({options.grid() * options.grid(), width}, 0.02));
  layer_place = register_parameter("layer_place", small({layers, width}, 0.02));
  encoder = register_module("encoder", torch::nn::ModuleList());
  decoder = register_module("decoder", torch::nn::ModuleList());
  for (int64_t i = 0; i < options.encoder_layers(); ++i) {
    encoder->push_back(TransformerBlock(width, options.heads(), /*reads_picture=*/false));
  }
  for (int64_t i = 0; i < options.decoder_layers(); ++i) {
    decoder->push_back(TransformerBlock(width, options.heads(), /*reads_picture=*/true));
  }
  const torch::nn::LayerNormOptions norm({width});
  encoded_norm = register_module("encoded_norm", torch::nn::LayerNorm(norm));
  out_norm = register_module("out_norm", torch::nn::LayerNorm(norm));
  in = register_module("in", Linear(most_, width));
  out_weight = register_parameter("out_weight", small({layers, width, most_}, kFirstOutputs));
  out_bias = register_parameter("out_bias", at::zeros({layers, 1, most_}));
  std::vector<int64_t> chosen;
  for (int64_t i = 0; i < layers; ++i) {
    for (int64_t k = 0; k < options.layers()[static_cast<size_t>(i)].values; ++k) {
      chosen.push_back(i * most_ + k);
    }
  }
  chosen_ = at::tensor(chosen, at::kLong);
}

void HyperNetworkImpl::set_scale(const at::Tensor& values_mean, const at::Tensor& values_spread) {
  const torch::NoGradGuard no_grad;
  mean.copy_(values_mean);
  spread.copy_(values_spread);
}

at::Tensor HyperNetworkImpl::encode(const at::Tensor& latents) {
  at::Tensor x = patches(latents).flatten(2).transpose(1, 2) + place;
  for (const auto& block : *encoder) x = block->as<TransformerBlock>()->forward(x);
  return encoded_norm(x);
}

at::Tensor HyperNetworkImpl::forward(const at::Tensor& latents, int64_t iterations) {
  const int64_t batch = latents.size(0), layers = layer_place.size(0);
  const at::Tensor picture = encode(latents.to(place.scalar_type()));
  at::Tensor estimate = at::zeros({batch, layers, most_}, picture.options());
  const int64_t count = iterations < 0 ? options.iterations() : iterations;
  for (int64_t k = 0; k < count; ++k) {
    at::Tensor x = in(estimate) + layer_place;
    for (const auto& block : *decoder) x = block->as<TransformerBlock>()->forward(x, picture);
    // Each layer has an output of its own.
    const at::Tensor step = at::baddbmm(out_bias, out_norm(x).transpose(0, 1), out_weight);
    estimate = estimate + step.transpose(0, 1);
  }
  const at::Tensor flat = estimate.flatten(1).to(at::kFloat);
  return mean + spread * flat.index_select(1, chosen_.to(flat.device()));
}

void save_network(const HyperNetworkFile& file, const std::string& path, at::ScalarType dtype) {
  lightlora::TensorMap tensors;
  for (const auto& [name, tensor] : file.tensors) {
    const bool is_scale = name == "mean" || name == "spread";
    tensors[name] = tensor.detach().to(at::kCPU, is_scale ? at::kFloat : dtype).contiguous();
  }
  lightlora::Metadata all = file.metadata;
  all[kOptions] = file.options.to_json().dump();
  lightlora::save_safetensors(path, tensors, all);
}

HyperNetworkFile read_network(const std::string& path) {
  const lightlora::SafetensorsFile file(path);
  HyperNetworkFile result;
  result.metadata = file.metadata();
  const auto found = result.metadata.find(kOptions);
  TORCH_CHECK(found != result.metadata.end(), "'", path,
              "': expected a hypernetwork of train_hypernetwork, got a file without its sizes; ",
              "hint: a LoRA is for text_to_image --lora");
  const auto sizes = sd::parse_json(
      found->second,
      "'" + path + "': expected the sizes of a hypernetwork; metadata '" + kOptions + "'");
  try {
    result.options = HyperNetworkOptions::from_json(sizes);
  } catch (const nlohmann::json::exception&) {  // its words are for who writes programs
    TORCH_CHECK(false, "'", path, "': expected the sizes of a hypernetwork, got others; ",
                "hint: a file of another version, or a damaged one?");
  }
  result.metadata.erase(kOptions);
  result.tensors = file.load_all();
  check_claims(result, path);
  return result;
}

HyperNetwork make_network(const HyperNetworkFile& file, const std::string& path) {
  const torch::NoGradGuard no_grad;
  HyperNetwork network(file.options);
  auto named = network->named_parameters();
  for (const auto& buffer : network->named_buffers()) named.insert(buffer.key(), buffer.value());
  for (auto& item : named) {
    const auto found = file.tensors.find(item.key());
    TORCH_CHECK(found != file.tensors.end() && found->second.sizes() == item.value().sizes(), "'",
                path, "': expected '", item.key(), "' of shape ", item.value().sizes(), ", got ",
                found == file.tensors.end() ? "none" : c10::str(found->second.sizes()));
    item.value().copy_(found->second);
  }
  network->eval();
  return network;
}

}  // namespace hypernetwork
