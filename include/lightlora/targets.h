// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
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

namespace detail {

// Whether a layer's whole path matches an expression. `Letter` is char.
template <typename Letter>
std::function<bool(const TargetLayer&)> full_match(const std::string& expression);
// Whether its path, or what follows one of the path's dots, does.
template <typename Letter>
std::function<bool(const TargetLayer&)> suffix_match(const std::string& expression);

}  // namespace detail

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
  /* implicit */ Targets(std::initializer_list<std::string> names)
      : Targets(std::vector<std::string>(names)) {}
  /// Layers by path or suffix.
  /* implicit */ Targets(const std::vector<std::string>& names);

  /// Every layer that can be adapted.
  static Targets all();
  /// Every Linear and every projection of a MultiheadAttention. PEFT's "all-linear" also leaves out
  /// the output layer, which only the caller knows here: `.exclude({"head"})`.
  static Targets all_linear();

  /// Adds every layer whose whole path matches the (ECMAScript) expression.
  /// Errors: c10::ValueError if the expression is malformed
  // A template, as all that compiles expressions here: in the headers std::regex then costs compile
  // time only in files that use it.
  template <typename Letter = char>
  Targets& regex(const std::string& expression) {
    return where("regex " + expression, detail::full_match<Letter>(expression));
  }
  /// Adds every layer for which the predicate, of a TargetLayer or of its path, holds; `label`
  /// names it in messages.
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
  Targets& exclude(const std::vector<std::string>& names);
  /// Leaves out every layer whose whole path matches the expression, whatever selected it.
  /// Errors: c10::ValueError if the expression is malformed
  template <typename Letter = char>
  Targets& exclude_regex(const std::string& expression) {
    exclude_.push_back({"regex " + expression, detail::full_match<Letter>(expression)});
    return *this;
  }
  /// Another rank for the layers whose path, or what follows a dot in it, matches the expression,
  /// as in PEFT: a plain name such as "to_q" is one. Of several that match, the first counts.
  /// Errors: c10::ValueError if the expression is malformed
  template <typename Letter = char>
  Targets& rank_pattern(const std::string& expression, int64_t rank) {
    ranks_.push_back({{expression, detail::suffix_match<Letter>(expression)}, rank});
    return *this;
  }
  /// Another network_alpha, chosen likewise.
  template <typename Letter = char>
  Targets& alpha_pattern(const std::string& expression, double network_alpha) {
    alphas_.push_back({{expression, detail::suffix_match<Letter>(expression)}, network_alpha});
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
  int64_t rank_of(const std::string& path, int64_t otherwise) const;
  /// Whether a pattern gives this layer its own network_alpha, and then which.
  bool has_alpha(const std::string& path, double& network_alpha) const;

 private:
  struct Pattern {
    std::string text;
    Predicate matches;
  };

  static Predicate by_name(const std::string& name);

  template <typename Value>
  static Value first_match(const std::vector<std::pair<Pattern, Value>>& patterns,
                           const std::string& path, Value otherwise) {
    for (const auto& [pattern, value] : patterns) {
      if (pattern.matches({path, "", ""})) return value;
    }
    return otherwise;
  }

  static int64_t require_hits(const Pattern& pattern, const std::vector<TargetLayer>& layers);

  std::vector<Pattern> include_;
  std::vector<Pattern> exclude_;
  std::vector<std::pair<Pattern, int64_t>> ranks_;
  std::vector<std::pair<Pattern, double>> alphas_;
};

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/targets-inl.h>
#endif
