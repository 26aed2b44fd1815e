// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace lightlora {

/// A layer that targets may select.
struct TargetLayer {
  std::string path;     ///< as `named_modules()` spells it
  std::string type;     ///< "Linear", "Conv2d", "MultiheadAttention", ...
  std::string refusal;  ///< why it cannot be adapted; empty if it can
};

/// Which layers of a model to adapt, and where rank and alpha differ from the options.
///
/// A name selects the layer of that path and every layer whose path ends in "." + name, as PEFT's
/// `target_modules` list does: `Targets{"to_q", "to_out.0"}`. Every pattern must match something.
class Targets {
 public:
  /// Says whether a layer is meant.
  using Predicate = std::function<bool(const TargetLayer& layer)>;

  /// No layer yet; add some with the functions below.
  Targets() = default;
  /// Layers by path or suffix.
  /* implicit */ Targets(std::initializer_list<std::string> names) { add_names(names); }
  /// Layers by path or suffix.
  /* implicit */ Targets(const std::vector<std::string>& names) { add_names(names); }

  /// Every layer that can be adapted.
  static Targets all() {
    return Targets().where("every layer", [](const TargetLayer&) { return true; });
  }
  /// Every Linear and every projection of a MultiheadAttention. PEFT's "all-linear" also leaves out
  /// the output layer, which only the caller knows here: `.exclude({"head"})`.
  static Targets all_linear() {
    return Targets().where("every Linear", [](const TargetLayer& layer) {
      return layer.type == "Linear" || layer.type == "MultiheadAttention";
    });
  }

  /// Adds every layer whose whole path matches the (ECMAScript) expression.
  /// Errors: c10::ValueError if the expression is malformed
  // A template, as all that compiles expressions here: std::regex then costs compile time only in
  // files that use it.
  template <typename Text = std::string>
  Targets& regex(const Text& expression) {
    return where("regex " + std::string(expression), full_match(expression));
  }
  /// Adds every layer for which the predicate, of a TargetLayer or of its path, holds; `label` names
  /// it in messages.
  template <typename Function>
  Targets& where(std::string label, Function predicate) {
    if constexpr (std::is_invocable_v<Function, const TargetLayer&>) {
      include_.push_back({std::move(label), std::move(predicate)});
    } else {
      include_.push_back({std::move(label), [predicate = std::move(predicate)](
                                                const TargetLayer& layer) mutable -> bool {
                            return predicate(layer.path);
                          }});
    }
    return *this;
  }
  /// Leaves out layers by path or suffix, whatever selected them.
  Targets& exclude(const std::vector<std::string>& names) {
    for (const auto& name : names) exclude_.push_back({name, by_name(name)});
    return *this;
  }
  /// Leaves out every layer whose whole path matches the expression, whatever selected it.
  /// Errors: c10::ValueError if the expression is malformed
  template <typename Text = std::string>
  Targets& exclude_regex(const Text& expression) {
    exclude_.push_back({"regex " + std::string(expression), full_match(expression)});
    return *this;
  }
  /// Another rank for the layers whose path, or what follows one of its dots, matches the expression,
  /// as in PEFT: a plain name such as "to_q" is one. Of several that match, the first counts.
  /// Errors: c10::ValueError if the expression is malformed
  template <typename Text = std::string>
  Targets& rank_pattern(const Text& expression, int64_t rank) {
    ranks_.push_back({{expression, suffix_match(expression)}, rank});
    return *this;
  }
  /// Another network_alpha, chosen likewise.
  template <typename Text = std::string>
  Targets& alpha_pattern(const Text& expression, double network_alpha) {
    alphas_.push_back({{expression, suffix_match(expression)}, network_alpha});
    return *this;
  }

  /// A pattern's text and how many layers it selected.
  struct Hits {
    std::string pattern;   ///< as it was given
    int64_t count = 0;     ///< layers
    std::string set = {};  ///< the adapter set that it belongs to
  };

  /// The paths of the selected layers, in their order; `hits`, if given, receives each pattern's
  /// count.
  /// Errors: c10::Error if a pattern matches nothing that can be adapted; the message lists close
  ///         names, or says why the layer that it names is refused
  std::vector<std::string> select(const std::vector<TargetLayer>& layers,
                                  std::vector<Hits>* hits = nullptr) const;

  /// The rank that a pattern gives this layer, or `otherwise`.
  int64_t rank_of(const std::string& path, int64_t otherwise) const {
    return first_match(ranks_, path, otherwise);
  }
  /// Whether a pattern gives this layer its own network_alpha, and then which.
  bool has_alpha(const std::string& path, double& network_alpha) const {
    for (const auto& [pattern, value] : alphas_) {
      if (pattern.matches({path, "", ""})) {
        network_alpha = value;
        return true;
      }
    }
    return false;
  }

