// SPDX-License-Identifier: Apache-2.0
// Converts a LoRA file between the formats of lightlora, diffusers, PEFT and kohya, or shows what
// it holds. Ends with the file or folder written.
#include <lightlora/lightlora.h>

#include <filesystem>
#include <iostream>
#include <set>
#include <sstream>

#include "cli/app.h"
#include "cli/format.h"
#include "cli/run.h"

namespace {

using lightlora::AdapterState;
using lightlora::Components;

struct Flags {
  std::string input, output, to, dtype = "fp32";
  std::optional<int64_t> rank;
  bool inspect = false, embed_aux = false, flat_text_encoder = false;
};

void add_flags(cli::App& app, Flags& f) {
  app.group("Files");
  app.add_option("--input", f.input, "LoRA file of any dialect, or a folder of PEFT or diffusers")
      ->required();
  app.add_option("--output", f.output, "File to write; a folder for peft");
  app.add_option("--to", f.to, "Format to write")
      ->check(cli::one_of({"native", "diffusers", "peft", "kohya"}));
  app.add_flag("--inspect", f.inspect, "Print what the input holds, and write nothing");
  app.group("Values");
  app.add_option("--rank", f.rank,
                 "Cut each layer to this rank, by the best approximation (default: as it is)")
      ->check(cli::at_least(1));
  app.add_option("--dtype", f.dtype, "Precision of the values written")
      ->check(cli::one_of({"fp32", "fp16", "bf16"}));
  app.add_flag("--embed_aux", f.embed_aux,
               "native: also write the frozen bases, which are otherwise made from their seed");
  app.add_flag("--flat_text_encoder", f.flat_text_encoder,
               "peft: names of transformers 5.6 and later, without text_model.");
}

at::ScalarType dtype_of(const std::string& name) {
  if (name == "fp16") return at::kHalf;
  return name == "bf16" ? at::kBFloat16 : at::kFloat;
}

// "4" or "4 to 16".
template <typename Value>
std::string range_text(const std::set<Value>& values) {
  std::ostringstream text;
  text << *values.begin();
  if (values.size() > 1) text << " to " << *values.rbegin();
  return text.str();
}

std::string list_text(const std::set<std::string>& values) {
  std::string text;
  for (const auto& value : values) text += (text.empty() ? "" : ", ") + value;
  return text;
}

void print_row(const std::string& name, const std::string& value) {
  std::cout << name << std::string(name.size() < 12 ? 12 - name.size() : 1, ' ') << value << "\n";
}

void print_component(const std::string& name, const AdapterState& state) {
  std::set<std::string> variants;
  std::set<int64_t> ranks;
  std::set<double> scales, alphas;
  int64_t values = 0;
  for (const auto& layer : state) {
    variants.insert(layer.variant);
    ranks.insert(layer.options.rank());
    scales.insert(layer.scale);
    alphas.insert(layer.scale * static_cast<double>(layer.options.rank()));
    for (const auto& item : layer.trained) values += item.second.numel();
  }
  print_row(name.empty() ? "(unnamed)" : name,
            std::to_string(state.size()) + " layers, " + list_text(variants) + ", rank " +
                range_text(ranks) + ", alpha " + range_text(alphas) + ", scale " +
                range_text(scales) + ", " + cli::format_count(values) + " values");
}

void inspect(const Flags& flags, const lightlora::LoRAContents& contents) {
  print_row("file", flags.input);
  print_row("dialect", list_text(contents.dialects));
  print_row("size", cli::format_bytes(contents.bytes) + " in " + std::to_string(contents.tensors) +
                        " tensors");
  print_row("dtype", list_text(contents.dtypes));
  for (const auto& [name, state] : contents.components) {
    if (!state.empty()) print_component(name, state);
  }
  std::set<std::string> keys;
  for (const auto& item : contents.metadata) keys.insert(item.first);
  print_row("metadata", keys.empty() ? "none" : list_text(keys));
}

// The layers cut to a rank. A native file keeps its variants.
AdapterState cut(const AdapterState& state, int64_t rank, bool native) {
  AdapterState result;
  for (const auto& layer : state) {
    result.push_back(native ? lightlora::truncate_in_variant(layer, rank)
                            : lightlora::truncate_rank(layer, rank));
  }
  return result;
}

void cast(std::map<std::string, at::Tensor>& tensors, at::ScalarType dtype) {
  for (auto& item : tensors) item.second = item.second.to(dtype).contiguous();
}

Components for_native(Components components, const Flags& flags) {
  for (auto& [name, state] : components) {
    for (auto& layer : state) {
      if (flags.embed_aux) {
        layer = lightlora::state_of(*lightlora::make_adapter(layer), lightlora::Bases::embedded);
      }
      cast(layer.trained, dtype_of(flags.dtype));
      cast(layer.frozen, dtype_of(flags.dtype));
    }
  }
  return components;
}

// What the input says about itself, for a native output; a format's own fields are not kept.
lightlora::Metadata kept_metadata(const lightlora::LoRAContents& contents) {
  lightlora::Metadata kept;
  const auto prompt = contents.metadata.find("instance_prompt");
  if (prompt != contents.metadata.end()) kept.insert(*prompt);
  return kept;
}

void convert(const Flags& flags, const lightlora::LoRAContents& contents) {
  TORCH_CHECK_VALUE(!flags.output.empty() && !flags.to.empty(),
                    "--output and --to: expected both, or --inspect, got ",
                    flags.output.empty() && flags.to.empty() ? "neither" : "one of them");
  TORCH_CHECK_VALUE(!flags.embed_aux || flags.to == "native",
                    "--embed_aux: expected it with --to native, got --to ", flags.to);
  TORCH_CHECK_VALUE(!flags.flat_text_encoder || flags.to == "peft",
                    "--flat_text_encoder: expected it with --to peft, got --to ", flags.to);
  Components components = contents.components;
  if (flags.rank) {
    for (auto& [name, state] : components) state = cut(state, *flags.rank, flags.to == "native");
  }
  const auto dtype = dtype_of(flags.dtype);
  if (flags.to == "native") {
    lightlora::save_native(flags.output, for_native(components, flags), kept_metadata(contents));
  } else if (flags.to == "diffusers") {
    lightlora::save_diffusers(flags.output, components, dtype);
  } else if (flags.to == "kohya") {
    lightlora::save_kohya(flags.output, components, dtype);
  } else {
    const auto options = lightlora::PeftOptions().dtype(dtype).text_model(!flags.flat_text_encoder);
    lightlora::save_peft(flags.output, components, options);
  }
  std::cout << flags.to << (flags.to == "peft" ? " folder: " : " file: ") << flags.output;
  if (flags.to != "peft") {
    const auto size = std::filesystem::file_size(flags.output);
    std::cout << " (" << cli::format_bytes(static_cast<int64_t>(size)) << ")";
  }
  std::cout << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  cli::App app(
      "convert_lora", "Converts LoRA files between formats, or shows what one holds.",
      "convert_lora --input lightlora.safetensors --output for_a1111.safetensors --to kohya "
      "--dtype fp16");
  add_flags(app, flags);
  return cli::run(argc, argv, app, [&] {
    if (!flags.inspect && (flags.output.empty() || flags.to.empty())) return convert(flags, {});
    const auto contents = lightlora::read_lora(flags.input);
    flags.inspect ? inspect(flags, contents) : convert(flags, contents);
  });
}
