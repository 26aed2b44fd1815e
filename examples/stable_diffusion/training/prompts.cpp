// SPDX-License-Identifier: Apache-2.0
#include "training/prompts.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

namespace training {

void PromptStates::prepare(const std::vector<std::string>& texts) {
  if (trains_) return;
  const torch::NoGradGuard no_grad;
  for (const auto& text : texts) {
    torch::Tensor& kept = kept_[text];
    if (kept.defined()) continue;
    TORCH_CHECK(encode_, "training::PromptStates: expected only texts that were prepared, got '",
                text, "'");
    kept = encode_({text})[0];
  }
}

torch::Tensor PromptStates::states(const std::vector<std::string>& texts) {
  if (trains_) return encode_(texts);
  prepare(texts);
  std::vector<torch::Tensor> rows;
  for (const auto& text : texts) rows.push_back(kept_.at(text));
  return at::stack(rows);
}

}  // namespace training
