// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/config.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace lightlora {

/// Everything that rebuilds one adapter without its model. Files are read into and written from
/// this; the dialects know nothing of modules, and the modules nothing of dialects.
struct LayerState {
  std::string variant;  ///< its name in the list of variants
  LayerInfo layer;      ///< what it adapts; a size that its file does not tell is 0
  LoRAOptions options;  ///< what it was made with
  double scale = 1.0;   ///< factor of the delta
  /// What was trained, by name, on the CPU.
  std::map<std::string, at::Tensor> trained;
  /// What is frozen, by name: what cannot be made again from the options, and the rest if the bases
  /// are embedded.
  std::map<std::string, at::Tensor> frozen;
};

/// The adapters of one model, in the model's order.
using AdapterState = std::vector<LayerState>;

/// The adapters of several models ("unet", "text_encoder"; "" for a model of one's own).
using Components = std::map<std::string, AdapterState>;

/// Whether a state also holds the frozen bases that can be made again from their seed.
enum class Bases { by_seed, embedded };

/// A copy of an adapter's values on the CPU. What is frozen and cannot be made again is always in
/// it.
LayerState state_of(const Adapter& adapter, Bases bases = Bases::by_seed);

/// Whether a state's values can be put into an adapter.
/// Errors: c10::Error with the layer, the tensor and both shapes if the variant differs, a trained
///         tensor is missing, unknown or of another shape, or embedded bases are not the seed's
void check_fits(const Adapter& adapter, const LayerState& state);

/// Puts values into an adapter that exists, cast to its dtype and device; errors as `check_fits`.
void restore(Adapter& adapter, const LayerState& state);

/// The adapter that a state describes, fp32 on the CPU.
std::shared_ptr<Adapter> make_adapter(const LayerState& state);

namespace detail {

// The same over a layer's weight (out, in), from which comes what the state lacks of it.
std::shared_ptr<Adapter> make_adapter_over(const LayerState& state, const at::Tensor& weight);

// Copies of finished factors as a classic layer of scale 1.
LayerState classic_state(const LayerInfo& layer, const Factors& factors);

}  // namespace detail

/// The same delta as plain low-rank factors with the scale folded in, for tools that know nothing
/// of variants: Light loses its bases into its factors, Fused keeps its full inner width, a variant
/// without factors is decomposed. Exact up to rounding with `Keep::all()`, and whenever the rank
/// suffices. The scale is split evenly between the two factors so that neither underflows in fp16.
/// Shapes: weight (out, in), needed only if the adapter's `needs_weight`
/// Errors: c10::Error if the weight is needed and missing
LayerState to_classic(const Adapter& adapter, const Keep& keep = Keep::all(),
                      const at::Tensor& weight = {});

/// `to_classic` of every layer of a state. Variants whose delta depends on the layers' weights need
/// the model: patch it and call its `to_classic`.
AdapterState to_classic(const AdapterState& state, const Keep& keep = Keep::all());

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/state-inl.h>
#endif
