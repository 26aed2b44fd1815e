// SPDX-License-Identifier: Apache-2.0
// The layers that the generic tests run every variant on, and a directional derivative check.
#pragma once

#include <lightlora/lightlora.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "support.h"

namespace lightlora_tests {

using torch::Tensor;

/// One layer as a model of its own, with inputs for it. The model's first parameter is the weight
/// that is adapted.
struct Subject {
  std::string name;
  std::function<torch::nn::Sequential()> make;
  std::function<Tensor()> input;
  bool integer_input = false;
  std::string path = "0";  ///< of the weight in the model
  bool linear = true;      ///< the output is a linear function of the weight
  bool recurrent = false;  ///< LibTorch gets the weight in a list with others
  bool known_rows = true;  ///< the layer's input has the batch's rows first

  torch::nn::Sequential model(torch::ScalarType dtype) const {
    torch::manual_seed(7);
    auto result = make();
    result->to(dtype);
    return result;
  }
  Tensor x(torch::ScalarType dtype) const { return integer_input ? input() : input().to(dtype); }
};

inline Tensor random_input(std::vector<int64_t> sizes) {
  torch::manual_seed(11);
  return torch::randn(sizes, torch::kDouble);
}

/// Convolutions with in != out everywhere.
inline std::vector<Subject> convolutions() {
  using torch::nn::Sequential;
  return {
      {"Conv1d",
       [] { return Sequential(torch::nn::Conv1d(torch::nn::Conv1dOptions(6, 40, 5).dilation(2))); },
       [] { return random_input({2, 6, 20}); }},
      {"Conv1d with stride and circular padding",
       [] {
         return Sequential(
             torch::nn::Conv1d(torch::nn::Conv1dOptions(8, 24, 3).stride(2).padding(1).padding_mode(
                 torch::kCircular)));
       },
       [] { return random_input({2, 8, 9}); }},
      {"Conv2d",
       [] {
         return Sequential(
             torch::nn::Conv2d(torch::nn::Conv2dOptions(6, 40, 3).stride(2).padding(1)));
       },
       [] { return random_input({2, 6, 9, 7}); }},
      {"Conv2d with groups",
       [] { return Sequential(torch::nn::Conv2d(torch::nn::Conv2dOptions(12, 40, 3).groups(2))); },
       [] { return random_input({2, 12, 6, 6}); }},
      {"Conv2d with groups and reflection",
       [] {
         return Sequential(torch::nn::Conv2d(
             torch::nn::Conv2dOptions(12, 40, 3).groups(2).padding(1).padding_mode(
                 torch::kReflect)));
       },
       [] { return random_input({2, 12, 6, 6}); }},
      {"Conv2d with replicated padding",
       [] {
         return Sequential(torch::nn::Conv2d(torch::nn::Conv2dOptions(6, 40, {3, 2})
                                                 .padding({1, 2})
                                                 .padding_mode(torch::kReplicate)));
       },
       [] { return random_input({2, 6, 5, 4}); }},
      {"Conv3d", [] { return Sequential(torch::nn::Conv3d(torch::nn::Conv3dOptions(4, 24, 2))); },
       [] { return random_input({1, 4, 4, 5, 3}); }},
      {"Conv3d with groups, dilation and padding",
       [] {
         return Sequential(torch::nn::Conv3d(
             torch::nn::Conv3dOptions(6, 24, 2).groups(2).dilation(2).padding({1, 0, 1})));
       },
       [] { return random_input({1, 6, 4, 5, 3}); }},
  };
}

/// Transposed ones.
inline std::vector<Subject> transposed_convolutions() {
  using torch::nn::Sequential;
  return {
      {"ConvTranspose1d",
       [] {
         return Sequential(torch::nn::ConvTranspose1d(
             torch::nn::ConvTranspose1dOptions(24, 10, 5).stride(2).padding(1).dilation(2)));
       },
       [] { return random_input({2, 24, 9}); }},
      {"ConvTranspose2d with groups and output padding",
       [] {
         return Sequential(
             torch::nn::ConvTranspose2d(torch::nn::ConvTranspose2dOptions(24, 12, {3, 2})
                                            .groups(2)
                                            .stride(2)
                                            .output_padding(1)));
       },
       [] { return random_input({2, 24, 4, 5}); }},
      {"ConvTranspose3d",
       [] {
         return Sequential(
             torch::nn::ConvTranspose3d(torch::nn::ConvTranspose3dOptions(24, 4, 2).bias(false)));
       },
       [] { return random_input({1, 24, 3, 2, 4}); }},
  };
}

/// A layer that is called with more than one input, as a part of a model of one.
template <typename Layer>
struct WrappedImpl : torch::nn::Module {
  using Call = std::function<Tensor(Layer&, const Tensor&)>;
  WrappedImpl(Layer from, Call with)
      : layer(register_module("layer", std::move(from))), call(std::move(with)) {}
  Tensor forward(const Tensor& x) { return call(layer, x); }
  Layer layer;
  Call call;
};

template <typename Layer>
torch::nn::Sequential wrapped(Layer layer, typename WrappedImpl<Layer>::Call call) {
  return torch::nn::Sequential(
      std::make_shared<WrappedImpl<Layer>>(std::move(layer), std::move(call)));
}

/// Layers of several inputs, outputs or weights.
inline std::vector<Subject> wrapped_layers() {
  namespace nn = torch::nn;
  Subject attention{"MultiheadAttention",
                    [] {
                      return wrapped(nn::MultiheadAttention(24, 3),
                                     [](auto& layer, const Tensor& x) {
                                       return std::get<0>(layer->forward(x, x, x));
                                     });
                    },
                    [] { return random_input({5, 2, 24}); }};
  attention.path = "0.layer.in_proj";
  attention.linear = attention.known_rows = false;
  Subject bilinear{"Bilinear",
                   [] {
                     return wrapped(nn::Bilinear(7, 6, 24), [](auto& layer, const Tensor& x) {
                       return layer->forward(x, x.narrow(-1, 0, 6));
                     });
                   },
                   [] { return random_input({4, 7}); }};
  bilinear.path = "0.layer";
  bilinear.known_rows = false;
  Subject recurrent{"GRU",
                    [] {
                      return wrapped(nn::GRU(20, 24), [](auto& layer, const Tensor& x) {
                        return std::get<0>(layer->forward(x));
                      });
                    },
                    [] { return random_input({5, 2, 20}); }};
  recurrent.path = "0.layer.weight_ih_l0";
  recurrent.linear = recurrent.known_rows = false;
  recurrent.recurrent = true;
  return {attention, bilinear, recurrent};
}

/// Every layer type that can be adapted, with in != out everywhere.
inline const std::vector<Subject>& subjects() {
  using torch::nn::Sequential;
  static const std::vector<Subject> all = [] {
    std::vector<Subject> result{
        {"Linear", [] { return Sequential(torch::nn::Linear(70, 90)); },
         [] { return random_input({5, 3, 70}); }},
        {"Linear without bias",
         [] {
           return Sequential(torch::nn::Linear(torch::nn::LinearOptions(110, 60).bias(false)));
         },
         [] { return random_input({4, 110}); }},
        {"Embedding", [] { return Sequential(torch::nn::Embedding(120, 80)); },
         [] { return torch::arange(0, 12).view({3, 4}) * 9; }, /*integer_input=*/true},
        {"Embedding with padding and sparse gradients",
         [] {
           return Sequential(torch::nn::Embedding(
               torch::nn::EmbeddingOptions(120, 80).padding_idx(9).sparse(true)));
         },
         [] { return torch::arange(0, 12).view({3, 4}) * 9; }, /*integer_input=*/true},
        {"EmbeddingBag of means", [] { return Sequential(torch::nn::EmbeddingBag(120, 80)); },
         [] { return torch::arange(0, 12).view({3, 4}) * 9; }, /*integer_input=*/true},
        {"EmbeddingBag of maxima",
         [] {
           return Sequential(
               torch::nn::EmbeddingBag(torch::nn::EmbeddingBagOptions(120, 80).mode(torch::kMax)));
         },
         [] { return torch::arange(0, 12).view({3, 4}) * 9; }, /*integer_input=*/true},
    };
    result.back().linear = false;  // other rows may be the largest over another weight
    for (auto& subject : result) subject.known_rows = subject.name.find("Bag") == std::string::npos;
    for (const auto& more : {convolutions(), transposed_convolutions()}) {
      result.insert(result.end(), more.begin(), more.end());
    }
    // Other devices than the CPU compute these with libraries of their own, if at all.
    if (!std::getenv("LIGHTLORA_TEST_DEVICE")) {
      for (const auto& more : wrapped_layers()) result.push_back(more);
    }
    return result;
  }();
  return all;
}

/// Options with alpha != rank and rank > 1, and other bases than the default where there are some.
inline lightlora::LoRAOptions usual_options(const std::string& variant) {
  lightlora::LoRAOptions options(3);
  for (const auto& [name, value] :
       {std::pair("aux_in", "48"), {"aux_out", "24"}, {"aux_seed", "5"}}) {
    if (lightlora::find_variant(variant).takes(name)) options.own()[name] = value;
  }
  return options.network_alpha(1.5);
}

/// A variant with options, as the generic tests run it.
struct Recipe {
  std::string name;
  std::string variant;
  lightlora::LoRAOptions options;
};

/// Every variant in the list, once more with each switch of its own, and DoRA over two of them: one
/// with factors of its own, one without.
inline const std::vector<Recipe>& recipes() {
  static const std::vector<Recipe> all = [] {
    std::vector<Recipe> result;
    for (const auto& variant : lightlora::variants()) {
      result.push_back({variant.name, variant.name, usual_options(variant.name)});
      for (const auto& option : variant.options) {
        if (option.kind != lightlora::OwnOption::Kind::toggle) continue;
        result.push_back(
            {variant.name + " with " + option.name, variant.name, usual_options(variant.name)});
        result.back().options.own()[option.name] = option.usual == "1" ? "0" : "1";
      }
    }
    for (const char* variant : {"classic", "lokr"}) {
      result.push_back(
          {std::string(variant) + " with DoRA", variant, usual_options(variant).dora(true)});
    }
    return result;
  }();
  return all;
}

/// Gives every trained value something else than its start, so that the delta is not zero.
inline void randomise(const lightlora::Patched& lora) {
  torch::NoGradGuard no_grad;
  torch::manual_seed(23);
  for (auto& parameter : lora->parameters()) {
    parameter.copy_(torch::randn(parameter.sizes(), torch::kDouble) * 0.3);
  }
}

/// Calls `body` for every recipe on every layer type, with names for failure messages.
template <typename Body>
void for_each_case(Body body) {
  for (const auto& recipe : recipes()) {
    for (const auto& subject : subjects()) {
      INFO(recipe.name << " on " << subject.name);
      body(recipe, subject);
    }
  }
}

/// Relative difference of autograd's directional derivative of `f` and a central difference, for
/// one tensor and a random direction. `f` gives a scalar in double.
inline double derivative_error(const std::function<Tensor()>& f, Tensor parameter) {
  const Tensor direction = torch::randn_like(parameter);
  parameter.mutable_grad() = Tensor();
  f().backward();
  TORCH_CHECK(parameter.grad().defined(), "expected a gradient, got none");
  const double analytic = (parameter.grad() * direction).sum().item<double>();
  torch::NoGradGuard no_grad;
  const double step = 1e-6;
  parameter.add_(direction, step);
  const double above = f().item<double>();
  parameter.add_(direction, -2 * step);
  const double below = f().item<double>();
  parameter.add_(direction, step);
  const double numeric = (above - below) / (2 * step);
  return std::abs(analytic - numeric) / std::max(std::abs(numeric), 1e-6);
}

}  // namespace lightlora_tests
