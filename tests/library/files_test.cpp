// SPDX-License-Identifier: Apache-2.0
// files.h: one verb each for all formats; and what travels in files and states.
#include <lightlora/detail/formats/sha256.h>
#include <torch/serialize.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <tuple>

#include "models.h"

using namespace lightlora_tests;
using namespace lightlora;

namespace {

struct MaskedOptions : VariantOptions<MaskedOptions> {
  using VariantOptions::VariantOptions;
  TORCH_ARG(double, spread) = 1;

 public:
  static auto fields() {
    return std::make_tuple(option("spread", &MaskedOptions::spread_, "Spread of the mask"));
  }
};

// A variant whose frozen mask follows from nothing, and whose trained value has a basis' usual
// name.
class MaskedAdapterImpl : public AdapterModule<MaskedAdapterImpl, MaskedOptions> {
 public:
  static constexpr const char* kVariant = "masked";

  MaskedAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    reset();
  }
  void reset_parameters() override {
    torch::NoGradGuard no_grad;
    down.normal_();
    up_aux.zero_();
  }
  Factors factors() const override { return {down * mask, up_aux}; }

  torch::Tensor down, up_aux, mask;

 protected:
  void register_tensors() override {
    down = register_parameter("down", torch::empty({options_.rank(), layer_.in}));
    up_aux = register_parameter("up_aux", torch::empty({layer_.out, options_.rank()}));
    mask = register_buffer("mask", torch::randn({layer_.in}) * own().spread());
  }
};

template <typename Layer>
using Masked = AdaptedLayer<Layer, MaskedAdapterImpl>;

torch::nn::Sequential model_of_two() {
  torch::manual_seed(4);
  return torch::nn::Sequential(torch::nn::Linear(40, 30), torch::nn::Linear(30, 20));
}

std::string bytes_of(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

const Tensor& inputs() {
  static const Tensor x = torch::randn({6, 40});
  return x;
}

}  // namespace

TEST_CASE("fp16 keeps a pair whose factors it could not hold, or says so", "[files]") {
  torch::manual_seed(7);
  LayerState layer{"classic", {"mid_block.attentions.0.proj_in", 40, 30, {}}, LoRAOptions(2), 1, {},
                   {}};
  const ScratchFolder folder;
  const auto written = [&](double down, double up, Format format) {
    layer.trained = {{"down", torch::randn({2, 40}) * down}, {"up", torch::randn({30, 2}) * up}};
    save({{"unet", {layer}}}, folder.file("half"), SaveOptions(format).dtype(at::kHalf));
    const auto back = read_state(folder.file("half"), "unet").at(0);
    // Two factors rounded to 11 bits; seen: 5e-4.
    return close(make_adapter(back)->delta().to(torch::kFloat), make_adapter(layer)->delta(), 2e-3);
  };
  for (const Format format : {Format::native, Format::diffusers, Format::kohya}) {
    INFO(to_string(format));
    CHECK(written(1e6, 1e-4, format));
    CHECK(written(1e-7, 10, format));  // below fp16's smallest normal number
    CHECK(written(1, 1, format));
    CHECK_THROWS_WITH(written(1e6, 1e6, format),
                      ContainsSubstring("'mid_block.attentions.0.proj_in': expected values that"));
  }
}

namespace {

// A trained layer of some variant, with a scale that no format can leave out.
LayerState trained(const std::string& variant, const LoRAOptions& options, const LayerInfo& info) {
  torch::manual_seed(8);
  const auto adapter = find_variant(variant).make(options, info);
  torch::NoGradGuard no_grad;
  for (auto& item : adapter->trained()) item.value().normal_();
  return state_of(*adapter);
}

}  // namespace

