// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace hypernetwork {

/// A layer that the network predicts an adapter for.
struct PredictedLayer {
  std::string path;
  int64_t values = 0;  ///< of its adapter

  bool operator==(const PredictedLayer& other) const {
    return path == other.path && values == other.values;
  }
};

/// A prediction is refined so often at most; two or three times is usual.
constexpr int64_t kMostIterations = 1000;

/// Sizes of a HyperNetwork.
struct HyperNetworkOptions {
  /// Of the pictures' latents.
  TORCH_ARG(int64_t, channels) = 4;
  TORCH_ARG(int64_t, side) = 64;
  /// The picture is read as grid x grid tokens.
  TORCH_ARG(int64_t, grid) = 8;
  TORCH_ARG(int64_t, width) = 192;
  TORCH_ARG(int64_t, heads) = 4;
  TORCH_ARG(int64_t, encoder_layers) = 2;
  TORCH_ARG(int64_t, decoder_layers) = 3;
  /// How often the prediction is refined: k of the paper.
  TORCH_ARG(int64_t, iterations) = 2;
  /// The adapted layers, in the order of their values.
  TORCH_ARG(std::vector<PredictedLayer>, layers);

 public:
  int64_t values() const;
  nlohmann::json to_json() const;
  /// Errors: nlohmann's for fields that are missing or of another type
  static HyperNetworkOptions from_json(const nlohmann::json& json);
  /// Errors: c10::ValueError for sizes that do not go together
  void check() const;
};

/// Attention over tokens, to themselves and optionally to those of a picture, and a feed-forward
/// layer, each after a norm and added to its input.
/// Shapes: x (B, N, width), picture (B, T, width)
class TransformerBlockImpl : public torch::nn::Module {
 public:
  TransformerBlockImpl(int64_t width, int64_t heads, bool reads_picture);
  at::Tensor forward(at::Tensor x, const at::Tensor& picture = {});

 private:
  at::Tensor attend(torch::nn::Linear& query, torch::nn::Linear& key_value, torch::nn::Linear& out,
                    const at::Tensor& x, const at::Tensor& context) const;

  int64_t heads_;
  torch::nn::LayerNorm norm1{nullptr}, norm2{nullptr}, norm3{nullptr};
  torch::nn::Linear query{nullptr}, key_value{nullptr}, out{nullptr};
  torch::nn::Linear cross_query{nullptr}, cross_key_value{nullptr}, cross_out{nullptr};
  torch::nn::Linear expand{nullptr}, contract{nullptr};
};
TORCH_MODULE(TransformerBlock);

/// Predicts the trained values of a set of adapters from the latents of one picture.
/// Equation: f = encoder(picture); t_0 = 0; t_k = t_(k-1) + out(decoder(f, in(t_(k-1))));
///           values = mean + spread * t_k, with one token of the decoder for each adapted layer
/// Paper:    Ruiz et al. 2023, arXiv:2307.06949, section 3.3
/// Shapes:   latents (B, channels, side, side), result (B, values)
/// Differs:  the picture is read as the latents of the base's own autoencoder, by an encoder that is
///           trained along (the paper: a ViT-H that is not), and the values are those of the mean
///           adapter plus a prediction in units of their spread. Without targets the mean is what
///           the adapters start from
class HyperNetworkImpl : public torch::nn::Module {
 public:
  explicit HyperNetworkImpl(HyperNetworkOptions options);

  /// `iterations`: other than those of the options; -1: theirs.
  at::Tensor forward(const at::Tensor& latents, int64_t iterations = -1);

  /// What the values are around, and in which units.
  /// Shapes: both (values)
  void set_scale(const at::Tensor& mean, const at::Tensor& spread);

  HyperNetworkOptions options;

 private:
  at::Tensor encode(const at::Tensor& latents);

  at::Tensor mean, spread;        // (values), fp32
  at::Tensor place, layer_place;  // of the picture's tokens and of the layers'
  at::Tensor out_weight, out_bias;
  torch::nn::Conv2d patches{nullptr};
  torch::nn::ModuleList encoder, decoder;
  torch::nn::LayerNorm encoded_norm{nullptr}, out_norm{nullptr};
  torch::nn::Linear in{nullptr};
  at::Tensor chosen_;  // of (layers x most values of one), those that there are
  int64_t most_ = 0;
};
TORCH_MODULE(HyperNetwork);

/// A network with what it is for, as its file holds it.
struct HyperNetworkFile {
  HyperNetworkOptions options;
  lightlora::TensorMap tensors;  ///< parameters and buffers by name
  lightlora::Metadata metadata;  ///< without the options
};

/// Writes a network with its parameters in this dtype; what the values are measured in stays fp32.
void save_network(const HyperNetworkFile& file, const std::string& path, at::ScalarType dtype);
/// Errors: c10::Error naming the file if it is no hypernetwork's, or holds less than its sizes say
HyperNetworkFile read_network(const std::string& path);
/// The network of a file, fp32.
/// Errors: c10::Error naming a tensor that is missing or of another shape
HyperNetwork make_network(const HyperNetworkFile& file, const std::string& path);

}  // namespace hypernetwork
