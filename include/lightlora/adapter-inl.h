// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/adapter.h>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <sstream>
#include <tuple>

namespace lightlora {

LIGHTLORA_INLINE Factors concatenate(const std::vector<Factors>& factors,
                                     const std::vector<double>& scales) {
  std::vector<at::Tensor> downs;
  std::vector<at::Tensor> ups;
  for (std::size_t i = 0; i < factors.size(); ++i) {
    downs.push_back(factors[i].down);
    ups.push_back(factors[i].up * scales[i]);
  }
  return {at::cat(downs, 0), at::cat(ups, 1)};
}

LIGHTLORA_INLINE Keep& Keep::at_most(int64_t rank) {
  TORCH_CHECK_VALUE(rank >= 1, "expected rank >= 1, got ", rank);
  rank_ = rank;
  return *this;
}

LIGHTLORA_INLINE Keep Keep::energy(double share) {
  TORCH_CHECK_VALUE(share > 0 && share <= 1, "expected 0 < energy <= 1, got ", share);
  Keep keep;
  keep.energy_ = share;
  return keep;
}

LIGHTLORA_INLINE int64_t Keep::count(const at::Tensor& values) const {
  const int64_t most = std::min(rank_.value_or(values.numel()), values.numel());
  if (rank_ && !energy_) return most;
  const at::Tensor squares = values.to(at::kDouble).cpu().square().cumsum(0);
  const double total = squares.numel() > 0 ? squares[-1].item<double>() : 0.0;
  // What lies below rounding of the largest value is no rank.
  const double wanted = energy_ ? *energy_ * total : total * (1.0 - 1e-15);
  const auto below = (squares < wanted).sum().item<int64_t>();
  return std::clamp<int64_t>(below + 1, 1, most);
}

namespace detail {

// U, S and V^T cut to what is kept, with sqrt(S) on either side so that neither underflows in fp16.
inline Factors split_evenly(const at::Tensor& u, const at::Tensor& s, const at::Tensor& vh,
                            const Keep& keep) {
  const int64_t rank = keep.count(s);
  const at::Tensor root = s.slice(0, 0, rank).sqrt();
  return {root.unsqueeze(1) * vh.slice(0, 0, rank), u.slice(1, 0, rank) * root};
}

}  // namespace detail

LIGHTLORA_INLINE Factors factorise(const at::Tensor& delta, const Keep& keep) {
  const auto [u, s, vh] = at::linalg_svd(delta.to(at::kDouble), /*full_matrices=*/false);
  return detail::split_evenly(u, s, vh, keep);
}

LIGHTLORA_INLINE Factors truncate(const Factors& factors, const Keep& keep) {
  const auto up = at::linalg_qr(factors.up.to(at::kDouble));
  const auto down = at::linalg_qr(factors.down.to(at::kDouble).t());
  const auto [u, s, vh] = at::linalg_svd(std::get<1>(up).mm(std::get<1>(down).t()),
                                         /*full_matrices=*/false);
  const Factors core = detail::split_evenly(u, s, vh, keep);
  return {core.down.mm(std::get<0>(down).t()), std::get<0>(up).mm(core.up)};
}

LIGHTLORA_INLINE Factors Adapter::factors() const {
  TORCH_CHECK(false, "'", layer_.name, "': expected a variant with low-rank factors, got ",
              variant(), "; hint: use delta(), or to_classic() for its best factors");
}

LIGHTLORA_INLINE Factors Adapter::factors_of(const TrainedValues& /*values*/) const {
  TORCH_CHECK(false, "'", layer_.name, "': expected a variant that takes values from outside ",
              "(classic, light, fused), got ", variant());
}

LIGHTLORA_INLINE void Adapter::prepare(const torch::Tensor& weight) {
  torch::NoGradGuard no_grad;
  take_bases(weight);
  if (dora_) dora_->start(weight);
}

LIGHTLORA_INLINE torch::Tensor Adapter::delta(const torch::Tensor& weight) const {
  TORCH_CHECK(!needs_weight() || weight.defined(), "'", layer_.name,
              "': expected the layer's weight, which the delta of ", dora_ ? "DoRA" : variant(),
              " depends on, got none; hint: patch a model with the adapter first");
  if (!dora_) return added(weight);
  const torch::Tensor base = weight.to(dora_->magnitude.scalar_type());
  return dora_->delta(base, added(base));
}

LIGHTLORA_INLINE torch::Tensor Adapter::added(const torch::Tensor& /*weight*/) const {
  const Factors f = factors();
  return f.up.mm(f.down) * scale_;
}

LIGHTLORA_INLINE torch::Tensor Adapter::rotated(const torch::Tensor& /*x*/) const {
  TORCH_CHECK(false, "'", layer_.name, "': expected a variant that rotates inputs, got ",
              variant());
}

LIGHTLORA_INLINE torch::Tensor Adapter::rotated_output(const torch::Tensor& /*y*/) const {
  TORCH_CHECK(false, "'", layer_.name, "': expected a variant that rotates outputs, got ",
              variant());
}

LIGHTLORA_INLINE std::shared_ptr<Adapter> Adapter::cut(const Keep& /*keep*/) const {
  return nullptr;
}

LIGHTLORA_INLINE void Adapter::rescale(double factor) {
  torch::NoGradGuard no_grad;
  NamedTensors tensors = trained();
  const auto count = static_cast<double>(tensors.size()) - (dora_ ? 1 : 0);
  for (auto& item : tensors) {
    if (dora_ && item.value().is_same(dora_->magnitude)) continue;
    item.value().mul_(std::pow(factor, 1.0 / count));
  }
}

LIGHTLORA_INLINE std::string Adapter::description() const {
  std::ostringstream text;
  text << variant() << " adapter of '" << layer_.name << "' (" << layer_.in << " -> " << layer_.out
       << "): rank " << rank() << ", scale " << scale_ << ", trains " << trained_count()
       << " values";
  if (frozen_count() > 0) text << ", " << frozen_count() << " frozen";
  if (dora_) text << ", DoRA";
  for (const auto& [name, value] : options_.own()) text << ", " << name << " " << value;
  text << remarks();
  return text.str();
}

LIGHTLORA_INLINE Adapter::Adapter(LoRAOptions options, LayerInfo layer)
    : options_(std::move(options)), layer_(std::move(layer)) {
  TORCH_CHECK_VALUE(options_.rank() > 0, "'", layer_.name, "': expected rank > 0, got ",
                    options_.rank(), "; hint: 4 is the usual start");
  for (const auto& [name, share] : {std::pair("dropout", options_.dropout()),
                                    {"rank_dropout", options_.rank_dropout()},
                                    {"module_dropout", options_.module_dropout()}}) {
    TORCH_CHECK_VALUE(share >= 0 && share < 1, "'", layer_.name, "': expected 0 <= ", name,
                      " < 1, got ", share);
  }
  TORCH_CHECK_VALUE(layer_.in > 0 && layer_.out > 0, "'", layer_.name,
                    "': expected a layer with inputs and outputs, got ", layer_.in, " -> ",
                    layer_.out, "; hint: of what a file does not say, a model tells: patch it");
  if (options_.network_alpha()) {
    const auto rank = static_cast<double>(options_.rank());
    scale_ = *options_.network_alpha() / (options_.rslora() ? std::sqrt(rank) : rank);
  }
  if (options_.dora()) dora_.emplace(options_, layer_);
}

LIGHTLORA_INLINE void Adapter::require_usual_init(const char* reason) const {
  TORCH_CHECK_VALUE(options_.init() == Init::up_zero, "'", layer_.name, "': the init ",
                    to_string(options_.init()), " cannot be combined with the ", variant(),
                    " variant, ", reason);
}

LIGHTLORA_INLINE int64_t Adapter::count(const NamedTensors& tensors) {
  int64_t sum = 0;
  for (const auto& item : tensors) sum += item.value().numel();
  return sum;
}

}  // namespace lightlora
