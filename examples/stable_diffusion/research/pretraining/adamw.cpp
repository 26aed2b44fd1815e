// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/adamw.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "research/pretraining/muon.h"

namespace pretraining {
namespace {

struct Rates {
  float rate, beta1, beta2, decay, epsilon, correction1, correction2, gradient_scale, ema;
};

// One pass over the memory where separate tensor operations would take ten.
template <typename T>
void update(const at::Tensor& parameter, const at::Tensor& gradient, const at::Tensor& value,
            const at::Tensor& first, const at::Tensor& second, const at::Tensor& average,
            const Rates& r) {
  T* p = parameter.mutable_data_ptr<T>();
  const T* g = gradient.const_data_ptr<T>();
  float* v = value.mutable_data_ptr<float>();
  float* m = first.mutable_data_ptr<float>();
  float* s = second.mutable_data_ptr<float>();
  float* a = average.mutable_data_ptr<float>();
  at::parallel_for(0, value.numel(), /*grain_size=*/16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float gradient_i = static_cast<float>(g[i]) * r.gradient_scale;
      m[i] += (1 - r.beta1) * (gradient_i - m[i]);
      s[i] += (1 - r.beta2) * (gradient_i * gradient_i - s[i]);
      const float direction = m[i] * r.correction1 / (std::sqrt(s[i] * r.correction2) + r.epsilon);
      v[i] -= r.rate * (direction + r.decay * v[i]);
      a[i] += (1 - r.ema) * (v[i] - a[i]);
      p[i] = static_cast<T>(v[i]);
    }
  });
}

// The same as tensor operations, for other devices.
void update_by_operations(const at::Tensor& parameter, const at::Tensor& gradient,
                          const at::Tensor& value, const at::Tensor& first,
                          const at::Tensor& second, const at::Tensor& average, const Rates& r) {
  const at::Tensor scaled = gradient.to(at::kFloat) * r.gradient_scale;
  first.lerp_(scaled, 1 - r.beta1);
  second.lerp_(scaled.square(), 1 - r.beta2);
  const at::Tensor size = (second * r.correction2).sqrt_().add_(r.epsilon);
  value.mul_(1 - r.rate * r.decay).addcdiv_(first, size, -r.rate * r.correction1);
  average.lerp_(value, 1 - r.ema);
  parameter.copy_(value);
}

// The raw loops need one order of elements for a parameter and all that belongs to it.
at::Tensor ordered_as(const at::Tensor& tensor, const at::Tensor& like) {
  if (tensor.strides() == like.strides()) return tensor;
  return at::empty_like(like, like.options().dtype(tensor.scalar_type())).copy_(tensor);
}

}  // namespace

void AdamW::add(torch::nn::Module& module, const std::string& prefix, at::ScalarType compute_dtype,
                double rate_scale) {
  torch::NoGradGuard no_grad;
  for (auto& item : module.named_parameters()) {
    at::Tensor parameter = item.value();
    Slot slot;
    slot.name = prefix + item.key();
    slot.value = parameter.detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
    slot.first = at::zeros_like(slot.value);
    slot.second = at::zeros_like(slot.value);
    slot.average = slot.value.clone();
    slot.rate_scale = rate_scale;
    parameter.set_data(parameter.to(compute_dtype));
    slot.parameter = parameter;
    slots_.push_back(std::move(slot));
  }
}

void AdamW::orthogonalize(const std::vector<std::string>& names) {
  for (Slot& slot : slots_) {
    const bool chosen = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return slot.name.find(name) != std::string::npos;
    });
    if (!chosen || slot.value.dim() < 2) continue;
    slot.orthogonal = true;
    slot.second = at::zeros({0}, slot.value.options());
  }
}

void AdamW::step_orthogonal(Slot& slot, double rate, double gradient_scale, double ema_decay) {
  const at::Tensor gradient = slot.parameter.grad().to(at::kFloat) * gradient_scale;
  slot.first.mul_(options.momentum).add_(gradient);
  const at::Tensor ahead = gradient.add(slot.first, options.momentum).flatten(1);
  const at::Tensor direction = orthogonalized(ahead, slot.parameter.scalar_type());
  const double size = 0.2 * std::sqrt(static_cast<double>(std::max(ahead.size(0), ahead.size(1))));
  slot.value.mul_(1 - rate * options.weight_decay)
      .add_(direction.reshape(slot.value.sizes()), -rate * size);
  slot.average.lerp_(slot.value, 1 - ema_decay);
  slot.parameter.copy_(slot.value);
}

void AdamW::share(const distributed::Group& group) {
  if (group.size() == 1) return;
  for (Slot& slot : slots_) group.broadcast({slot.value, slot.first, slot.second, slot.average});
  use_values();
}

