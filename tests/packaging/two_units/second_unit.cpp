// SPDX-License-Identifier: Apache-2.0
// The second translation unit of `two_units`: linking fails if the library defines anything twice.
// It also calls what consumer.cpp leaves out, because compilers warn about functions only when they
// are used.
#include <lightlora/lightlora.h>

int64_t trained_values(torch::nn::Module& model, const std::string& path);
int64_t trained_values(torch::nn::Module& model, const std::string& path) {
  using lightlora::LoRAOptions;
  using lightlora::Targets;
  const auto lora =
      lightlora::patch(model, "light", LoRAOptions(2).init(lightlora::parse_init("up_zero")),
                       Targets{lightlora::matches(".*"),
                               lightlora::Pattern("all", [](const std::string&) { return true; })});
  lora->add("two", "lokr", /*rank=*/2, Targets::all_linear());
  lightlora::combine(lora, "sum", {{"default", 1.0}, {"two", 0.5}}, lightlora::Combine::svd);
  lightlora::limit_norm(lora, 1.0);
  lightlora::save(lora, path);
  lightlora::load(lora, path);
  for (const auto& [component, state] : lightlora::read_adapters(path).components) {
    lora->add(component + " again", lightlora::to_classic(state, lightlora::Keep::energy(0.9)));
    lora->add(component + " cut",
              lightlora::cut(lightlora::sum({{state, 0.5}}), lightlora::Keep::rank(1)));
  }
  lightlora::save(lora, path,
                  lightlora::SaveOptions(lightlora::Format::diffusers).dtype(at::kHalf));
  return lora->report().trainable;
}
