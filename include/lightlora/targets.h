// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
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
  bool vector = false;  ///< a norm's weight or bias, or a layer's bias: see `Targets::vectors`
};

/// Layers of a model, by name or by what they are.
class Pattern {
 public:
  /// The layer of that path, and every layer whose path ends in "." + name, as in PEFT's
  /// `target_modules`.
  /* implicit */ Pattern(const char* name) : Pattern(std::string(name)) {}
  /* implicit */ Pattern(const std::string& name);
  /// Every layer for which the predicate holds, of a TargetLayer or of its path; `label` names it
  /// in messages. Expressions: `matches` of <lightlora/regex.h>.
  template <typename Function,
            typename = std::enable_if_t<std::is_invocable_v<Function, const TargetLayer&> ||
                                        std::is_invocable_v<Function, const std::string&>>>
  Pattern(std::string label, Function predicate) : text_(std::move(label)) {
    if constexpr (std::is_invocable_v<Function, const TargetLayer&>) {
      selects_ = std::move(predicate);
    } else {
      selects_ = [predicate = std::move(predicate)](const TargetLayer& layer) mutable -> bool {
        return predicate(layer.path);
      };
    }
  }

  const std::string& text() const { return text_; }
  bool selects(const TargetLayer& layer) const { return selects_(layer); }

 private:
  std::string text_;
  std::function<bool(const TargetLayer&)> selects_;
};

/// Which layers of a model to adapt, and where rank and alpha differ from the options:
/// `Targets{"to_q", "to_out.0"}.exclude("head").rank("to_q", 8)`. Every pattern must match
/// something.
class Targets {
 public:
  /// No layer yet.
  Targets() = default;
  /* implicit */ Targets(std::initializer_list<Pattern> patterns) : include_(patterns) {}
  /* implicit */ Targets(const std::vector<std::string>& names)
      : include_(names.begin(), names.end()) {}

  /// Every layer that can be adapted.
  static Targets all();
  /// Every Linear and every projection of a MultiheadAttention. PEFT's "all-linear" also leaves out
  /// the output layer, which only the caller knows here: `.exclude("head")`.
  static Targets all_linear();

  /// Trains vectors of the model too: weights and biases of norms (LayerNorm, GroupNorm), and biases
  /// of linear layers and convolutions, by names of their own such as "norm1.weight" or
  /// "to_out.0.bias"; no other pattern selects them. Whatever the variant is, each gets a
  /// difference of the `full` one at scale 1.
  Targets& vectors(std::initializer_list<Pattern> patterns);
  /// Weight and bias of every norm, for `vectors`.
  static Pattern norms();
  /// The bias of every linear layer and convolution, for `vectors`.
  static Pattern biases();

  /// Leaves out layers, whatever selected them.
  Targets& exclude(std::initializer_list<Pattern> patterns);
  Targets& exclude(const Pattern& pattern) { return exclude({pattern}); }
  /// Another rank for some of the layers. Of several patterns that match, the first counts.
  Targets& rank(const Pattern& pattern, int64_t rank);
  /// Another network_alpha, chosen likewise.
  Targets& alpha(const Pattern& pattern, double network_alpha);

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
  /// The network_alpha that a pattern gives this layer.
  std::optional<double> alpha_of(const std::string& path) const;

 private:
  template <typename Value>
  static std::optional<Value> first_match(const std::vector<std::pair<Pattern, Value>>& patterns,
                                          const std::string& path) {
    for (const auto& [pattern, value] : patterns) {
      if (pattern.selects({path, "", ""})) return value;
    }
    return std::nullopt;
  }

  static int64_t require_hits(const Pattern& pattern, const std::vector<TargetLayer>& layers,
                              bool vectors = false);

  std::vector<Pattern> include_;
  std::vector<Pattern> vectors_;
  std::vector<Pattern> exclude_;
  std::vector<std::pair<Pattern, int64_t>> ranks_;
  std::vector<std::pair<Pattern, double>> alphas_;
};

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/targets-inl.h>
#endif
