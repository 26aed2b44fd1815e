// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/config.h>
#include <lightlora/patch.h>
#include <lightlora/state.h>
#include <lightlora/targets.h>

#include <map>
#include <string>
#include <vector>

namespace lightlora {

/// How several adapters of one layer become one, as in PEFT's `add_weighted_adapter`.
/// `linear`: the factors are summed, each with the root of its weight; equal ranks; not the sum of
///           the deltas, because factors of different adapters meet.
/// `cat`:    the factors are put side by side: exactly the sum, of the summed rank.
/// `svd`:    the sum of the deltas, decomposed: for variants without factors, or to keep less.
enum class Combine { linear, cat, svd };

/// One set of a patched model as classic adapters, for any variant; see `to_classic(Adapter)`.
/// Errors: c10::Error while the adapters are active
AdapterState to_classic(const Patched& lora, const Keep& keep = Keep::all(),
                        const std::string& name = "default");

/// What adapters become when their rank is cut: their own kind as far as it has one for a lower
/// rank (Light stays Light, Fused becomes it; others become classic), or classic factors
/// throughout.
enum class As { variant, classic };

/// The best approximation of each layer's delta within `keep`. A layer whose rank `keep` admits
/// stays as it is, or is only made classic. With DoRA, what is added to the weight is cut, and the
/// lengths of the rows stay.
/// Errors: c10::Error for (IA)3, whose delta depends on the layer's weight; `to_classic(lora)` has
///         it
AdapterState cut(const AdapterState& state, const Keep& keep, As as = As::variant);

/// Adapters and the factor that they count with in a sum.
struct Weighted {
  AdapterState state;   ///< of one model
  double weight = 1.0;  ///< factor of its deltas
};

/// The weighted sum of several states as classic adapters. `keep` counts for `svd` only; a layer
/// that some state lacks takes the others.
/// Errors: c10::Error for layers of different sizes, different ranks with `linear`, a variant
///         without factors unless `how` is `svd`, or one whose delta depends on the layer's weight
AdapterState sum(const std::vector<Weighted>& adapters, Combine how = Combine::cat,
                 const Keep& keep = Keep::all());

/// Adds the weighted sum of several sets of a handle as one set of classic adapters. The active
/// sets stay as they were; `lora->set_active({{name, 1}})` puts the new one in their place.
/// Errors: as `sum`, and if a set is unknown, the new name is taken, or the adapters are active or
///         merged; here the layers' weights are known
void combine(const Patched& lora, const std::string& name,
             const std::map<std::string, double>& weights, Combine how,
             const Keep& keep = Keep::all());

/// The same deltas, each in a form that follows from it alone: with delta = U S V^T, up = U S^(1/2)
/// and down = S^(1/2) V^T, singular values falling, and in each column of U the entry of largest
/// size positive. Two states of equal deltas become equal, so that values can be compared, averaged
/// and learned. Light keeps its bases (with orthonormal ones its core is decomposed), Fused, whose
/// core is unique already, stays as it is; others become classic. Ranks stay.
/// Errors: as `cut`; c10::Error for DoRA
AdapterState canonical(const AdapterState& state);

/// Sum of the products of all elements of the deltas of two states, from the factors: no delta is
/// formed where the variants have factors. A layer that one of them lacks counts as zero there.
/// Errors: c10::Error for layers of different sizes, or a variant whose delta depends on the
///         layer's weight
double delta_product(const AdapterState& a, const AdapterState& b);
/// Frobenius norm of all deltas of a state together: the root of its `delta_product` with itself.
double delta_norm(const AdapterState& state);
/// Norm of the difference of the deltas.
double delta_distance(const AdapterState& a, const AdapterState& b);

/// What `limit_norm` did.
struct NormReport {
  int64_t scaled = 0;    ///< adapters that were above the limit
  double mean = 0.0;     ///< mean norm of the deltas afterwards
  double largest = 0.0;  ///< largest norm afterwards
};

/// Max-norm regularisation, as sd-scripts' `scale_weight_norms`: an adapter whose delta has a
/// larger Frobenius norm than `limit` is scaled down to it. Call it after each optimizer step.
/// Errors: c10::ValueError unless limit > 0; c10::Error while plain layers are active
NormReport limit_norm(const Patched& lora, double limit, const std::string& name = "default");

/// The difference of a fine-tuned model and its base as classic adapters, layer by layer: the best
/// factors of `tuned - base` by a singular value decomposition in double.
/// A layer whose weights are equal in both models gets no adapter. Biases and norms have no place
/// in a LoRA: where they differ, the result cannot give back the fine-tuned model.
/// Errors: c10::Error if a target matches nothing, or a layer is missing in one of the models or
///         has another shape there
AdapterState extract(torch::nn::Module& base, torch::nn::Module& tuned, const Targets& targets,
                     const Keep& keep);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/combine-inl.h>
#include <lightlora/combine_compare-inl.h>
#endif
