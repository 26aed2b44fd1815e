// SPDX-License-Identifier: Apache-2.0
// Converts LoRA files between the formats of lightlora, diffusers, PEFT and kohya, adds several up,
// cuts ranks, takes the difference of two models, or shows what a file holds. Ends with the file or
// folder written.
#include <lightlora/lightlora.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <optional>

#include "lora_files/combine.h"
#include "lora_files/convert_transformer.h"
#include "lora_files/doctor.h"
#include "lora_files/extract.h"
#include "lora_files/flags.h"
#include "lora_files/inspect.h"
#include "pipeline/lora.h"
#include "support/cli/app.h"
#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/cli/message.h"
#include "support/cli/run.h"
#include "support/files/outputs.h"

namespace {

using lightlora::Components;
using lora_files::Flags;

// What the input says about itself, for a native output; a format's own fields are not kept.
lightlora::Metadata kept_metadata(const lightlora::AdapterFile& contents) {
  lightlora::Metadata kept;
  for (const char* key : {"instance_prompt", "clip_skip", "prediction_type"}) {
    const auto found = contents.metadata.find(key);
    if (found != contents.metadata.end()) kept.insert(*found);
  }
  const auto prediction = contents.metadata.find("modelspec.prediction_type");
  if (prediction != contents.metadata.end() && prediction->second == "v") {
    kept["prediction_type"] = "v_prediction";
  }
  // sd-scripts counts from one.
  if (const auto skip = contents.metadata.find("ss_clip_skip"); skip != contents.metadata.end()) {
    const auto layers = std::atoll(skip->second.c_str());
    if (layers > 1) kept["clip_skip"] = fmt::to_string(layers - 1);
  }
  return kept;
}

// The same in sd-scripts' words.
lightlora::Metadata kohya_metadata(const lightlora::Metadata& kept) {
  lightlora::Metadata metadata;
  if (const auto skip = kept.find("clip_skip"); skip != kept.end()) {
    metadata["ss_clip_skip"] = fmt::to_string(std::atoll(skip->second.c_str()) + 1);
  }
  const auto prediction = kept.find("prediction_type");
  if (prediction != kept.end() && prediction->second == "v_prediction") {
    metadata["modelspec.prediction_type"] = "v";
  }
  return metadata;
}

lightlora::AdapterFile read(const Flags& flags, const std::string& path) {
  return lightlora::read_adapters(
      path, lightlora::ReadOptions()
                .ignore_unmatched(flags.ignore_unmatched)
                .allow_trailing_bytes(flags.extract.base.load.allow_trailing_bytes()));
}

// Files of transformer models are no adapters of a model here, and have names that tell enough.
// Returns whether this is one.
bool inspect_transformer(const Flags& flags, const std::string& input) {
  const bool trailing = flags.extract.base.load.allow_trailing_bytes();
  try {
    const auto families = lora_files::examine(input, trailing).families;
    for (const auto& family : families) {
      if (family == "SD 1.x" || family == "SD 2.x" || family == "SDXL") return false;
    }
    return !families.empty() && lora_files::print_names(input, families, trailing, flags.json);
  } catch (const c10::Error&) {
    return false;
  }
}

void inspect_one(const Flags& flags, const std::string& input) {
  std::optional<lightlora::AdapterFile> contents;
  try {
    contents = read(flags, input);
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error&) {
    if (inspect_transformer(flags, input)) return;
    throw;
  }
  flags.json ? lora_files::print_json(input, *contents)
             : lora_files::print_contents(input, *contents);
}

void inspect(const Flags& flags) {
  for (const auto& input : flags.inputs) {
    if (&input != &flags.inputs.front()) fmt::print("\n");
    inspect_one(flags, input);
  }
}

void doctor(const Flags& flags) {
  for (const auto& input : flags.inputs) {
    if (&input != &flags.inputs.front()) fmt::print("\n");
    const auto diagnosis =
        lora_files::examine(input, flags.extract.base.load.allow_trailing_bytes());
    flags.json ? lora_files::print_diagnosis_json(input, diagnosis)
               : lora_files::print_diagnosis(input, diagnosis);
  }
}

// What the format has names for.
Components nameable(const Flags& flags, const Components& components) {
  if (flags.to != "diffusers" && flags.to != "peft") return components;
  Components rest = lightlora::without_vectors(components);
  std::size_t dropped = 0;
  for (const auto& [name, state] : components) dropped += state.size() - rest.at(name).size();
  if (dropped > 0) {
    fmt::print(
        "notice: the {} format has no names for norms and biases: {} of them are left out; hint: "
        "--to kohya keeps them\n",
        flags.to, dropped);
  }
  return rest;
}

void write(const Flags& flags, const Components& all, const lightlora::Metadata& metadata) {
  const Components components = nameable(flags, all);
  lightlora::SaveOptions options(lightlora::parse_format(flags.to));
  options.dtype(flags.dtype).text_model(!flags.flat_text_encoder);
  if (flags.embed_aux) options.bases(lightlora::Bases::embedded);
  // A format of another program has fields of its own.
  if (options.format() == lightlora::Format::native) options.metadata(metadata);
  if (options.format() == lightlora::Format::kohya) options.metadata(kohya_metadata(metadata));
  lightlora::save(components, flags.output, options);
}

// What is found out only while converting is about the input too.
template <typename Work>
auto naming(const Flags& flags, const std::string& input, const Work& work) {
  try {
    return work();
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    for (const auto& path : {input, flags.output}) {
      if (message.rfind("'" + path, 0) == 0) throw;
    }
    TORCH_CHECK(false, "'", input, "': ", message);
  }
}

void print_written(const Flags& flags) {
  const auto output = cli::printable(flags.output);
  if (flags.to == "peft") return fmt::print("{} folder: {}\n", flags.to, output);
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(flags.output));
  fmt::print("{} file: {} ({})\n", flags.to, output, cli::format_bytes(bytes));
}

