// SPDX-License-Identifier: Apache-2.0
#include "models/tiny_decoder.h"

#include <ATen/ATen.h>
#include <lightlora/file_io.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/upsampling.h>

#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "models/config.h"
#include "models/weights.h"
#include "support/cli/fmt.h"
#include "support/files/json_file.h"

namespace sd {
namespace {

namespace fs = std::filesystem;

// Several times what TAESD's decoders have.
constexpr int64_t kWidest = 1024;  // channels
constexpr int64_t kDeepest = 100;  // layers

torch::nn::Conv2d tiny_conv(int64_t in, int64_t out, bool bias = true) {
  return torch::nn::Conv2d(
      torch::nn::Conv2dOptions(in, out, /*kernel_size=*/3).padding(1).bias(bias));
}

// Three convolutions beside their input.
class TinyBlockImpl : public torch::nn::Cloneable<TinyBlockImpl> {
 public:
  explicit TinyBlockImpl(int64_t width) : width_(width) { TinyBlockImpl::reset(); }

  void reset() override {
    conv =
        register_module("conv", torch::nn::Sequential(tiny_conv(width_, width_), torch::nn::ReLU(),
                                                      tiny_conv(width_, width_), torch::nn::ReLU(),
                                                      tiny_conv(width_, width_)));
  }

  at::Tensor forward(const at::Tensor& x) { return at::relu(conv->forward(x) + x); }

  torch::nn::Sequential conv{nullptr};

