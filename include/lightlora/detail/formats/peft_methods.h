// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <lightlora/detail/formats/json.h>
#include <lightlora/detail/formats/other_methods.h>
#include <lightlora/detail/formats/peft_adalora.h>
#include <lightlora/detail/formats/portable.h>
#include <lightlora/detail/option_text.h>
#include <lightlora/state.h>
#include <lightlora/variants/oft.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

// HiRA, MiSS, GraLoRA, OFT, BOFT and AdaLoRA under PEFT's own names: a method for each file, and a configuration
// without which its tensors mean nothing.

namespace lightlora::detail {

/// A method of PEFT beside LoRA: our variant, PEFT's name of it, and what is its own.
struct PeftMethod {
  const char* variant;
  const char* type;                                          ///< "peft_type" in the configuration
  std::vector<std::pair<const char*, const char*>> tensors;  ///< under both names
  /// What of its configuration its own numbers decide.
  JsonValue::Object (*fields)(const AdapterState&);
  bool rotates = false;  ///< the weight, which no scale can be put before
  /// Whether a layer's angles have the other sign there; null if none has.
  bool (*turns)(const LayerState&) = nullptr;
  /// The layers as its files have them; null: as they are.
  AdapterState (*layers)(AdapterState) = nullptr;
  bool convolutions = false;  ///< as their kernels in one matrix, beside Linear layers
};

// A number that the configuration has once for all layers.
// Errors: c10::Error naming the first layer that has another
template <typename NumberOf>
int64_t common_number(const AdapterState& state, const char* what, const NumberOf& number_of) {
  const int64_t first = number_of(state[0]);
  for (const auto& layer : state) {
    TORCH_CHECK(number_of(layer) == first, "'", layer.layer.name, "': expected ", what, " ", first,
                " in every layer, as PEFT's configuration of ", layer.variant, " can say, got ",
                number_of(layer), "; hint: write the native format");
  }
  return first;
}

// The options of an OFT adapter; what is not said is at its default.
inline int64_t oft_option(const LayerState& layer, const char* name, int64_t usual) {
  const auto found = layer.options.own().find(name);
  if (found != layer.options.own().end()) read_number(found->second, usual);
  return usual;
}

// PEFT's exact form turns the other way than its series: the angles change their sign.
inline bool is_exact_oft(const LayerState& layer) {
  return oft_option(layer, "neumann_terms", OFTOptions().neumann_terms()) == 0;
}

inline JsonValue::Object oft_fields(const AdapterState& state) {
  const int64_t terms = common_number(state, "neumann_terms", [](const LayerState& layer) {
    return oft_option(layer, "neumann_terms", OFTOptions().neumann_terms());
  });
  const int64_t block = common_number(state, "block_size", [](const LayerState& layer) {
    return oft_option(layer, "block_size", OFTOptions().block_size());
  });
  // The version whose series it is: PEFT had another one before 0.18, and warns where none is given.
  return {{"peft_version", "0.21.2"},
          {"r", 0},
          {"oft_block_size", block},
          {"use_cayley_neumann", terms != 0},
          {"num_cayley_neumann_terms", terms == 0 ? OFTOptions().neumann_terms() : terms}};
}

// BOFT of inputs, with a length for each output.
inline JsonValue::Object boft_fields(const AdapterState& state) {
  for (const auto& layer : state) {
    TORCH_CHECK(oft_option(layer, "input_side", 0) == 1, "'", layer.layer.name,
                "': expected rotations of the inputs, as PEFT's BOFT has them, got those of the ",
                "outputs; hint: --to kohya or the native format");
    double constraint = 0;
    const auto found = layer.options.own().find("constraint");
    if (found != layer.options.own().end()) read_number(found->second, constraint);
    TORCH_CHECK(constraint == 0, "'", layer.layer.name,
                "': expected rotations without a bound, as PEFT's BOFT has them, got the bound ",
                constraint, "; hint: write the native format");
  }
  const auto size = [&](const char* what, int64_t dim) {
    return common_number(state, what,
                         [&](const LayerState& l) { return l.trained.at("oft_blocks").size(dim); });
  };
  return {{"boft_block_size", size("block width", 3)},
          {"boft_block_num", 0},
          {"boft_n_butterfly_factor", size("factors", 0)},
          {"boft_dropout", 0.0},
          {"bias", "none"},
          {"fan_in_fan_out", false}};
}

// In PEFT's order of features, and turning its way.
inline AdapterState boft_layers(AdapterState state) {
  for (auto& layer : state) {
    const auto& kernel = layer.layer.kernel;
    TORCH_CHECK(kernel.size() != 2 || kernel[0] == kernel[1], "'", layer.layer.name,
                "': expected a square kernel, as PEFT's BOFT takes every one to be, got ", kernel,
                "; hint: write the native format");
    at::Tensor& blocks = layer.trained.at("oft_blocks");
    const at::Tensor back = boft_order(blocks.size(3)).argsort();
    blocks = blocks.index_select(2, back).index_select(3, back) / kBoftOfPeft;
    at::Tensor& lengths = layer.trained["rescale"];
    TORCH_CHECK(lengths.defined() || layer.layer.out > 0, "'", layer.layer.name,
                "': expected the number of outputs, got none");
    if (!lengths.defined()) lengths = at::ones({layer.layer.out, 1}, blocks.options());
    if (layer.layer.type == "Conv2d" || kernel.size() == 2) lengths = lengths.reshape({1, -1});
  }
  return state;
}

inline JsonValue::Object rank_field(const AdapterState& state) {
  return {{"r", common_number(state, "rank",
                              [](const LayerState& layer) { return layer.options.rank(); })}};
}

inline JsonValue::Object gralora_fields(const AdapterState& state) {
  JsonValue::Object fields = rank_field(state);
  const int64_t blocks = common_number(
      state, "blocks", [](const LayerState& layer) { return layer.trained.at("down").size(0); });
  const auto rank = fields.front().second;
  fields.insert(fields.end(), {{"alpha", rank}, {"gralora_k", blocks}, {"hybrid_r", 0}});
  return fields;
}

inline const std::vector<PeftMethod>& peft_methods() {
  static const std::vector<PeftMethod> methods{
      {"hira", "HIRA", {{"down", "hira_A"}, {"up", "hira_B"}}, rank_field},
      {"miss", "MISS", {{"block", "miss_block"}}, rank_field},
      {"gralora", "GRALORA", {{"down", "gralora_A"}, {"up", "gralora_B"}}, gralora_fields},
      {"oft", "OFT", {{"q", "oft_R.weight"}}, oft_fields, /*rotates=*/true, is_exact_oft},
      {"boft",
       "BOFT",
       {{"oft_blocks", "boft_R"}, {"rescale", "boft_s"}},
       boft_fields,
       /*rotates=*/true,
       /*turns=*/nullptr,
       boft_layers,
       /*convolutions=*/true},
      {"adalora",
       "ADALORA",
       {{"down", "lora_A"}, {"lambda", "lora_E"}, {"up", "lora_B"}},
       adalora_fields,
       /*rotates=*/false,
       /*turns=*/nullptr,
       adalora_layers,
       /*convolutions=*/true}};
  return methods;
}

/// The method that holds all layers of a state as they are, or null: those of other variants, and
/// those with DoRA, become LoRA.
inline const PeftMethod* peft_method_of(const AdapterState& state) {
  for (const auto& method : peft_methods()) {
    bool all = !state.empty();
    for (const auto& layer : state) {
      all = all && layer.variant == method.variant && !layer.options.dora();
    }
    if (all) return &method;
  }
  return nullptr;
}

/// The tensors of one layer under PEFT's names, with the scale in the last of them.
/// Errors: c10::Error for a layer that is no Linear, and for a rotation at another scale than 1
inline std::map<std::string, at::Tensor> method_tensors(const PeftMethod& method,
                                                        const LayerState& layer,
                                                        at::ScalarType dtype) {
  const LayerInfo& info = layer.layer;
  const bool linear = (info.type.empty() || info.type == "Linear") && info.kernel.empty();
  // Of some files' convolutions the model alone knows the kernel.
  const bool with_kernel = info.kernel.size() == 2 || (info.in == 0 && info.type == "Conv2d");
  const bool convolution =
      method.convolutions && is_plain_type(info.type) && info.groups == 1 && with_kernel;
  TORCH_CHECK(linear || convolution, "'", info.name, "': expected a Linear layer, whose ",
              layer.variant, " PEFT computes alike, got ",
              info.type.empty() ? "a convolution" : info.type, "; hint: write the native format");
  TORCH_CHECK(!method.rotates || layer.scale == 1.0, "'", info.name,
              "': expected scale 1 of a rotation, which PEFT cannot scale, got ", layer.scale,
              "; hint: write the native format");
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [ours, theirs] : method.tensors) {
    at::Tensor value = layer.trained.at(ours);
    if (method.turns && method.turns(layer)) value = -value;
    if (ours == method.tensors.back().first && layer.scale != 1.0) value = value * layer.scale;
    tensors[theirs] = narrowed(value, dtype, info.name);
  }
  return tensors;
}

}  // namespace lightlora::detail
