// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>

#include <cstdint>

namespace training {

/// What a random number is for: each use has streams of its own, so that asking for one more number
/// somewhere changes nothing elsewhere. New ones go to the end: the place is part of the numbers.
enum class Stream : uint64_t {
  order,         ///< in which order the pictures come
  sample,        ///< crop, latent, noise and timestep of a sample
  caption,       ///< which captions are dropped
  split,         ///< which pictures are held out
  crop,          ///< the one crop of a picture whose latents are cached
  class_order,   ///< as `order`, of the class pictures
  class_sample,  ///< as `sample`, of the class pictures
  class_image,   ///< seeds of class pictures that are drawn
  validation,    ///< noise and timesteps of the validation loss
  dropout,       ///< the models' own dropout
};

/// A CPU generator whose numbers follow from (seed, stream, index) alone. A training run keeps no
/// random state: step k draws the same numbers whether it was reached in one go, after a restart,
/// or by another process that shares the batch.
inline at::Generator generator_for(uint64_t seed, Stream stream, int64_t index) {
  // SplitMix64 (Steele, Lea and Flood 2014): spreads neighbouring indices over all 64 bits.
  uint64_t x = seed * 0x9E3779B97F4A7C15ULL + static_cast<uint64_t>(stream);
  for (const uint64_t part : {static_cast<uint64_t>(index), uint64_t{0x2545F4914F6CDD1DULL}}) {
    x = (x ^ part) + 0x9E3779B97F4A7C15ULL;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    x ^= x >> 31;
  }
  return at::make_generator<at::CPUGeneratorImpl>(x);
}

}  // namespace training
