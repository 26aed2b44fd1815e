// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/placing.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace pretraining {
namespace {

constexpr int64_t kBorder = 3, kFewestPixels = 12;
constexpr double kThreshold = 0.14;

at::Tensor border_median(const at::Tensor& picture) {
  const int64_t height = picture.size(1), width = picture.size(2);
  const auto border = at::cat({picture.narrow(1, 0, kBorder).flatten(1),
                               picture.narrow(1, height - kBorder, kBorder).flatten(1),
                               picture.narrow(2, 0, kBorder).flatten(1),
                               picture.narrow(2, width - kBorder, kBorder).flatten(1)},
                              1);
  return std::get<0>(border.median(1));
}

SubjectSquare square_of(const at::Tensor& mask) {
  const auto places = mask.nonzero().to(at::kFloat);
  if (places.size(0) < kFewestPixels) return {};
  SubjectSquare square;
  for (const int64_t axis : {0, 1}) {
    const double size = static_cast<double>(mask.size(axis));
    const auto along = places.select(1, axis);
    const double begin = along.quantile(0.01).item<double>() / size;
    const double end = (along.quantile(0.99).item<double>() + 1) / size;
    (axis == 0 ? square.y : square.x) = (begin + end) / 2;
    square.side = std::max(square.side, end - begin);
  }
  return square;
}

}  // namespace

int64_t SubjectSquare::place() const {
  const double room = std::max(1e-6, 1 - side);
  const auto third = [&](double middle) {
    const double share = (middle - side / 2) / room;
    return share < 1.0 / 3 ? 0 : (share < 2.0 / 3 ? 1 : 2);
  };
  return 3 * third(y) + third(x);
}

SubjectSquare subject_square(const at::Tensor& picture) {
  const auto unit = (picture.to(at::kFloat).clamp(-1, 1) + 1) / 2;
  const auto background = border_median(unit).view({3, 1, 1});
  return square_of((unit - background).abs().amax(0) > kThreshold);
}

SubjectSquare bitmap_square(const at::Tensor& bitmap) { return square_of(bitmap[3] > 127); }

}  // namespace pretraining
