// SPDX-License-Identifier: Apache-2.0
// A variant of one's own: a class that says what it trains and how that composes. Everything else
// works as for the library's own, by type and by name, files included. Prints:
//
//   outer adapter of '0' (12 -> 6): rank 1, scale 2, trains 18 values
//   starts as the base model: yes
//   'outer' by name from outer.safetensors: the same output: yes
#include <lightlora/lightlora.h>
#include <torch/torch.h>

#include <cstdio>
#include <utility>

// Equation: delta = scale * column * row, with scale = network_alpha / rank
class OuterAdapterImpl : public lightlora::AdapterModule<OuterAdapterImpl> {
 public:
  static constexpr const char* kVariant = "outer";  // its name in files and flags

  OuterAdapterImpl(lightlora::LoRAOptions options, lightlora::LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    reset();
  }
  void reset_parameters() override {  // the start: a delta of zero
    const torch::NoGradGuard no_grad;
    row.normal_();
    column.zero_();
  }
  int64_t rank() const override { return 1; }
  lightlora::Factors factors() const override { return {row, column}; }

 protected:
  void register_tensors() override {
    row = register_parameter("row", torch::empty({1, layer_.in}));
    column = register_parameter("column", torch::empty({layer_.out, 1}));
  }
  torch::Tensor row, column;
};

template <typename Layer>  // for patch<Outer>(...), and to build a layer with it by hand
using Outer = lightlora::AdaptedLayer<Layer, OuterAdapterImpl>;

int main() {
  torch::manual_seed(0);
  torch::nn::Sequential model(torch::nn::Linear(12, 6), torch::nn::ReLU());
  const auto x = torch::randn({4, 12}), base = model->forward(x);
  auto lora = lightlora::patch<Outer>(*model, lightlora::LoRAOptions(1).network_alpha(2), {"0"});
  std::printf("%s\n", lora->adapters()[0]->description().c_str());
  std::printf("starts as the base model: %s\n", torch::equal(lora(model, x), base) ? "yes" : "no");
  for (auto& parameter : lora->parameters()) parameter.data().normal_();  // as if trained
  const auto adapted = lora(model, x);
  lightlora::save(lora, "outer.safetensors");
  lora->remove();

  lightlora::register_variant<OuterAdapterImpl>();  // from here on files and strings can name it
  auto again = lightlora::patch(*model, lightlora::read_state("outer.safetensors"));
  const bool same = torch::equal(again(model, x), adapted);
  std::printf("'outer' by name from outer.safetensors: the same output: %s\n", same ? "yes" : "no");
  return 0;
}
