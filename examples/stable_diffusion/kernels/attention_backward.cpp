// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <vector>

#include "kernels/attention_kernels.h"
#include "kernels/key_blocks.h"
#include "kernels/tiles.h"

#if SD_SIMD
SD_SIMD_BEGIN

namespace sd::simd {

namespace {

// Parts of the work that a call has at least, where its queries are enough; not the number of
// threads, so that results do not depend on it. And the blocks of queries that a part is worth.
constexpr int64_t kParts = 16, kPartBlocks = 4;
// Keys, values and their gradients that stay in the second-level cache while the queries pass by.
constexpr int64_t kGroupBytes = 256 << 10;

// How one call is divided, and what it needs beside its tensors.
template <typename T>
struct Plan {
  explicit Plan(const AttentionBackward<T>& call)
      : call(call),
        heads(call.sizes.batch * call.sizes.heads),
        key_vectors((call.sizes.keys + kLanes - 1) / kLanes),
        key_blocks((key_vectors + kVectors - 1) / kVectors),
        query_blocks((call.sizes.queries + kQueries - 1) / kQueries),
        pairs_size((call.sizes.queries + 1) / 2 * 2 * call.sizes.width) {
    const int64_t wanted =
        std::min((kParts + heads - 1) / heads, std::max<int64_t>(1, query_blocks / kPartBlocks));
    part_blocks = (query_blocks + wanted - 1) / wanted;
    parts = (query_blocks + part_blocks - 1) / part_blocks;
    const int64_t block_bytes = kQueries * call.sizes.width * (3 * sizeof(T) + 2 * sizeof(float));
    group_blocks = std::max<int64_t>(1, std::min(key_blocks, kGroupBytes / block_bytes));
    mean.reset(new float[heads * call.sizes.queries]);
    if (kPair<T> == 2) {
      query.reset(new T[heads * pairs_size]);
      grad_out.reset(new T[heads * pairs_size]);
    }
    if (parts > 1) grads.reset(new float[heads * parts * grads_size()]);
  }

  // In lanes: the end of the last block may lie beyond the last key.
  int64_t begin_of(int64_t key_block) const {
    return key_vectors * key_block / key_blocks * kLanes;
  }
  int64_t keys_in(int64_t key_block) const {
    return std::min(begin_of(key_block + 1), call.sizes.keys) - begin_of(key_block);
  }
  // Gradients of a head's keys and values, block by block.
  int64_t grads_size() const { return key_vectors * kLanes * 2 * call.sizes.width; }
  float* grads_of(int64_t head, int64_t part, int64_t key_block) const {
    return grads.get() + (head * parts + part) * grads_size() +
           begin_of(key_block) * 2 * call.sizes.width;
  }

  const AttentionBackward<T>& call;
  int64_t heads;  // of all batch entries
  int64_t key_vectors, key_blocks, query_blocks;
  int64_t pairs_size;                    // of one head
  int64_t parts, part_blocks;            // of a head's queries, and blocks of them in a part
  int64_t group_blocks;                  // of keys
  std::unique_ptr<T[]> query, grad_out;  // in pairs
  std::unique_ptr<float[]> mean, grads;
};

template <typename T, typename U>
U* at_head(const Tokens<U>& tokens, const AttentionBackward<T>& call, int64_t head) {
  return tokens.data + head / call.sizes.heads * tokens.batch_stride +
         head % call.sizes.heads * call.sizes.width;
}

template <typename T>
Head<T> head_of(const Plan<T>& plan, int64_t i) {
  const auto& call = plan.call;
  const bool paired = kPair<T> == 2;
  Head<T> head;
  head.query = at_head(call.query, call, i);
  head.key = at_head(call.key, call, i);
  head.value = at_head(call.value, call, i);
  head.grad_out = at_head(call.grad_out, call, i);
  head.query_pairs = paired ? plan.query.get() + i * plan.pairs_size : head.query;
  head.grad_out_pairs = paired ? plan.grad_out.get() + i * plan.pairs_size : head.grad_out;
  head.query_step = paired ? 2 * call.sizes.width : call.query.stride;
  head.grad_out_step = paired ? 2 * call.sizes.width : call.grad_out.stride;
  head.exponent = call.exponent + i * call.sizes.queries;
  head.inverse = call.inverse + i * call.sizes.queries;
  head.mean = plan.mean.get() + i * call.sizes.queries;
  return head;
}

// Of each query from `first`, the mean of the gradients of its scores: grad_out . out.
template <typename T>
SD_SIMD_TARGET void find_means(const Plan<T>& plan, int64_t head, int64_t first, int64_t count) {
  const auto& call = plan.call;
  const int64_t width = call.sizes.width;
  const T* out = at_head(call.out, call, head) + first * call.out.stride;
  const T* grad = at_head(call.grad_out, call, head) + first * call.grad_out.stride;
  float* to = plan.mean.get() + head * call.sizes.queries + first;
  for (int64_t i = 0; i < count; ++i, out += call.out.stride, grad += call.grad_out.stride) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t d = 0; d < width; d += kLanes * kPair<T>) {
      const __mmask16 mask = first_lanes((width - d) / kPair<T>);
      sum = multiply_add<T>(sum, load_words(mask, out + d), load_words(mask, grad + d));
    }
    alignas(64) float parts[kLanes];
    _mm512_store_ps(parts, sum);
    to[i] = 0;
    for (const float part : parts) to[i] += part;
  }
}

