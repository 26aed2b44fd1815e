// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/pictures.h"

#include <ATen/ATen.h>

#include "support/images/png.h"
#include "support/images/tensor.h"

namespace pretraining {

void save_sheet(const std::string& path, const at::Tensor& pictures, int64_t columns,
                int64_t factor) {
  const int64_t count = pictures.size(0), height = pictures.size(2), width = pictures.size(3);
  const int64_t gap = 2, rows = (count + columns - 1) / columns;
  images::Image sheet(columns * (width * factor + gap) - gap, rows * (height * factor + gap) - gap,
                      {255, 255, 255});
  for (int64_t i = 0; i < count; ++i) {
    images::paste(sheet, images::to_image(pictures[i].to(at::kFloat).contiguous()),
                  (i % columns) * (width * factor + gap), (i / columns) * (height * factor + gap),
                  factor);
  }
  images::save_png(path, sheet);
}

double mean_psnr(const at::Tensor& pictures, const at::Tensor& reference) {
  const auto error = (pictures.to(at::kFloat).clamp(-1, 1) - reference.to(at::kFloat)) / 2;
  return error.square().flatten(1).mean(1).log10().mul(-10).mean().item<double>();
}

}  // namespace pretraining
