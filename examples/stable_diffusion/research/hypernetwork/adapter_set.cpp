// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork/adapter_set.h"

#include <ATen/ATen.h>
#include <lightlora/combine.h>
#include <torch/utils.h>

#include <algorithm>

namespace hypernetwork {
namespace {

at::Tensor canonical_part(const lightlora::Patched& part, const at::Tensor& values) {
  const at::Tensor before = part->values().clone();
  part->assign(values.to(before.device()));
  const auto state = part->state();
  const auto canonical = lightlora::canonical(state);
  bool fits = true;
  for (size_t i = 0; i < state.size(); ++i) {
    fits = fits && canonical[i].variant == state[i].variant && canonical[i].scale == state[i].scale;
  }
  if (fits) part->assign(canonical);
  const at::Tensor result = part->values().clone();
  part->assign(before);
  return result;
}

}  // namespace

void AdapterSet::for_each(const Use& use) const {
  int64_t first = 0;
  for (const auto& [component, part] : parts_.by_component()) {
    if (!part) continue;
    int64_t count = 0;
    for (const auto& adapter : part->adapters()) count += adapter->trained_count();
    use(component, part, first, count);
    first += count;
  }
}

std::vector<PredictedLayer> AdapterSet::layers() const {
  std::vector<PredictedLayer> layers;
  for_each([&](const std::string& component, const lightlora::Patched& part, int64_t, int64_t) {
    for (const auto& adapter : part->adapters()) {
      layers.push_back({component + "." + adapter->layer().name, adapter->trained_count()});
    }
  });
  return layers;
}

at::Tensor AdapterSet::values() const {
  const torch::NoGradGuard no_grad;
  std::vector<at::Tensor> all;
  for_each([&](const std::string&, const lightlora::Patched& part, int64_t, int64_t) {
    all.push_back(part->values());
  });
  return at::cat(all);
}

void AdapterSet::assign(const at::Tensor& values) const {
  for_each([&](const std::string&, const lightlora::Patched& part, int64_t first, int64_t count) {
    part->assign(values.narrow(0, first, count));
  });
}

std::vector<lightlora::Activation> AdapterSet::activate(const at::Tensor& values) const {
  std::vector<lightlora::Activation> active;
  for_each([&](const std::string&, const lightlora::Patched& part, int64_t first, int64_t count) {
    active.push_back(part->activate_values(values.narrow(-1, first, count).contiguous()));
  });
  return active;
}

at::Tensor AdapterSet::canonical(const at::Tensor& values) const {
  const torch::NoGradGuard no_grad;
  std::vector<at::Tensor> all;
  for_each([&](const std::string&, const lightlora::Patched& part, int64_t first, int64_t count) {
    all.push_back(canonical_part(part, values.narrow(0, first, count)));
  });
  return at::cat(all);
}

at::Tensor AdapterSet::norms() const {
  const torch::NoGradGuard no_grad;
  std::vector<at::Tensor> norms;
  for_each([&](const std::string&, const lightlora::Patched& part, int64_t, int64_t) {
    for (const auto& adapter : part->adapters()) {
      norms.push_back(part->weight_of(adapter->layer().name).to(at::kFloat).norm().cpu());
    }
  });
  return at::stack(norms);
}

// A few weights of each layer as they stand: sums of all would depend on the number of threads.
void AdapterSet::add_to(distributed::Fingerprint& print) const {
  constexpr int64_t few = 64;
  for_each([&](const std::string& component, const lightlora::Patched& part, int64_t, int64_t) {
    for (const auto& adapter : part->adapters()) {
      print.add(component + "." + adapter->layer().name + " " + adapter->description());
      const auto weight = part->weight_of(adapter->layer().name).detach().flatten();
      const auto some =
          weight.narrow(0, 0, std::min(few, weight.numel())).to(at::kCPU, at::kFloat).contiguous();
      print.add(some.const_data_ptr<float>(), static_cast<size_t>(some.nbytes()));
    }
  });
}

std::string AdapterSet::to_string() const {
  std::string text;
  for_each([&](const std::string& component, const lightlora::Patched& part, int64_t, int64_t) {
    text += component + ": " + part->report().to_string() + "\n";
  });
  return text + parts_.unet->adapters()[0]->description();
}

}  // namespace hypernetwork