template <typename T>
void prepare(const Plan<T>& plan, int64_t head, int64_t first, int64_t count) {
  find_means(plan, head, first, count);
  if constexpr (kPair<T> == 2) {
    const auto& call = plan.call;
    const int64_t width = call.sizes.width, to = head * plan.pairs_size + first * width;
    const Head<T> from = head_of(plan, head);
    pair_rows(plan.query.get() + to, from.query + first * call.query.stride, call.query.stride,
              count, width);
    pair_rows(plan.grad_out.get() + to, from.grad_out + first * call.grad_out.stride,
              call.grad_out.stride, count, width);
  }
}

template <typename T>
void load_keys(const Plan<T>& plan, const Head<T>& head, int64_t number, KeyBlock<T>& keys) {
  const auto& call = plan.call;
  const int64_t width = call.sizes.width, words = width / kPair<T>;
  keys.first = plan.begin_of(number);
  keys.count = plan.keys_in(number);
  keys.vectors = static_cast<int>((keys.count + kLanes - 1) / kLanes);
  const int64_t lanes = keys.vectors * kLanes;
  keys.lanes.resize(2 * words * lanes);
  keys.grads.assign(2 * width * lanes, 0.0F);
  keys.pairs.resize(kPair<T> == 2 ? lanes * width : 0);
  const T* key = head.key + keys.first * call.key.stride;
  const T* value = head.value + keys.first * call.value.stride;
  rows_to_lanes(keys.vectors, keys.lanes.data(), key, call.key.stride, keys.count, words);
  rows_to_lanes(keys.vectors, keys.lanes.data() + words * lanes, value, call.value.stride,
                keys.count, words);
  pair_rows(keys.pairs.data(), key, call.key.stride, keys.count, width);
}

template <typename T>
void write_rows(const Tokens<T>& to, const AttentionBackward<T>& call, int64_t head, int64_t first,
                int64_t count, const float* from, float factor) {
  float factors[kQueries];
  std::fill(std::begin(factors), std::end(factors), factor);
  lanes_to_rows(static_cast<int>((count + kLanes - 1) / kLanes),
                at_head(to, call, head) + first * to.stride, to.stride, from, count,
                call.sizes.width, factors);
}

// The gradients of a block's keys and values, [width][vectors] each.
template <typename T>
void write_keys(const Plan<T>& plan, int64_t head, int64_t block, const float* grads) {
  const auto& call = plan.call;
  const int64_t first = plan.begin_of(block), count = plan.keys_in(block);
  const int64_t lanes = plan.begin_of(block + 1) - first;
  write_rows(call.grad_key, call, head, first, count, grads, call.scale);
  write_rows(call.grad_value, call, head, first, count, grads + call.sizes.width * lanes, 1.0F);
}

// A part of the queries of a head against all of its keys, a group of these at a time.
template <typename T>
void run_part(const Plan<T>& plan, Bench<T>& bench, int64_t number, int64_t part) {
  const auto& call = plan.call;
  const Head<T> head = head_of(plan, number);
  const int64_t begin = part * plan.part_blocks * kQueries, size = kQueries * call.sizes.width;
  const int64_t end = std::min(call.sizes.queries, begin + plan.part_blocks * kQueries);
  prepare(plan, number, begin, end - begin);
  auto& group = bench.group;
  bench.grad_query.assign(plan.part_blocks * size, 0.0F);
  for (int64_t first = 0; first < plan.key_blocks; first += plan.group_blocks) {
    const int64_t blocks = std::min(plan.group_blocks, plan.key_blocks - first);
    for (int64_t i = 0; i < blocks; ++i) load_keys(plan, head, first + i, group[i]);
    float* to = bench.grad_query.data();
    for (int64_t row = begin; row < end; row += kQueries, to += size) {
      const int64_t count = std::min(kQueries, end - row);
      for (int64_t i = 0; i < blocks; ++i) {
        if (call.causal && row + count <= group[i].first) break;  // keys that no query has
        meet(bench, group[i], head, row, count, to);
      }
      if (first + blocks == plan.key_blocks) {
        write_rows(call.grad_query, call, number, row, count, to, call.scale);
      }
    }
    for (int64_t i = 0; i < blocks; ++i) {
      const auto& grads = group[i].grads;
      if (plan.parts > 1) {
        std::copy(grads.begin(), grads.end(), plan.grads_of(number, part, first + i));
      } else {
        write_keys(plan, number, first + i, grads.data());
      }
    }
  }
}

// The gradients of a block of keys: the sum over the parts of the queries.
template <typename T>
void add_parts(const Plan<T>& plan, int64_t head, int64_t block) {
  float* sum = plan.grads_of(head, 0, block);
  const int64_t size = plan.grads_of(head, 0, block + 1) - sum;
  for (int64_t part = 1; part < plan.parts; ++part) {
    const float* more = plan.grads_of(head, part, block);
    for (int64_t i = 0; i < size; ++i) sum[i] += more[i];
  }
  write_keys(plan, head, block, sum);
}

}  // namespace

template <typename T>
void attention_backward(const AttentionBackward<T>& call) {
  const Plan<T> plan(call);
  in_threads(plan.heads * plan.parts, [&](int64_t begin, int64_t end) {
    const auto bench = std::make_unique<Bench<T>>(call, plan.group_blocks);
    for (int64_t i = begin; i < end; ++i) run_part(plan, *bench, i / plan.parts, i % plan.parts);
  });
  if (plan.parts == 1) return;
  in_threads(plan.heads * plan.key_blocks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      add_parts(plan, i / plan.key_blocks, i % plan.key_blocks);
    }
  });
}

template void attention_backward(const AttentionBackward<float>&);
template void attention_backward(const AttentionBackward<Bf16>&);

}  // namespace sd::simd

SD_SIMD_END
#endif