 private:
  struct Pattern {
    std::string text;
    Predicate matches;
  };

  // `char`, as something that depends on a template's argument.
  template <typename>
  struct Letter {
    using type = char;
  };

  static Predicate by_name(const std::string& name) {
    return [name](const TargetLayer& layer) {
      const std::string& path = layer.path;
      if (path.size() <= name.size()) return path == name;
      const std::size_t start = path.size() - name.size();
      return path[start - 1] == '.' && path.compare(start, name.size(), name) == 0;
    };
  }

  template <typename Text>
  static Predicate full_match(const Text& expression) {
    std::basic_regex<typename Letter<Text>::type> compiled;
    try {
      compiled.assign(expression);
    } catch (const std::regex_error& error) {
      TORCH_CHECK_VALUE(false, "lightlora::Targets: '", expression,
                        "': expected a regular expression, got one with an error: ", error.what());
    }
    return [compiled = std::move(compiled)](const TargetLayer& layer) {
      return std::regex_match(layer.path, compiled);
    };
  }

  template <typename Text>
  static Predicate suffix_match(const Text& expression) {
    full_match(expression);  // an error then names what was given
    return full_match("(?:.*\\.)?(?:" + std::string(expression) + ")");
  }

  template <typename Value>
  static Value first_match(const std::vector<std::pair<Pattern, Value>>& patterns,
                           const std::string& path, Value otherwise) {
    for (const auto& [pattern, value] : patterns) {
      if (pattern.matches({path, "", ""})) return value;
    }
    return otherwise;
  }

  template <typename Names>
  void add_names(const Names& names) {
    for (const auto& name : names) include_.push_back({name, by_name(name)});
  }

  static int64_t require_hits(const Pattern& pattern, const std::vector<TargetLayer>& layers);

  std::vector<Pattern> include_;
  std::vector<Pattern> exclude_;
  std::vector<std::pair<Pattern, int64_t>> ranks_;
  std::vector<std::pair<Pattern, double>> alphas_;
};

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
    for (std::size_t at = 0; at != std::string::npos;
         at = name.find('.', at) == std::string::npos ? std::string::npos
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

inline int64_t Targets::require_hits(const Pattern& pattern,
                                     const std::vector<TargetLayer>& layers) {
  int64_t count = 0;
  std::vector<std::string> paths;
  const TargetLayer* refused = nullptr;
  for (const auto& layer : layers) {
    const bool match = pattern.matches(layer);
    if (!layer.refusal.empty()) {
      if (match) refused = &layer;
      continue;
    }
    paths.push_back(layer.path);
    if (match) ++count;
  }
  TORCH_CHECK(count > 0 || !refused, "lightlora::patch: target '", pattern.text,
              "': expected a layer that can be adapted, got '", refused->path, "', a ",
              refused->type, ": ", refused->refusal);
  const std::string below = count > 0 ? "" : detail::names_below(pattern.text, paths);
  TORCH_CHECK(below.empty(), "lightlora::patch: target '", pattern.text,
              "': expected a layer, got a module that holds some; hint: name those, as in ", below);
  TORCH_CHECK(count > 0, "lightlora::patch: target '", pattern.text,
              "': expected at least one layer of that name among ", paths.size(),
              " adaptable layers, got none; hint: the nearest names are ",
              detail::nearest_names(pattern.text, paths));
  return count;
}

inline std::vector<std::string> Targets::select(const std::vector<TargetLayer>& layers,
                                                std::vector<Hits>* hits) const {
  TORCH_CHECK_VALUE(!include_.empty(), "lightlora::patch: expected at least one target, got none; ",
                    "hint: Targets{\"to_q\", \"to_v\"}, or Targets::all()");
  for (const auto& pattern : include_) {
    const int64_t count = require_hits(pattern, layers);
    if (hits) hits->push_back({pattern.text, count});
  }
  for (const auto& pattern : exclude_) require_hits(pattern, layers);
  for (const auto& item : ranks_) require_hits(item.first, layers);
  for (const auto& item : alphas_) require_hits(item.first, layers);

  const auto matches_one = [](const std::vector<Pattern>& patterns, const TargetLayer& layer) {
    return std::any_of(patterns.begin(), patterns.end(),
                       [&](const Pattern& pattern) { return pattern.matches(layer); });
  };
  std::vector<std::string> selected;
  for (const auto& layer : layers) {
    if (layer.refusal.empty() && matches_one(include_, layer) && !matches_one(exclude_, layer)) {
      selected.push_back(layer.path);
    }
  }
  TORCH_CHECK(!selected.empty(),
              "lightlora::patch: expected at least one layer to adapt, got none: ",
              "every selected layer is excluded");
  return selected;
}

}  // namespace lightlora