TEST_CASE("LoHa and LoKr keep their own names in kohya's and PEFT's files, and their delta",
          "[files]") {
  const ScratchFolder folder;
  const LayerInfo linear{"mid_block.attentions.0.proj_in", 40, 30, {}};
  const LayerInfo kernel{"mid_block.resnets.0.conv1", 4 * 9, 6, {3, 3}};
  const auto own = LoRAOptions(3).network_alpha(1.5);
  const std::vector<LayerState> layers{
      trained("loha", own, linear),
      trained("loha", own, kernel),
      trained("lokr", LoRAOptions(2).network_alpha(1), linear),
      trained("lokr", LoKrOptions(2).network_alpha(1).decompose_factor(2), linear),
      trained("lokr", LoKrOptions(1).network_alpha(3).decompose_both(true), kernel),
      trained("lokr", LoKrOptions(4).network_alpha(1).full_matrix(true), linear),
      trained("lokr", LoKrOptions(4).network_alpha(1).full_matrix(true), kernel),
      trained("lokr", LoKrOptions(2).network_alpha(1).lokr_shape({3, 8}), linear)};
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const Format format : {Format::kohya, Format::peft}) {
      INFO(i << " " << to_string(format));
      const auto path = folder.file(std::to_string(i) + to_string(format));
      save({{"unet", {layers[i]}}}, path, format);
      const auto back = read_state(path, "unet").at(0);
      // A scale that goes into the values is rounded once more.
      CHECK(close(make_adapter(back)->delta(), make_adapter(layers[i])->delta(), 1e-6));
      // PEFT splits by one factor, which gives 30 x 40 no left side of 3 x 8.
      const bool plain = format == Format::peft && i + 1 == layers.size();
      CHECK(back.variant == (plain ? "classic" : layers[i].variant));
    }
  }
}

TEST_CASE("a LoHa with DoRA keeps both in a kohya file", "[files]") {
  const ScratchFolder folder;
  auto layer = trained("loha", LoRAOptions(3).network_alpha(1.5).dora(true),
                       {"mid_block.attentions.0.proj_in", 40, 30, {}});
  save({{"unet", {layer}}}, folder.file("dora"), Format::kohya);
  const auto back = read_state(folder.file("dora"), "unet").at(0);
  const Tensor weight = torch::randn({30, 40});
  CHECK((back.variant == "loha" && back.options.dora()));
  CHECK(close(make_adapter(back)->delta(weight), make_adapter(layer)->delta(weight), 1e-6));
}