 private:
  int64_t width_;
};
TORCH_MODULE(TinyBlock);

bool drop_prefix(std::string& name, const std::string& prefix) {
  if (name.rfind(prefix, 0) != 0) return false;
  name.erase(0, prefix.size());
  return true;
}

// Takes the number before the first dot off; -1 if there is none.
int64_t take_number(std::string& name) {
  int64_t number = -1;
  const auto read = std::from_chars(name.data(), name.data() + name.size(), number);
  const auto length = static_cast<size_t>(read.ptr - name.data());
  if (read.ec != std::errc() || number < 0 || number > 1000 || name[length] != '.') return -1;
  name.erase(0, length);
  return number;
}

// "layers.7.conv.2.weight" of diffusers' "decoder.layers.7.conv.2.weight" and of the authors'
// "8.conv.2.weight", whose sequence begins with the layer for tanh; empty for other tensors, such
// as those of an encoder.
std::string tiny_name(const std::string& given) {
  std::string name = given;
  const bool of_decoder = drop_prefix(name, "decoder.") || drop_prefix(name, "taesd_decoder.");
  const bool diffusers = of_decoder && drop_prefix(name, "layers.");
  const int64_t number = take_number(name);
  const int64_t place = diffusers ? number : number - 1;
  return place < 0 ? "" : fmt::format("layers.{}{}", place, name);
}

// How many blocks stand in a row, and how often, by the places of their tensors: between two groups
// lie the doubling of the size and a convolution.
TinyDecoderOptions tiny_sizes(const std::string& path) {
  const auto file = lightlora::open_tensors(path);
  std::map<int64_t, std::vector<int64_t>> kernels;  // by place; empty for a block
  for (const auto& info : file->tensors()) {
    std::string name = tiny_name(info.name);
    if (!drop_prefix(name, "layers.")) continue;
    const int64_t place = take_number(name);
    if (name.rfind(".conv.", 0) == 0) kernels[place];
    if (name == ".weight") kernels[place] = info.shape;
  }
  TORCH_CHECK(
      kernels.size() > 2 && kernels.begin()->first == 0 && kernels.begin()->second.size() == 4, "'",
      path, "': expected a decoder of TAESD, got a file without its convolutions; ",
      "hint: taesd_decoder.safetensors (for SDXL taesdxl_decoder.safetensors), or a folder ",
      "of diffusers' AutoencoderTiny");
  TinyDecoderOptions options;
  const auto& first = kernels.begin()->second;
  const auto fits = [&](int64_t size) { return 0 < size && size <= kWidest; };
  TORCH_CHECK(fits(first[0]) && fits(first[1]) && static_cast<int64_t>(kernels.size()) <= kDeepest,
              "'", path, "': expected a decoder of TAESD of at most ", kWidest, " channels and ",
              kDeepest, " layers, got ", first[0], " and ", first[1], " channels and ",
              kernels.size(), " layers");
  options.width(first[0]).latent_channels(first[1]).blocks({0});
  for (const auto& [place, kernel] : kernels) {
    if (kernel.empty()) {
      ++options.blocks().back();
    } else if (place > 0 && place != kernels.rbegin()->first) {
      options.blocks().push_back(0);
    }
  }
  return options;
}

// Where no weights are read, the configuration alone says how large the decoder is.
void read_tiny_sizes(const ConfigReader& reader, TinyDecoderOptions& options) {
  const auto blocks = reader.positives("num_decoder_blocks", options.blocks());
  int64_t layers = 0;
  for (const int64_t count : blocks) {
    if (count <= kDeepest) layers += count;
    if (count > kDeepest || layers > kDeepest) {
      reader.fail("num_decoder_blocks", fmt::format("at most {} blocks in all", kDeepest));
    }
  }
  const int64_t channels = reader.positive("latent_channels", options.latent_channels());
  if (channels > kWidest) reader.fail("latent_channels", fmt::format("at most {}", kWidest));
  options.blocks(blocks).latent_channels(channels);
}

// What a folder's configuration says beyond the tensors; where none are read, the sizes too.
void read_tiny_config(const std::string& folder, bool sizes, TinyDecoderOptions& options) {
  const auto path = (fs::path(folder) / "config.json").string();
  if (!fs::exists(path)) return;
  const auto config = read_json_file(path);
  const auto expect = [&](const char* field, const nlohmann::json& value) {
    const auto found = config.find(field);
    TORCH_CHECK(found == config.end() || *found == value, "'", path, "': expected ", field,
                " to be ", value.dump(), ", got ", found == config.end() ? "none" : found->dump());
  };
  expect("_class_name", "AutoencoderTiny");
  expect("act_fn", "relu");
  expect("upsample_fn", "nearest");
  expect("upsampling_scaling_factor", 2);
  if (sizes) read_tiny_sizes(ConfigReader(config, path), options);
  const auto factor = config.find("scaling_factor");
  if (factor == config.end()) return;
  const double value = factor->is_number() ? factor->get<double>() : 0;
  TORCH_CHECK(value > 0 && std::isfinite(value), "'", path,
              "': expected scaling_factor to be a number above 0, got ", factor->dump());
  options.scaling_factor(value);
}

}  // namespace

TinyDecoderImpl::TinyDecoderImpl(TinyDecoderOptions given) : options(std::move(given)) {
  TinyDecoderImpl::reset();
}

void TinyDecoderImpl::reset() {
  const int64_t width = options.width();
  torch::nn::Sequential all(tiny_conv(options.latent_channels(), width), torch::nn::ReLU());
  for (size_t group = 0; group < options.blocks().size(); ++group) {
    for (int64_t i = 0; i < options.blocks()[group]; ++i) all->push_back(TinyBlock(width));
    if (group + 1 == options.blocks().size()) break;
    all->push_back(torch::nn::Upsample(torch::nn::UpsampleOptions()
                                           .scale_factor(std::vector<double>{2, 2})
                                           .mode(torch::kNearest)));
    all->push_back(tiny_conv(width, width, /*bias=*/false));
  }
  all->push_back(tiny_conv(width, /*out=*/3));
  layers = register_module("layers", all);
}

at::Tensor TinyDecoderImpl::forward(const at::Tensor& latents) {
  TORCH_CHECK(latents.dim() == 4 && latents.size(1) == options.latent_channels(),
              "'TinyDecoder': expected latents (B, ", options.latent_channels(), ", h, w), got ",
              latents.sizes());
  const at::Tensor unscaled =
      options.scaling_factor() == 1 ? latents : latents / options.scaling_factor();
  return layers->forward(at::tanh(unscaled / 3) * 3);
}

TinyDecoder read_tiny_decoder(const std::string& path) {
  const bool folder = fs::is_directory(path);
  const auto file = folder ? find_weights(path, "diffusion_pytorch_model") : path;
  TORCH_CHECK(fs::exists(file), "'", file, "': expected a file of TAESD's decoder, got none");
  TinyDecoderOptions options;
  const bool has_weights = !fs::is_directory(file);  // see WithoutWeights
  if (has_weights) options = tiny_sizes(file);
  if (folder) read_tiny_config(path, /*sizes=*/!has_weights, options);
  const UninitializedModules uninitialized(at::kFloat);
  TinyDecoder decoder(options);
  load_weights(*decoder, file, tiny_name);
  decoder->eval();
  for (auto& parameter : decoder->parameters()) parameter.set_requires_grad(false);
  return decoder;
}

}  // namespace sd
