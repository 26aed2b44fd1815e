// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/formats/tensor_file.h>

namespace lightlora {

LIGHTLORA_INLINE TensorMap TensorFile::load_all() const {
  TensorMap result;
  for (const auto& tensor : tensors_) result.emplace(tensor.name, load(tensor.name));
  return result;
}

LIGHTLORA_INLINE const TensorInfo* TensorFile::find(const std::string& name) const {
  const auto position = positions_.find(name);
  return position == positions_.end() ? nullptr : &tensors_[position->second];
}

LIGHTLORA_INLINE void TensorFile::add(TensorInfo info) {
  positions_.emplace(info.name, tensors_.size());
  tensors_.push_back(std::move(info));
}

}  // namespace lightlora