TEST_CASE("a file for kohya's readers says which version it is for", "[files]") {
  const ScratchFolder folder;
  for (const auto& [width, second] : {std::pair(768, "False"), std::pair(1024, "True")}) {
    LayerState layer{"classic",
                     {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k", width, 30, {}},
                     LoRAOptions(2),
                     1,
                     {{"down", torch::ones({2, width})}, {"up", torch::ones({30, 2})}},
                     {}};
    save({{"unet", {layer}}}, folder.file("kohya"),
         SaveOptions(Format::kohya).metadata({{"ss_clip_skip", "2"}}));
    const SafetensorsFile file(folder.file("kohya"));
    CHECK(file.metadata().at("ss_v2") == second);
    CHECK(file.metadata().at("ss_clip_skip") == "2");
  }
}

TEST_CASE("a handle saved in any format is read back by the same verbs", "[files]") {
  const ScratchFolder folder;
  auto model = model_of_two();
  auto lora = patch<ClassicLoRA>(*model, LoRAOptions(3).network_alpha(1.5), {"0", "1"});
  randomise(lora);
  torch::NoGradGuard no_grad;
  const Tensor expected = lora(model, inputs());
  for (const Format format : {Format::native, Format::diffusers, Format::peft}) {
    INFO(to_string(format));
    const auto path = folder.file(to_string(format));
    save(lora, path, format);
    auto copy = model_of_two();
    CHECK(close(patch(*copy, read_state(path))(copy, inputs()), expected, 1e-6));
    auto other = model_of_two();
    auto again = patch<ClassicLoRA>(*other, LoRAOptions(3), {"0", "1"});
    load(again, path);
    CHECK(close(again(other, inputs()), expected, 1e-6));
    CHECK(read_adapters(path).components.count(format == Format::diffusers ? "unet" : "") == 1);
    CHECK(parse_format(to_string(format)) == format);
  }
  CHECK_THROWS_WITH(
      parse_format("onnx"),
      ContainsSubstring("expected one of native, diffusers, peft, kohya, got 'onnx'"));
  save(lora, folder.file("half"), SaveOptions(Format::diffusers).dtype(at::kHalf));
  CHECK(read_adapters(folder.file("half")).dtypes == std::set<std::string>{"F16"});
  CHECK(file_hash(folder.file("half")) == lightlora::detail::sha256(bytes_of(folder.file("half"))));
}

TEST_CASE("an option that a format does not have is refused", "[files]") {
  const ScratchFolder folder;
  auto model = model_of_two();
  const auto lora = patch<LightLoRA>(*model, 2, {"0"});
  const auto path = folder.file("x");
  CHECK_THROWS_WITH(
      save(lora, path, SaveOptions(Format::diffusers).bases(Bases::embedded)),
      ContainsSubstring("embedded bases cannot be combined with the diffusers format: "
                        "only native has it"));
  CHECK_THROWS_WITH(save(lora, path, SaveOptions(Format::peft).metadata({{"a", "b"}})),
                    ContainsSubstring("metadata cannot be combined with the peft format"));
  CHECK_THROWS_WITH(
      save(lora, path, SaveOptions().text_model(false)),
      ContainsSubstring("text_model(false) cannot be combined with the native format"));
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("what is frozen and cannot be made again travels in states, files and archives",
          "[files]") {
  register_variant<MaskedAdapterImpl>();
  const ScratchFolder folder;
  auto model = model_of_two();
  auto lora = patch<Masked>(*model, MaskedOptions(2).spread(3), {"0", "1"});
  randomise(lora);
  torch::NoGradGuard no_grad;
  const Tensor expected = lora(model, inputs());
  {
    auto copy = model_of_two();
    CHECK(torch::equal(patch(*copy, lora->state())(copy, inputs()), expected));
  }
  for (const Bases bases : {Bases::by_seed, Bases::embedded}) {
    save(lora, folder.file("x"), SaveOptions().bases(bases));
    const auto state = read_state(folder.file("x"));
    CHECK(state[0].options.own() == OwnOptions{{"spread", "3"}});
    CHECK(state[0].trained.count("up_aux") == 1);
    CHECK(state[0].frozen.count("mask") == 1);
    auto copy = model_of_two();
    CHECK(torch::equal(patch(*copy, state)(copy, inputs()), expected));
  }
  torch::save(lora, folder.file("archive"));
  auto other = model_of_two();
  auto again = patch<Masked>(*other, MaskedOptions(2).spread(3), {"0", "1"});
  torch::load(again, folder.file("archive"));
  CHECK(torch::equal(again(other, inputs()), expected));
  auto without = lora->state();
  without[1].frozen.clear();
  CHECK_THROWS_WITH(again->assign(without),
                    ContainsSubstring("'1': expected a frozen tensor 'mask' [30], got none"));
}

TEST_CASE("add mirrors patch: a variant by its type or by its name", "[files]") {
  auto model = model_of_two();
  auto lora = patch<LightLoRA>(*model, /*rank=*/4, {"0"});
  lora->add<ClassicLoRA>("style", /*rank=*/2, {"1"});
  lora->add("kron", "lokr", LoKrOptions(8).decompose_factor(2), {"0"});
  lora->add<LoKr>("again", LoKrOptions(8).decompose_factor(2), {"0"});
  CHECK(lora->adapters("style")[0]->variant() == "classic");
  CHECK(lora->adapters("kron")[0]->options().own() == OwnOptions{{"decompose_factor", "2"}});
  CHECK(lora->adapters("again")[0]->options().own() == lora->adapters("kron")[0]->options().own());
}

TEST_CASE("sum: states add up like the sets of a handle", "[files]") {
  auto model = model_of_two();
  auto lora = patch<LightLoRA>(*model, 4, {"0", "1"}, "a");
  lora->add<ClassicLoRA>("b", 2, {"1"});
  randomise(lora);
  torch::NoGradGuard no_grad;
  lora->set_active({{"a", 0.5}, {"b", -2.0}});
  const Tensor expected = lora(model, inputs());
  const auto total = sum({{lora->state("a"), 0.5}, {lora->state("b"), -2.0}});
  lora->remove();
  CHECK(total[1].options.rank() == 6);
  CHECK(close(patch(*model, total)(model, inputs()), expected, 1e-5));
  auto wrong = total;
  wrong[0].layer.name = "1";
  CHECK_THROWS_WITH(
      sum({{{total[1]}, 1.0}, {{wrong[0]}, 1.0}}),
      ContainsSubstring("'1': expected adapters of one size, got 30 -> 20 and 40 -> 30"));
}

TEST_CASE("SHA-256", "[files]") {
  CHECK(lightlora::detail::sha256("") ==
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(lightlora::detail::sha256("abc") ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(lightlora::detail::sha256(std::string(119, 'a')) ==
        "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb");
}
