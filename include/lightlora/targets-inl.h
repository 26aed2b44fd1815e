// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/targets.h>

#include <c10/util/Exception.h>

#include <algorithm>
#include <map>
#include <set>

namespace lightlora {

LIGHTLORA_INLINE Pattern::Pattern(const std::string& name)
    : Pattern(name, [name](const std::string& path) {
        if (path.size() <= name.size()) return path == name;
        const std::size_t start = path.size() - name.size();
        return path[start - 1] == '.' && path.compare(start, name.size(), name) == 0;
      }) {}

LIGHTLORA_INLINE Targets Targets::all() {
  return {Pattern("every layer", [](const TargetLayer&) { return true; })};
}

LIGHTLORA_INLINE Targets Targets::all_linear() {
  return {Pattern("every Linear", [](const TargetLayer& layer) {
    return layer.type == "Linear" || layer.type == "MultiheadAttention";
  })};
}

LIGHTLORA_INLINE Targets& Targets::vectors(std::initializer_list<Pattern> patterns) {
  vectors_.insert(vectors_.end(), patterns);
  return *this;
}

LIGHTLORA_INLINE Pattern Targets::norms() {
  return {"every norm", [](const TargetLayer& layer) { return layer.type == "Norm"; }};
}

LIGHTLORA_INLINE Pattern Targets::biases() {
  return {"every bias", [](const TargetLayer& layer) { return layer.type == "Bias"; }};
}

LIGHTLORA_INLINE Targets& Targets::exclude(std::initializer_list<Pattern> patterns) {
  exclude_.insert(exclude_.end(), patterns);
  return *this;
}

LIGHTLORA_INLINE Targets& Targets::rank(const Pattern& pattern, int64_t rank) {
  ranks_.emplace_back(pattern, rank);
  return *this;
}

LIGHTLORA_INLINE Targets& Targets::alpha(const Pattern& pattern, double network_alpha) {
  alphas_.emplace_back(pattern, network_alpha);
  return *this;
}

LIGHTLORA_INLINE int64_t Targets::rank_of(const std::string& path, int64_t otherwise) const {
  return first_match(ranks_, path).value_or(otherwise);
}

LIGHTLORA_INLINE std::optional<double> Targets::alpha_of(const std::string& path) const {
  return first_match(alphas_, path);
}

namespace detail {

inline std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

// The `most` names nearest to `wanted`, quoted. A name counts by its best suffix at a dot, because
// that is how people write targets.
inline std::string nearest_names(const std::string& wanted, const std::vector<std::string>& names,
                                 std::size_t most = 3) {
  std::map<std::string, std::size_t> suffixes;
  for (const auto& name : names) {
    for (std::size_t at = 0; at != std::string::npos; at = name.find('.', at) == std::string::npos
                                                               ? std::string::npos
                                                               : name.find('.', at) + 1) {
      const std::string suffix = name.substr(at);
      suffixes.emplace(suffix, edit_distance(wanted, suffix));
    }
  }
  std::vector<std::pair<std::size_t, std::string>> ranked;
  for (const auto& [suffix, distance] : suffixes) ranked.emplace_back(distance, suffix);
  std::sort(ranked.begin(), ranked.end());
  std::string text;
  for (std::size_t i = 0; i < std::min(most, ranked.size()); ++i) {
    text += (i > 0 ? ", '" : "'") + ranked[i].second + "'";
  }
  return text.empty() ? "none" : text;
}

// A few of the names below modules called `wanted`, quoted; empty if it is no such module.
inline std::string names_below(const std::string& wanted, const std::vector<std::string>& paths,
                               std::size_t most = 3) {
  std::set<std::string> below;
  for (const auto& path : paths) {
    const std::size_t at = ("." + path).find("." + wanted + ".");
    if (at != std::string::npos) below.insert(path.substr(at));
  }
  std::string text;
  std::size_t listed = 0;
  for (const auto& name : below) {
    if (listed++ < most) text += (text.empty() ? "'" : ", '") + name + "'";
  }
  return text + (below.size() > most ? " and more" : "");
}

}  // namespace detail

// Of layers, or of vectors: what is asked for counts, and what the messages list.
LIGHTLORA_INLINE int64_t Targets::require_hits(const Pattern& pattern,
                                               const std::vector<TargetLayer>& layers,
                                               bool vectors) {
  int64_t count = 0;
  std::vector<std::string> paths;
  const TargetLayer* refused = nullptr;
  for (const auto& layer : layers) {
    const bool match = pattern.selects(layer);
    if (!layer.refusal.empty()) {
      if (match && !vectors) refused = &layer;
      continue;
    }
    if (layer.vector != vectors) continue;
    paths.push_back(layer.path);
    if (match) ++count;
  }
  TORCH_CHECK(count > 0 || !refused, "target '", pattern.text(),
              "': expected a layer that can be adapted, got '", refused->path, "', a ",
              refused->type, ": ", refused->refusal);
  const std::string below = count > 0 ? "" : detail::names_below(pattern.text(), paths);
  const char* what = vectors ? "norm or bias" : "layer";
  TORCH_CHECK(below.empty(), "target '", pattern.text(), "': expected a ", what,
              ", got a module that holds some; hint: name those, as in ", below);
  TORCH_CHECK(count > 0, "target '", pattern.text(), "': expected at least one ", what,
              " of that name among ", paths.size(),
              vectors ? " weights and biases of norms and biases of layers" : " adaptable layers",
              ", got none; hint: the nearest names are ",
              detail::nearest_names(pattern.text(), paths));
  return count;
}

LIGHTLORA_INLINE std::vector<std::string> Targets::select(const std::vector<TargetLayer>& layers,
                                                          std::vector<Hits>* hits) const {
  TORCH_CHECK_VALUE(!include_.empty() || !vectors_.empty(),
                    "expected at least one target, got none; ",
                    "hint: Targets{\"to_q\", \"to_v\"}, or Targets::all()");
  for (const bool vectors : {false, true}) {
    for (const auto& pattern : vectors ? vectors_ : include_) {
      const int64_t count = require_hits(pattern, layers, vectors);
      if (hits) hits->push_back({pattern.text(), count});
    }
  }
  for (const auto& pattern : exclude_) {
    const bool of_vectors =
        !vectors_.empty() && std::any_of(layers.begin(), layers.end(), [&](const auto& layer) {
          return layer.vector && pattern.selects(layer);
        });
    require_hits(pattern, layers, of_vectors);
  }
  for (const auto& item : ranks_) require_hits(item.first, layers);
  for (const auto& item : alphas_) require_hits(item.first, layers);

  const auto matches_one = [](const std::vector<Pattern>& patterns, const TargetLayer& layer) {
    return std::any_of(patterns.begin(), patterns.end(),
                       [&](const Pattern& pattern) { return pattern.selects(layer); });
  };
  std::vector<std::string> selected;
  for (const auto& layer : layers) {
    const bool wanted = matches_one(layer.vector ? vectors_ : include_, layer);
    if (layer.refusal.empty() && wanted && !matches_one(exclude_, layer)) {
      selected.push_back(layer.path);
    }
  }
  TORCH_CHECK(!selected.empty(), "expected at least one layer to adapt, got none: ",
              "every selected layer is excluded");
  return selected;
}

}  // namespace lightlora
