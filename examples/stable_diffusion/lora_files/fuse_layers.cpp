// SPDX-License-Identifier: Apache-2.0
// Files under the layers of one side: what one has in one and the other in several.
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "lora_files/fuse_layers.h"

namespace lora_files {
namespace {

// The first three of seven parts, for a model whose feed-forward is four times as wide.
constexpr size_t kAttentionParts = 3;

std::vector<int64_t> sizes_of_whole(const LayerKind& kind, const LayerValues& whole) {
  const auto parts = static_cast<int64_t>(kind.diffusers.size());
  const int64_t out = whole.out(), in = whole.in();
  if (kind.rows == Rows::equal_parts) {
    return std::vector<int64_t>(static_cast<size_t>(parts), out / parts);
  }
  TORCH_CHECK(
      in > 0 && out > 3 * in, whole.where, "expected more than ", 3 * in,
      " outputs, for query, key, value and the feed-forward's, beside factors that tell the ",
      "number of inputs, got ", out);
  return {in, in, in, out - 3 * in};
}

std::vector<int64_t> sizes_of_parts(const LayerKind& kind,
                                    const std::vector<const LayerValues*>& parts) {
  int64_t in = 0, out = 0;
  for (const auto* part : parts) {
    if (part == nullptr) continue;
    in = std::max(in, part->in());
    out = std::max(out, part->out());
  }
  if (kind.rows == Rows::equal_parts) return std::vector<int64_t>(parts.size(), out);
  // A feed-forward without an adapter is as wide as in all published models.
  const auto usual = static_cast<int64_t>(kind.ratio - kAttentionParts) * in;
  return {in, in, in, parts.back() == nullptr ? usual : parts.back()->out()};
}

}  // namespace

TransformerFile unfused(const TransformerFile& file) {
  TransformerFile result = file;
  result.layers.clear();
  const auto insert = [&](const Place& place, const LayerValues& values) {
    TORCH_CHECK(result.layers.emplace(place, values).second, values.where,
                "expected it once, got it under two spellings");
  };
  for (const auto& [place, values] : file.layers) {
    const LayerKind& kind = kind_at(*file.family, place);
    if (!kind.is_fused() || place.part != Place::kWhole) {
      insert(place, values);
      continue;
    }
    const auto parts = split(values, sizes_of_whole(kind, values));
    for (size_t i = 0; i < parts.size(); ++i) {
      Place part = place;
      part.part = static_cast<int>(i);
      if (parts[i]) insert(part, *parts[i]);
    }
  }
  return result;
}

TransformerFile fused(const TransformerFile& file) {
  TransformerFile result = file;
  result.layers.clear();
  std::map<Place, std::vector<const LayerValues*>> wholes;
  for (const auto& [place, values] : file.layers) {
    if (place.part == Place::kWhole) {
      result.layers.emplace(place, values);
      continue;
    }
    Place whole = place;
    whole.part = Place::kWhole;
    auto& parts = wholes[whole];
    parts.resize(kind_at(*file.family, place).diffusers.size());
    parts[static_cast<size_t>(place.part)] = &values;
  }
  for (const auto& [place, parts] : wholes) {
    auto values = joined(parts, sizes_of_parts(kind_at(*file.family, place), parts));
    TORCH_CHECK(
        result.layers.emplace(place, std::move(values)).second,
        (*std::find_if(parts.begin(), parts.end(), [](const auto* part) { return part; }))->where,
        "expected it once, got it also as a part of a layer");
  }
  return result;
}

lightlora::Components components_of(const TransformerFile& file) {
  lightlora::Components components;
  const auto parts = unfused(file);
  for (const auto& [place, values] : parts.layers) {
    const auto plain = with_plain_factors(values);
    const auto &down = plain.parts.at("down"), &up = plain.parts.at("up");
    TORCH_CHECK(!plain.has("bias") && down.dim() == 2 && up.dim() == 2, values.where,
                "expected factors of a Linear layer alone, got ",
                plain.has("bias") ? "a bias beside them" : "a convolution's",
                "; hint: convert it without --rank, --energy, weights and other files");
    lightlora::LayerState state;
    state.variant = "classic";
    state.layer.name = diffusers_name(*file.family, place);
    state.layer.in = down.size(1);
    state.layer.out = up.size(0);
    state.scale = plain.scale;
    state.options = lightlora::LoRAOptions()
                        .rank(down.size(0))
                        .network_alpha(plain.scale * static_cast<double>(down.size(0)));
    state.trained = {{"down", down.contiguous()}, {"up", up.contiguous()}};
    components[component_name(*file.family, place.component)].push_back(std::move(state));
  }
  return components;
}

TransformerFile with_components(const TransformerFile& file,
                                const lightlora::Components& components) {
  TransformerFile result = file;
  result.layers.clear();
  const auto count = static_cast<int>(file.family->components.size());
  for (int component = 0; component < count; ++component) {
    const auto found = components.find(component_name(*file.family, component));
    if (found == components.end()) continue;
    for (const auto& state : found->second) {
      const auto place = find_diffusers(*file.family, component, state.layer.name);
      TORCH_CHECK(place, "'", state.layer.name, "': expected a layer of ", file.family->name);
      result.layers[*place] = {"'" + state.layer.name + "': ", "LoRA", state.trained, state.scale};
    }
  }
  return result;
}

std::string component_name(const Family& family, int component) {
  const std::string& prefix = family.components.at(static_cast<size_t>(component)).diffusers;
  return prefix.substr(0, prefix.size() - 1);
}

}  // namespace lora_files
