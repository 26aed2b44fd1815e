// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace training {

/// Width and height of training pictures.
struct Size {
  int64_t width = 0, height = 0;
};

inline bool operator==(Size a, Size b) { return a.width == b.width && a.height == b.height; }
inline bool operator<(Size a, Size b) {
  return a.width != b.width ? a.width < b.width : a.height < b.height;
}

/// Aspect-ratio buckets: pictures keep about their shape, and those of a bucket have one size.
struct BucketOptions {
  int64_t resolution = 512;  ///< a bucket has at most resolution^2 pixels
  int64_t min_size = 256;    ///< shortest side of a bucket
  int64_t max_size = 1024;   ///< longest side of a bucket
  int64_t step = 64;         ///< sides are multiples of it

  /// The usual 256, 1024 and 64 at a resolution of 512, and their like at others.
  static BucketOptions of(int64_t resolution);
};

/// The sizes that kohya's sd-scripts makes from these numbers, sorted.
/// Errors: c10::ValueError if there is none
std::vector<Size> bucket_sizes(const BucketOptions& options);

/// The bucket whose shape (width over height) is nearest to a picture's.
Size nearest_bucket(const std::vector<Size>& buckets, Size picture);

}  // namespace training
