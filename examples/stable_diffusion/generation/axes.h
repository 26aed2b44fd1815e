// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "generation/options.h"

namespace generation {

/// One axis of a sheet: a setting and the values that it takes.
struct Axis {
  std::string name;
  std::vector<std::string> values;

  /// "steps 20", for the sheet's edge.
  std::string label(std::size_t i) const { return name + " " + values[i]; }
};

/// The axes of --xy, one or two of different names.
/// Errors: c10::ValueError for an unknown name, a value of the wrong kind, or more than two axes
std::vector<Axis> parse_axes(const std::vector<std::string>& texts);

/// Draws a seed for each -1 among an axis of seeds, on rank 0 for all.
void settle_seeds(Axis& axis, const distributed::Group& group);

/// Sets the option of an axis; "lora_weight" sets the number instead.
void apply_axis(const Axis& axis, std::size_t i, GenerationOptions& options,
                std::optional<double>& lora_weight);

/// A1111's words for the axes: "Script: X/Y/Z plot, X Type: Seed, X Values: 1,2".
std::vector<std::pair<std::string, std::string>> axis_fields(const std::vector<Axis>& axes);

}  // namespace generation