void print_loss(const lora_files::Loss& loss) {
  constexpr double kRounding = 1e-5;  // of fp32 factors
  if (loss.largest_error < kRounding) return;
  fmt::print("kept {}% of the energy; the largest error is {:.1f}%, of '{}'\n",
             std::round(loss.kept * 1000) / 10, loss.largest_error * 100,
             cli::printable(loss.layer));
}

// Products of high rank have no small form in formats without a name for them.
void print_growth(const Flags& flags, const Components& all) {
  constexpr int64_t kMuch = 4;
  if (flags.to != "diffusers") return;
  const Components components = lightlora::without_vectors(all);
  const auto own =
      lora_files::trained_bytes(components, static_cast<int64_t>(c10::elementSize(flags.dtype)));
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(flags.output));
  const auto adapted = std::find_if(components.begin(), components.end(),
                                    [](const auto& item) { return !item.second.empty(); });
  if (adapted == components.end() || bytes < kMuch * own) return;
  const auto& variant = adapted->second.front().variant;
  if (variant == "light") return;
  fmt::print(
      "notice: the diffusers format has no names for {}: its values became plain factors of full "
      "rank, {} for {}; hint: --rank cuts them and says what that loses, --to kohya and peft keep "
      "LoHa and LoKr as they are\n",
      variant, cli::format_bytes(bytes), cli::format_bytes(own));
}

void extract(const Flags& flags) {
  auto options = flags.extract;
  options.keep = flags.keep();
  const auto extracted = lora_files::extract(options);
  for (const auto& notice : extracted.notices) {
    fmt::print("notice: {}\n", cli::printable(notice));
  }
  write(flags, extracted.components, {});
  fmt::print("kept {}% of the difference's energy in the selected layers\n",
             std::round(extracted.kept * 1000) / 10);
  print_written(flags);
}

// OneTrainer puts the words that were trained along into the LoRA's file; no other format has a
// place for them.
void print_embeddings(const std::string& path, const lightlora::AdapterFile& contents) {
  if (contents.embeddings.empty()) return;
  fmt::print(
      "notice: '{}': the embeddings in it are not converted: {}; hint: text_to_image --lora reads "
      "them from the file as it is\n",
      cli::printable(path),
      cli::printable(fmt::format("{}", fmt::join(contents.embeddings, ", "))));
}

void convert(const Flags& flags) {
  if (flags.to != "native" && lora_files::convert_transformer(flags)) return print_written(flags);
  TORCH_CHECK(
      flags.to == "native" || flags.to == "diffusers" || flags.to == "peft" || flags.to == "kohya",
      "'", flags.inputs.front(), "': expected a LoRA of a transformer model for --to ", flags.to,
      ", got another one; hint: ComfyUI reads Stable Diffusion's with --to kohya");
  std::vector<lora_files::Weighted> inputs;
  lightlora::Metadata metadata;
  for (const auto& text : flags.inputs) {
    const auto choice = sd::parse_lora(text);
    const auto contents = read(flags, choice.path);
    if (!contents.ignored.empty()) {
      fmt::print("notice: '{}': {} of {} tensors are not used, the first is '{}'\n",
                 cli::printable(choice.path), contents.ignored.size(), contents.tensors,
                 cli::printable(contents.ignored.front()));
    }
    print_embeddings(choice.path, contents);
    inputs.push_back({choice.path, choice.weight, contents.components});
    metadata = kept_metadata(contents);
  }
  if (inputs.size() > 1) metadata.clear();
  naming(flags, inputs.back().path, [&] {
    const auto whole = lora_files::combine(inputs);
    const auto components =
        lora_files::cut(whole, flags.keep(),
                        flags.to == "native" ? lightlora::As::variant : lightlora::As::classic);
    write(flags, components, metadata);
    if (!flags.keep().everything()) print_loss(lora_files::loss_of(whole, components));
    print_growth(flags, components);
  });
  print_written(flags);
}

void check_outputs(const Flags& flags) {
  sd::Outputs outputs;
  if (flags.to == "peft") {
    outputs.add_folder("--output", flags.output);
  } else {
    outputs.add("--output", flags.output);
  }
  outputs.check();
}

void run(const Flags& flags) {
  flags.check();
  if (flags.doctor) return doctor(flags);
  if (flags.inspect) return inspect(flags);
  check_outputs(flags);
  flags.extract.tuned.empty() ? convert(flags) : extract(flags);
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  cli::App app(
      "convert_lora",
      "Converts LoRA files between formats, adds them up, makes one of two models' difference, or "
      "says what one holds, what is wrong with it, and which programs load it.",
      "convert_lora --input lightlora.safetensors --output for_a1111.safetensors --to kohya "
      "--dtype fp16");
  lora_files::add_flags(app, flags);
  return cli::run(argc, argv, app, [&] { run(flags); });
}
