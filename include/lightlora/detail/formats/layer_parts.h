// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <lightlora/detail/formats/limits.h>
#include <lightlora/state.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

// The tensors that a file has for one layer, taken one by one by the method that they are of.

namespace lightlora::detail {

/// A layer's state, and what its alpha is divided by; 0 if the method takes no alpha.
struct AssembledLayer {
  LayerState state;
  int64_t divisor = 0;
};

/// The tensors of one layer that no method has taken yet, and what all methods make of them.
class LayerParts {
 protected:
  LayerParts(std::string where, std::string component, std::string layer,
             std::map<std::string, at::Tensor> tensors, ValueBudget& budget)
      : budget_(budget),
        where_(std::move(where)),
        component_(std::move(component)),
        layer_(std::move(layer)),
        tensors_(std::move(tensors)) {}

  template <typename... Roles>
  bool has(const Roles&... roles) const {
    return (... || (tensors_.count(roles) > 0));
  }
  at::Tensor take(const std::string& role) {
    const auto found = tensors_.find(role);
    if (found == tensors_.end()) return {};
    at::Tensor tensor = found->second;
    tensors_.erase(found);
    return tensor;
  }
  at::Tensor require(const std::string& role) {
    at::Tensor tensor = take(role);
    TORCH_CHECK(tensor.defined(), where_, "expected a tensor '", role, "' beside the others, got ",
                "none; hint: the file is incomplete");
    return tensor;
  }

  at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
    TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0), where_,
                "expected factors and bases that fit, got ", a.sizes(), " and ", b.sizes());
    budget_.spend(where_, {a.size(0), b.size(1)});
    return a.mm(b);
  }

  // A low-rank pair in LyCORIS' order: a (rows, rank) and b (rank, columns). With a Tucker core the
  // file has a (rank, rows), b (rank, inputs) and the core (rank, rank, kernel...), which is the
  // pair of a^T and of core and b as one matrix (rank, inputs * kernel).
  std::pair<at::Tensor, at::Tensor> pair(const std::string& a_role, const std::string& b_role,
                                         const std::string& core_role) {
    at::Tensor a = require(a_role), b = require(b_role);
    if (const at::Tensor core = take(core_role); core.defined()) {
      b = with_core(core, b.flatten(1));
      a = a.flatten(1).t();
    }
    b = b.flatten(1);
    TORCH_CHECK(a.dim() == 2 && a.size(1) == b.size(0) && a.numel() > 0 && b.numel() > 0, where_,
                "expected ", a_role, " and ", b_role, " of one rank, got ", a.sizes(), " and ",
                b.sizes());
    return {a.contiguous(), b.contiguous()};
  }

  void check_kernel() const {
    for (const int64_t size : kernel_) {
      TORCH_CHECK(size >= 1 && size <= kMostKernel, where_, "expected a kernel of sizes from 1 to ",
                  kMostKernel, ", got ", kernel_);
    }
  }

  // core (r, s, kernel...) and rows (s, n) as one matrix (r, n * kernel); keeps the kernel's sizes.
  at::Tensor with_core(const at::Tensor& core, const at::Tensor& rows) {
    TORCH_CHECK(core.dim() > 2 && core.size(1) == rows.size(0), where_,
                "expected a Tucker core that fits its factors, got ", core.sizes(), " and ",
                rows.sizes());
    kernel_ = core.sizes().slice(2).vec();
    check_kernel();
    const at::Tensor flat = core.flatten(2);  // (r, s, k)
    budget_.spend(where_, {flat.size(0), rows.size(1), flat.size(2)});
    const at::Tensor joined = at::einsum("rsk,sn->rnk", {flat, rows});
    return joined.flatten(1);
  }

  at::Tensor checked_up(const at::Tensor& down, const at::Tensor& up) const {
    TORCH_CHECK(up.numel() == up.size(0) * up.size(1), where_,
                "expected an up factor with a 1x1 kernel, got ", up.sizes());
    TORCH_CHECK(down.size(0) == up.size(1) && down.numel() > 0 && up.numel() > 0, where_,
                "expected two factors of one rank, got down ", down.sizes(), " and up ",
                up.sizes());
    return up.flatten(1);
  }

  // Of another method than LoRA. What a file does not say of a layer's size is 0, and the model's.
  AssembledLayer method_state(const char* variant, int64_t in, int64_t out, int64_t rank,
                              std::map<std::string, at::Tensor> trained) const {
    AssembledLayer result;
    result.divisor = rank;
    result.state.variant = variant;
    result.state.layer = {layer_, in, out};
    result.state.options.rank(rank);
    result.state.trained = std::move(trained);
    return result;
  }

  at::Tensor require_dims(const std::string& role, int64_t dims) {
    const at::Tensor tensor = require(role);
    TORCH_CHECK(tensor.dim() == dims && tensor.numel() > 0, where_, "expected ", role, " of a ",
                "Linear layer, with ", dims, " dimensions, got ", tensor.sizes());
    return tensor;
  }

  // Of what the tensors are for, with their kernel.
  AssembledLayer with_kernel(AssembledLayer result, int64_t divisor) const {
    result.state.layer.kernel = kernel_;
    result.divisor = divisor;
    return result;
  }

  ValueBudget& budget_;
  std::string where_, component_, layer_;
  std::map<std::string, at::Tensor> tensors_;
  std::vector<int64_t> kernel_;
};

}  // namespace lightlora::detail
