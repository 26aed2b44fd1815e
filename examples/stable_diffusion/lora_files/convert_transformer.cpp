// SPDX-License-Identifier: Apache-2.0
#include "lora_files/convert_transformer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "lora_files/combine.h"
#include "lora_files/translate.h"
#include "pipeline/lora.h"
#include "support/cli/fmt.h"
#include "support/cli/message.h"

namespace lora_files {
namespace {

// An input, and the weight that it counts with.
struct Input {
  std::string path;
  double weight = 1;
  TransformerFile file;
};

std::vector<Input> read_all(const Flags& flags) {
  std::vector<Input> inputs;
  for (const auto& text : flags.inputs) {
    const auto choice = sd::parse_lora(text);
    auto file = read_transformer(
        choice.path, {flags.to, flags.extract.base.load.model_config(), flags.ignore_unmatched,
                      flags.extract.base.load.allow_trailing_bytes()});
    if (!file && inputs.empty()) return {};
    TORCH_CHECK(file && (inputs.empty() || file->family == inputs[0].file.family), "'", choice.path,
                "': expected a LoRA of ", inputs.empty() ? "" : inputs[0].file.family->name,
                " as the files before it, got one of ",
                file ? file->family->name : "another kind of model");
    inputs.push_back({choice.path, choice.weight, std::move(*file)});
  }
  return inputs;
}

void print_ignored(const Input& input) {
  if (input.file.ignored.empty()) return;
  fmt::print("notice: '{}': {} of {} tensors are not used, the first is '{}'\n",
             cli::printable(input.path), input.file.ignored.size(), input.file.tensors,
             cli::printable(input.file.ignored.front()));
}

void print_loss(const Loss& loss) {
  constexpr double kRounding = 1e-5;  // of fp32 factors
  if (loss.largest_error < kRounding) return;
  fmt::print("kept {}% of the energy; the largest error is {:.1f}%, of '{}'\n",
             std::round(loss.kept * 1000) / 10, loss.largest_error * 100,
             cli::printable(loss.layer));
}

// Sums, weights and cuts are the library's work, on plain factors.
TransformerFile computed(const std::vector<Input>& inputs, const Flags& flags) {
  const auto& first = inputs.front();
  const auto keep = flags.keep();
  if (inputs.size() == 1 && first.weight == 1 && keep.everything()) return first.file;
  std::vector<Weighted> weighted;
  for (const auto& input : inputs) {
    weighted.push_back({input.path, input.weight, components_of(input.file)});
  }
  const auto whole = combine(weighted);
  const auto components = cut(whole, keep, lightlora::As::classic);
  if (!keep.everything()) print_loss(loss_of(whole, components));
  return with_components(first.file, components);
}

// Without what no program would read under the format's names.
TransformerFile without_unread(TransformerFile file, const Flags& flags) {
  const auto& components = file.family->components;
  std::size_t dropped = 0;
  std::string kept_by;
  for (auto layer = file.layers.begin(); layer != file.layers.end();) {
    const auto& formats = components.at(static_cast<size_t>(layer->first.component)).formats;
    if (formats.empty() || std::count(formats.begin(), formats.end(), flags.to) > 0) {
      ++layer;
      continue;
    }
    kept_by = fmt::format("{}", fmt::join(formats, " or "));
    layer = file.layers.erase(layer);
    ++dropped;
  }
  if (dropped == 0) return file;
  const auto what = fmt::format(
      "no program reads adapters of the text encoder of {} from {}'s names: {} layers are left "
      "out; "
      "hint: --to {} keeps them",
      file.family->name, flags.to, dropped, kept_by);
  TORCH_CHECK(!file.layers.empty(), "'", cli::printable(flags.inputs.front()),
              "': nothing is left to write: ", what);
  fmt::print("notice: {}\n", what);
  return file;
}

}  // namespace

bool convert_transformer(const Flags& flags) {
  const auto inputs = read_all(flags);
  if (inputs.empty()) return false;
  for (const auto& input : inputs) print_ignored(input);
  const auto file = without_unread(computed(inputs, flags), flags);
  write_transformer(file, flags.to, flags.output, flags.dtype);
  fmt::print("{} layers of {}\n", file.layers.size(), file.family->name);
  return true;
}

}  // namespace lora_files
