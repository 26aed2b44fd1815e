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

LIGHTLORA_INLINE Keep Keep::rank(int64_t rank) {
  TORCH_CHECK_VALUE(rank >= 1, "lightlora: expected rank >= 1, got ", rank);
  Keep keep;
  keep.rank_ = rank;
  return keep;
}

LIGHTLORA_INLINE Keep Keep::energy(double share) {
  TORCH_CHECK_VALUE(share > 0 && share <= 1, "lightlora: expected 0 < energy <= 1, got ", share);
  Keep keep;
  keep.energy_ = share;
  return keep;
}

LIGHTLORA_INLINE int64_t Keep::count(const at::Tensor& values) const {
  if (rank_) return std::min(*rank_, values.numel());
  const at::Tensor squares = values.to(at::kDouble).cpu().square().cumsum(0);
  const double total = squares.numel() > 0 ? squares[-1].item<double>() : 0.0;
  // What lies below rounding of the largest value is no rank.
  const double wanted = energy_ ? *energy_ * total : total * (1.0 - 1e-15);
  const auto below = (squares < wanted).sum().item<int64_t>();
  return std::clamp<int64_t>(below + 1, 1, values.numel());
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
  TORCH_CHECK(false, "lightlora: '", layer_.name, "': expected a variant with low-rank factors, ",
              "got ", variant(), "; hint: use delta(), or to_classic() for its best factors");
}

LIGHTLORA_INLINE void Adapter::prepare(const torch::Tensor& weight) {
  if (!magnitude_.defined()) return;
  torch::NoGradGuard no_grad;
  magnitude_.copy_(lengths_of(weight.to(magnitude_.device(), magnitude_.scalar_type())));
}

LIGHTLORA_INLINE torch::Tensor Adapter::delta(const torch::Tensor& weight) const {
  TORCH_CHECK(!needs_weight() || weight.defined(), "lightlora: '", layer_.name,
              "': expected the layer's weight, which the delta of ",
              options_.dora() ? "DoRA" : variant(),
              " depends on, got none; hint: patch a model with the adapter first");
  if (!options_.dora()) return added(weight);
  const torch::Tensor base = weight.to(magnitude_.scalar_type());
  const torch::Tensor moved = base + added(base);
  const torch::Tensor lengths = lengths_of(moved.detach()).clamp_min(1e-12);
  return over_matrix(magnitude_ / lengths) * moved - base;
}

LIGHTLORA_INLINE torch::Tensor Adapter::added(const torch::Tensor& /*weight*/) const {
  const Factors f = factors();
  return f.up.mm(f.down) * scale_;
}

LIGHTLORA_INLINE void Adapter::rescale(double factor) {
  torch::NoGradGuard no_grad;
  NamedTensors tensors = trained();
  const auto count = static_cast<double>(tensors.size()) - (options_.dora() ? 1 : 0);
  for (auto& item : tensors) {
    if (item.key() != "magnitude") item.value().mul_(std::pow(factor, 1.0 / count));
  }
}

LIGHTLORA_INLINE std::string Adapter::description() const {
  std::ostringstream text;
  text << variant() << " adapter of '" << layer_.name << "' (" << layer_.in << " -> " << layer_.out
       << "): rank " << rank() << ", scale " << scale_ << ", trains " << trained_count()
       << " values";
  if (frozen_count() > 0) text << ", " << frozen_count() << " frozen";
  if (options_.dora()) text << ", DoRA";
  text << remarks();
  return text.str();
}

LIGHTLORA_INLINE Adapter::Adapter(LoRAOptions options, LayerInfo layer)
    : options_(std::move(options)), layer_(std::move(layer)) {
  TORCH_CHECK_VALUE(options_.rank() > 0, "lightlora: '", layer_.name, "': expected rank > 0, got ",
                    options_.rank(), "; hint: 4 is the usual start");
  TORCH_CHECK_VALUE(options_.dropout() >= 0 && options_.dropout() < 1, "lightlora: '", layer_.name,
                    "': expected 0 <= dropout < 1, got ", options_.dropout());
  TORCH_CHECK_VALUE(layer_.in > 0 && layer_.out > 0, "lightlora: '", layer_.name,
                    "': expected a layer with inputs and outputs, got ", layer_.in, " -> ",
                    layer_.out);
  if (options_.network_alpha()) {
    const auto rank = static_cast<double>(options_.rank());
    scale_ = *options_.network_alpha() / (options_.rslora() ? std::sqrt(rank) : rank);
  }
}

LIGHTLORA_INLINE void Adapter::require_usual_init(const char* reason) const {
  TORCH_CHECK_VALUE(options_.init() == Init::up_zero, "lightlora: '", layer_.name,
                    "': expected no init with the ", variant(), " variant, ", reason, ", got ",
                    to_string(options_.init()));
}

LIGHTLORA_INLINE std::vector<int64_t> Adapter::magnitude_sizes() const {
  if (!options_.dora_inputs()) return {layer_.out, 1};
  int64_t kernel = 1;
  for (const int64_t size : layer_.kernel) kernel *= size;
  return {1, layer_.in / kernel};
}

LIGHTLORA_INLINE torch::Tensor Adapter::lengths_of(const torch::Tensor& matrix) const {
  if (!options_.dora_inputs()) return matrix.contiguous().norm(2, 1, /*keepdim=*/true);
  const torch::Tensor channels = matrix.reshape({layer_.out, magnitude_.size(1), -1});
  return channels.transpose(0, 1).reshape({magnitude_.size(1), -1}).norm(2, 1).unsqueeze(0);
}

LIGHTLORA_INLINE torch::Tensor Adapter::over_matrix(const torch::Tensor& values) const {
  if (!options_.dora_inputs()) return values;
  return values.repeat_interleave(layer_.in / values.size(1), 1);
}

LIGHTLORA_INLINE int64_t Adapter::count(const NamedTensors& tensors) {
  int64_t sum = 0;
  for (const auto& item : tensors) sum += item.value().numel();
  return sum;
}

namespace detail {

LIGHTLORA_INLINE AuxShape::AuxShape(const LoRAOptions& options, const LayerInfo& layer)
    : in(std::min(options.aux_in(), layer.in)), out(std::min(options.aux_out(), layer.out)) {
  TORCH_CHECK_VALUE(in > 0 && out > 0, "lightlora: '", layer.name,
                    "': expected aux_in > 0 and aux_out > 0, got ", options.aux_in(), " and ",
                    options.aux_out(), "; hint: 100 and 50 are the usual choice");
  TORCH_CHECK_VALUE(options.rank() <= std::min(in, out), "lightlora: '", layer.name,
                    "': expected rank <= ", std::min(in, out), " (directions of the bases: ", in,
                    " in, ", out, " out), got ", options.rank(),
                    "; hint: lower the rank or leave this layer out");
}

LIGHTLORA_INLINE std::string AuxShape::remarks(const LoRAOptions& options) const {
  std::string text;
  if (in < options.aux_in()) text += ", aux_in clamped to " + std::to_string(in);
  if (out < options.aux_out()) text += ", aux_out clamped to " + std::to_string(out);
  return text;
}

}  // namespace detail

}  // namespace lightlora
