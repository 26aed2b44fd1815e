// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>
#include <lightlora/detail/basis.h>
#include <lightlora/layers.h>
#include <torch/nn/init.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <unordered_set>
#include <vector>

namespace lightlora {

/// Options of SHiRA.
struct SHiRAOptions : VariantOptions<SHiRAOptions> {
  using VariantOptions::VariantOptions;

  /// Seed of the places that train, which files need not hold. Default: 0.
  TORCH_ARG(uint64_t, aux_seed) = 0;

 public:
  static auto fields() {
    return std::make_tuple(
        option("aux_seed", &SHiRAOptions::aux_seed_, "Seed of the places that train"));
  }
};

/// Adapter that trains a few entries of the weight, at random places: as many as LoRA of that rank
/// has values, and of high rank.
/// Equation: delta[row[i], column[i]] = scale * values[i], zero elsewhere
/// Paper:    Bhardwaj et al. 2024, "SHiRA", arXiv:2406.13175 (its random mask)
/// Shapes:   trained values (n), n = min(rank (in + out), in * out), starts at zero; frozen rows,
///           columns (n), in order, of the seed and the layer's name
/// Dtypes:   fp32, whatever the base is cast to; the places are whole numbers in it
/// Errors:   c10::ValueError if rank < 1, or `init` is not the default
/// Differs from PEFT: the places come from the library's own generator, equal on every machine.
class SHiRAAdapterImpl : public AdapterModule<SHiRAAdapterImpl, SHiRAOptions> {
 public:
  static constexpr const char* kVariant = "shira";

  SHiRAAdapterImpl(LoRAOptions options, LayerInfo layer)
      : AdapterModule(std::move(options), std::move(layer)) {
    require_usual_init("whose values always start at zero");
    reset();
  }

  void reset_parameters() override { torch::nn::init::zeros_(values); }

  // Nothing bounds it but the layer.
  int64_t rank() const override { return std::min(layer_.in, layer_.out); }

  torch::Tensor added(const torch::Tensor& /*weight*/) const override {
    const torch::Tensor places = rows.to(torch::kLong) * layer_.in + columns.to(torch::kLong);
    return torch::zeros({layer_.out * layer_.in}, values.options())
               .index_copy(0, places, values)
               .view({layer_.out, layer_.in}) *
           scale();
  }

  torch::Tensor values;   ///< (n), trained
  torch::Tensor rows;     ///< (n), frozen
  torch::Tensor columns;  ///< (n), frozen

 protected:
  void register_tensors() override {
    const auto places = draw();
    const auto count = static_cast<int64_t>(places.size());
    torch::Tensor row = torch::empty({count}), column = torch::empty({count});
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = places[static_cast<std::size_t>(i)];
      row.mutable_data_ptr<float>()[i] = static_cast<float>(place / layer_.in);
      column.mutable_data_ptr<float>()[i] = static_cast<float>(place % layer_.in);
    }
    values = register_parameter("values", torch::empty({count}));
    rows = register_seeded("rows", row);
    columns = register_seeded("columns", column);
  }

 private:
  bool factorises() const override { return false; }

  // Floyd's sampling without replacement, in order.
  std::vector<int64_t> draw() const {
    const int64_t all = layer_.in * layer_.out;
    const int64_t count = std::min(options_.rank() * (layer_.in + layer_.out), all);
    uint64_t stream = 0xCBF29CE484222325ULL;
    for (const unsigned char c : layer_.name) stream = (stream ^ c) * 0x100000001B3ULL;
    Philox random(own().aux_seed(), stream);
    std::unordered_set<int64_t> drawn;
    for (int64_t last = all - count; last < all; ++last) {
      const auto place = static_cast<int64_t>(random.uniform() * static_cast<double>(last + 1));
      if (!drawn.insert(place).second) drawn.insert(last);
    }
    std::vector<int64_t> places(drawn.begin(), drawn.end());
    std::sort(places.begin(), places.end());
    return places;
  }
};

/// A layer of type `Layer` with a SHiRA adapter.
template <typename Layer>
using SHiRA = AdaptedLayer<Layer, SHiRAAdapterImpl>;

}  // namespace lightlora
