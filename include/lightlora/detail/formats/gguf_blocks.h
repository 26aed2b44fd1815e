// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Half.h>
#include <lightlora/detail/formats/gguf_header.h>

#include <cstdint>
#include <cstring>
#include <string_view>

// The numbers of the blocks that GGUF files hold weights in, as ggml's dequantize_row_* give them: a
// block has one or two factors in fp16 (d, and m for what is taken off or added), and the K kinds have
// further factors of 4, 6 or 8 bits for each 16 or 32 of their 256 numbers.

namespace lightlora::detail::gguf {

inline float half_at(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return c10::detail::fp16_ieee_to_fp32_value(bits);
}

inline void q8_0(const uint8_t* b, float* y) {
  const float d = half_at(b);
  for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(static_cast<int8_t>(b[2 + i]));
}

// Number i of 32 in four bits: the lower halves of 16 bytes come first.
inline int nibble(const uint8_t* q, int i) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; }
// Number i of 32 in five bits, whose highest lie apart.
inline int five(const uint8_t* high, const uint8_t* q, int i) {
  return nibble(q, i) | ((high[i / 8] >> (i % 8)) & 1) << 4;
}

inline void q4_0(const uint8_t* b, float* y) {
  const float d = half_at(b);
  for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(nibble(b + 2, i) - 8);
}

inline void q4_1(const uint8_t* b, float* y) {
  const float d = half_at(b), m = half_at(b + 2);
  for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(nibble(b + 4, i)) + m;
}

inline void q5_0(const uint8_t* b, float* y) {
  const float d = half_at(b);
  for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(five(b + 2, b + 6, i) - 16);
}

inline void q5_1(const uint8_t* b, float* y) {
  const float d = half_at(b), m = half_at(b + 2);
  for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(five(b + 4, b + 8, i)) + m;
}

// Number i of 256 in two bits: 128 of them lie in 32 bytes, the lowest two bits first.
inline int two(const uint8_t* q, int i) {
  return q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

inline void q2_k(const uint8_t* b, float* y) {
  const float d = half_at(b + 80), m = half_at(b + 82);
  for (int i = 0; i < 256; ++i) {
    const uint8_t factors = b[i / 16];
    const float dl = d * static_cast<float>(factors & 15),
                ml = m * static_cast<float>(factors >> 4);
    y[i] = dl * static_cast<float>(two(b + 16, i)) - ml;
  }
}

inline void q3_k(const uint8_t* b, float* y) {
  const uint8_t *high = b, *q = b + 32, *factors = b + 96;
  const float d = half_at(b + 108);
  for (int i = 0; i < 256; ++i) {
    const int j = i / 16;
    const int low = j < 8 ? factors[j] & 15 : factors[j - 8] >> 4;
    const int factor = (low | (factors[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32;
    const int less = (high[i % 32] >> (i / 32) & 1) ? 0 : 4;
    y[i] = d * static_cast<float>(factor) * static_cast<float>(two(q, i) - less);
  }
}

// Factor and minimum of 32 numbers, six bits each, of eight in 12 bytes.
inline void six_bits(const uint8_t* at, int j, int* factor, int* least) {
  if (j < 4) {
    *factor = at[j] & 63;
    *least = at[j + 4] & 63;
  } else {
    *factor = (at[j + 4] & 15) | (at[j - 4] >> 6) << 4;
    *least = at[j + 4] >> 4 | (at[j] >> 6) << 4;
  }
}

// Number i of 256 in four bits: 64 of them lie in 32 bytes, the lower halves first.
inline int four(const uint8_t* q, int i) {
  const uint8_t both = q[i / 64 * 32 + i % 32];
  return i % 64 < 32 ? both & 15 : both >> 4;
}

inline void q4_k(const uint8_t* b, float* y) {
  const float d = half_at(b), m = half_at(b + 2);
  for (int i = 0; i < 256; ++i) {
    int factor, least;
    six_bits(b + 4, i / 32, &factor, &least);
    const float dl = d * static_cast<float>(factor), ml = m * static_cast<float>(least);
    y[i] = dl * static_cast<float>(four(b + 16, i)) - ml;
  }
}

inline void q5_k(const uint8_t* b, float* y) {
  const float d = half_at(b), m = half_at(b + 2);
  const uint8_t* high = b + 16;
  for (int i = 0; i < 256; ++i) {
    int factor, least;
    six_bits(b + 4, i / 32, &factor, &least);
    const float dl = d * static_cast<float>(factor), ml = m * static_cast<float>(least);
    const int q = four(b + 48, i) | (high[i % 32] >> (i / 32) & 1) << 4;
    y[i] = dl * static_cast<float>(q) - ml;
  }
}

inline void q6_k(const uint8_t* b, float* y) {
  const uint8_t *low = b, *high = b + 128;
  const auto* factors = reinterpret_cast<const int8_t*>(b + 192);
  const float d = half_at(b + 208);
  for (int i = 0; i < 256; ++i) {
    // 128 numbers: the lower halves of 64 bytes, then the upper ones.
    const int half = i / 128, in_half = i % 128;
    const uint8_t both = low[half * 64 + in_half % 64];
    const int q = (in_half < 64 ? both & 15 : both >> 4) | two(high, i) << 4;
    y[i] = d * static_cast<float>(factors[i / 16]) * static_cast<float>(q - 32);
  }
}

using Unpack = void (*)(const uint8_t* block, float* numbers);

/// What unpacks blocks of this type; null where the numbers lie as they are.
inline Unpack unpack_of(const GgufType& type) {
  switch (type.id) {
    case 2:
      return q4_0;
    case 3:
      return q4_1;
    case 6:
      return q5_0;
    case 7:
      return q5_1;
    case 8:
      return q8_0;
    case 10:
      return q2_k;
    case 11:
      return q3_k;
    case 12:
      return q4_k;
    case 13:
      return q5_k;
    case 14:
      return q6_k;
    default:
      return nullptr;
  }
}

}  // namespace lightlora::detail::gguf
