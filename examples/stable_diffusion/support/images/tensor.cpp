// SPDX-License-Identifier: Apache-2.0
#include "support/images/tensor.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace images {

at::Tensor to_tensor(const Image& image) {
  TORCH_CHECK_VALUE(!image.empty(), "images::to_tensor: expected a picture, got an empty one");
  at::Tensor result = at::empty({3, image.height, image.width}, at::TensorOptions(at::kFloat));
  const int64_t area = image.height * image.width;
  auto* out = result.mutable_data_ptr<float>();
  for (int64_t i = 0; i < area; ++i) {
    for (int64_t channel = 0; channel < 3; ++channel) {
      const float unit = static_cast<float>(image.pixels[i * 3 + channel]) / 255.0f;
      out[channel * area + i] = (unit - 0.5f) / 0.5f;
    }
  }
  return result;
}

Image to_image(const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.dim() == 3 && tensor.size(0) == 3 && tensor.numel() > 0,
                    "images::to_image: expected shape (3, height, width), got ", tensor.sizes());
  const at::Tensor values = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
  TORCH_CHECK(
      at::isfinite(values).all().item<bool>(),
      "images::to_image: expected finite values, got NaN or infinity; hint: try --dtype fp32");
  Image result(values.size(2), values.size(1));
  const int64_t area = result.height * result.width;
  const auto* in = values.const_data_ptr<float>();
  for (int64_t i = 0; i < area; ++i) {
    for (int64_t channel = 0; channel < 3; ++channel) {
      const float unit = std::clamp(in[channel * area + i] / 2 + 0.5f, 0.0f, 1.0f);
      result.pixels[i * 3 + channel] = static_cast<uint8_t>(std::nearbyint(unit * 255.0f));
    }
  }
  return result;
}

}  // namespace images