void AdamW::average_gradients(const distributed::Group& group, double& loss, bool& stop) const {
  if (group.size() == 1) return;
  std::vector<at::Tensor> tensors{torch::tensor({loss, stop ? 1.0 : 0.0}, at::kFloat)};
  for (const Slot& slot : slots_) {
    const at::Tensor& gradient = slot.parameter.grad();
    if (gradient.defined()) tensors.push_back(gradient);
  }
  group.average(tensors);
  loss = tensors[0][0].item<double>();
  stop = tensors[0][1].item<double>() > 0;
}

double AdamW::gradient_norm() const {
  std::vector<at::Tensor> norms;
  for (const Slot& slot : slots_) {
    const at::Tensor& gradient = slot.parameter.grad();
    if (gradient.defined())
      norms.push_back(at::linalg_vector_norm(gradient.flatten(), 2, {}, false, at::kFloat));
  }
  return at::stack(norms).norm().item<double>();
}

double AdamW::step(int64_t step, double learning_rate, double ema_decay) {
  torch::NoGradGuard no_grad;
  const double norm = gradient_norm();
  TORCH_CHECK(std::isfinite(norm), "pretraining: expected finite gradients, got ", norm,
              " in step ", step, "; hint: a lower learning rate");
  Rates r;
  r.beta1 = options.beta1;
  r.beta2 = options.beta2;
  r.epsilon = options.epsilon;
  r.correction1 = 1 / (1 - std::pow(options.beta1, step + 1));
  r.correction2 = 1 / (1 - std::pow(options.beta2, step + 1));
  r.gradient_scale = norm > options.max_norm ? options.max_norm / norm : 1;
  r.ema = ema_decay;
  for (Slot& slot : slots_) {
    if (!slot.parameter.grad().defined()) continue;
    if (slot.orthogonal) {
      step_orthogonal(slot, learning_rate * slot.rate_scale, r.gradient_scale, ema_decay);
      slot.parameter.mutable_grad().reset();
      continue;
    }
    r.rate = learning_rate * slot.rate_scale;
    // Biases and the scales of norms are not weights: decay would only pull them to zero.
    r.decay = slot.value.dim() > 1 ? options.weight_decay : 0;
    const at::Tensor gradient = ordered_as(slot.parameter.grad(), slot.parameter);
    const bool half = slot.parameter.scalar_type() == at::kBFloat16;
    const auto apply = options.by_operations || !slot.parameter.is_cpu() ? update_by_operations
                       : half                                            ? update<at::BFloat16>
                                                                         : update<float>;
    apply(slot.parameter, gradient, slot.value, slot.first, slot.second, slot.average, r);
    slot.parameter.mutable_grad().reset();
  }
  return norm;
}

void AdamW::use_averages() {
  torch::NoGradGuard no_grad;
  for (Slot& slot : slots_) slot.parameter.copy_(slot.average);
}

void AdamW::use_values() {
  torch::NoGradGuard no_grad;
  for (Slot& slot : slots_) slot.parameter.copy_(slot.value);
}

lightlora::TensorMap AdamW::averages(const std::string& prefix) const {
  lightlora::TensorMap map;
  for (const Slot& slot : slots_) {
    if (slot.name.compare(0, prefix.size(), prefix) == 0) {
      map[slot.name.substr(prefix.size())] = slot.average.cpu().contiguous();
    }
  }
  return map;
}

lightlora::TensorMap AdamW::state() const {
  lightlora::TensorMap map;
  for (const Slot& slot : slots_) {
    map["value." + slot.name] = slot.value.cpu().contiguous();
    map["first." + slot.name] = slot.first.cpu().contiguous();
    map["second." + slot.name] = slot.second.cpu().contiguous();
    map["average." + slot.name] = slot.average.cpu().contiguous();
  }
  return map;
}

void AdamW::load_state(const lightlora::SafetensorsFile& file) {
  torch::NoGradGuard no_grad;
  const auto load = [&](const std::string& name, at::Tensor& target) {
    TORCH_CHECK(file.contains(name), "'", file.path(), "': expected '", name,
                "', got none; hint: the checkpoint is of another configuration");
    const at::Tensor stored = file.load(name);
    TORCH_CHECK(stored.sizes() == target.sizes(), "'", file.path(), "': expected '", name,
                "' of shape ", target.sizes(), ", got ", stored.sizes());
    target.copy_(stored);
  };
  for (Slot& slot : slots_) {
    load("value." + slot.name, slot.value);
    load("first." + slot.name, slot.first);
    load("second." + slot.name, slot.second);
    load("average." + slot.name, slot.average);
  }
  use_values();
}

int64_t AdamW::number_of_values() const {
  int64_t count = 0;
  for (const Slot& slot : slots_) count += slot.value.numel();
  return count;
}

}  // namespace pretraining
