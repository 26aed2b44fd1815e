// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/detail/quantised_weight.h>

#include <cstdint>
#include <vector>

namespace lightlora {

/// What a weight in four bits is made of, as bitsandbytes keeps it: the numbers of the weight, row
/// after row, two in a byte, the first of them in the upper half. Each of them stands for a value of
/// `code`, and each `block` of them has one factor.
struct FourBitParts {
  at::Tensor packed;           ///< uint8, (numbers + 1) / 2
  at::Tensor code;             ///< fp32 (16), values from -1 to 1
  int64_t block = 64;          ///< numbers with one factor
  at::Tensor absmax;           ///< the factors: fp32, or uint8 where they are quantised in turn
  at::Tensor nested_code;      ///< fp32 (256), what those bytes stand for
  at::Tensor nested_absmax;    ///< fp32, of each `nested_block` factors
  int64_t nested_block = 256;  ///< factors with one factor of theirs
  float offset = 0;            ///< which is added to the factors
};

/// A frozen weight of a layer in four bits; every call computes with the full weight, made for it.
/// NF4 (QLoRA): the 16 values are such that about equally many numbers of a normal distribution fall
/// to each. Paper: Dettmers et al. 2023, arXiv:2305.14314
class FourBitWeight final : public QuantisedWeight {
 public:
  /// Whether a weight can be kept so: fp32, bf16 or fp16, of two dimensions or more.
  static bool fits(const at::Tensor& weight);
  /// NF4 in blocks of 64, the same bits as bitsandbytes' `quantize_nf4`; with `double_quant` the
  /// factors are kept in eight bits too (`compress_statistics`).
  explicit FourBitWeight(const at::Tensor& weight, bool double_quant = false);
  /// The weight of a file. `parts` belong to these sizes.
  FourBitWeight(FourBitParts parts, std::vector<int64_t> sizes, at::ScalarType dtype);

  at::Tensor dense() const override;
  const char* kept_in() const override { return "four bits"; }
  int64_t nbytes() const override;
  at::Device device() const override { return parts_.packed.device(); }

  /// What it is made of.
  const FourBitParts& parts() const { return parts_; }

 private:
  at::Tensor factors() const;

  FourBitParts parts_;
};

namespace detail {

/// The values of NF4, on the CPU.
at::Tensor nf4_code();
/// bitsandbytes' 256 values of eight bits with a sign, whose exponent has as many bits as it needs.
at::Tensor dynamic_code();

}  // namespace detail

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/detail/four_bit_weight-inl.h>
#endif
