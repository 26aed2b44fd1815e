// SPDX-License-Identifier: Apache-2.0
#include "generation/axes.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>

#include "support/cli/fmt.h"

namespace generation {

namespace {

// Where a value goes, if it is one.
using Setter =
    std::function<bool(const std::string& value, GenerationOptions&, std::optional<double>&)>;

struct Kind {
  std::string name, shown;  // A1111's word for it
  std::string expected;
  Setter set;
};

template <typename Number>
std::optional<Number> read(const std::string& text) {
  Number value{};
  const auto* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  if (result.ec != std::errc() || result.ptr != end) return std::nullopt;
  if constexpr (std::is_floating_point_v<Number>) {
    if (!std::isfinite(value)) return std::nullopt;
  }
  return value;
}

// A setter for a number from `least` to `most`.
template <typename Number, typename Field>
Setter into(Field field, Number least, Number most) {
  return [=](const std::string& text, GenerationOptions& options, std::optional<double>&) {
    const auto value = read<Number>(text);
    if (!value || *value < least || *value > most) return false;
    field(options) = *value;
    return true;
  };
}

bool read_lora_weight(const std::string& text, GenerationOptions&, std::optional<double>& weight) {
  weight = read<double>(text);
  return weight.has_value();
}

bool read_seed(const std::string& text, GenerationOptions& options, std::optional<double>&) {
  options.seed = read<uint64_t>(text);
  return options.seed.has_value() || text == "-1";
}

bool set_scheduler(const std::string& text, GenerationOptions& options, std::optional<double>&) {
  const auto names = sd::scheduler_names();
  options.sample.scheduler(text);
  return std::find(names.begin(), names.end(), text) != names.end();
}

const std::vector<Kind>& kinds() {
  using Options = GenerationOptions;
  const double large = 1e9;
  const int64_t many = int64_t{1} << 40;
  static const std::vector<Kind> all{
      {"lora_weight", "LoRA weight", "a number", read_lora_weight},
      {"seed", "Seed", "a whole number", read_seed},
      {"steps", "Steps", "a whole number from 1",
       into<int64_t>([](Options& o) -> auto& { return o.sample.num_inference_steps(); }, 1, many)},
      {"guidance", "CFG Scale", "a number",
       into<double>([](Options& o) -> auto& { return o.sample.guidance_scale(); }, -large, large)},
      {"strength", "Denoising", "a number from 0 to 1",
       into<double>([](Options& o) -> auto& { return o.sample.strength(); }, 0.0, 1.0)},
      {"clip_skip", "Clip skip", "a whole number",
       into<int64_t>([](Options& o) -> auto& { return o.sample.clip_skip(); }, 0, many)},
      {"scheduler", "Sampler", "a scheduler's name", set_scheduler}};
  return all;
}

const Kind& kind_of(const std::string& name) {
  std::vector<std::string> names;
  for (const auto& kind : kinds()) {
    if (kind.name == name) return kind;
    names.push_back(kind.name);
  }
  const std::string near = cli::closest(name, names);
  TORCH_CHECK_VALUE(
      false, fmt::format("--xy: expected one of {}, got '{}'{}", fmt::join(names, ", "), name,
                         near.empty() ? "" : fmt::format("; hint: did you mean '{}'?", near)));
}

}  // namespace

std::vector<Axis> parse_axes(const std::vector<std::string>& texts) {
  TORCH_CHECK_VALUE(texts.size() <= 2, "--xy: expected one axis or two, got ", texts.size());
  std::vector<Axis> axes;
  for (const auto& text : texts) {
    const auto equals = text.find('=');
    TORCH_CHECK_VALUE(equals != std::string::npos && equals + 1 < text.size(),
                      "--xy: expected NAME=V1,V2,..., got '", text, "'; hint: seed=1,2,3");
    const Axis axis{text.substr(0, equals), split_list(text.substr(equals + 1))};
    const Kind& kind = kind_of(axis.name);
    for (const auto& value : axis.values) {
      GenerationOptions options;
      std::optional<double> weight;
      TORCH_CHECK_VALUE(kind.set(value, options, weight), "--xy: expected ", kind.expected, " for ",
                        axis.name, ", got '", value, "'");
    }
    axes.push_back(axis);
  }
  TORCH_CHECK_VALUE(axes.size() < 2 || axes[0].name != axes[1].name,
                    "--xy: expected two axes of different names, got ", axes[0].name, " twice");
  return axes;
}

void settle_seeds(Axis& axis, const distributed::Group& group) {
  if (axis.name != "seed") return;
  for (auto& value : axis.values) {
    if (value == "-1") value = fmt::to_string(new_seed(group));
  }
}

void apply_axis(const Axis& axis, std::size_t i, GenerationOptions& options,
                std::optional<double>& lora_weight) {
  kind_of(axis.name).set(axis.values.at(i), options, lora_weight);
}

std::vector<std::pair<std::string, std::string>> axis_fields(const std::vector<Axis>& axes) {
  std::vector<std::pair<std::string, std::string>> fields{{"Script", "X/Y/Z plot"}};
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const std::string letter = i == 0 ? "X" : "Y";
    fields.emplace_back(letter + " Type", kind_of(axes[i].name).shown);
    fields.emplace_back(letter + " Values", fmt::format("{}", fmt::join(axes[i].values, ", ")));
  }
  return fields;
}

}  // namespace generation
