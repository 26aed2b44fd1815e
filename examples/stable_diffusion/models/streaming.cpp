// SPDX-License-Identifier: Apache-2.0
#include "models/streaming.h"

#include <ATen/ATen.h>
#include <malloc.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "support/cli/process.h"
#include "support/files/scratch_mapping.h"

namespace sd {

namespace {

// Where tensors begin, so that they compute as if the allocator had placed them.
constexpr std::size_t kAlignment = 64;

std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// What is streamed in this process. A mapping lives as long as the tensors in it.
struct Streams {
  std::atomic<int64_t> memory_limit{0};
  std::mutex mutex;
  std::string folder;
  std::vector<std::weak_ptr<const ScratchMapping>> mappings;
};

Streams& streams() {
  static Streams all;
  return all;
}

// Has the memory of large tensors go back to the system at once: glibc keeps what is freed, in pieces
// between small blocks, which came to hundreds of megabytes.
void keep_no_freed_memory() {
#if defined(__GLIBC__)
  ::mallopt(M_MMAP_THRESHOLD, 4 << 20);
#endif
}

std::vector<at::Tensor> tensors_of(const torch::nn::Module& module) {
  auto tensors = module.parameters();
  for (const auto& buffer : module.buffers()) tensors.push_back(buffer);
  return tensors;
}

}  // namespace

void stream_weights(torch::nn::Module& module, const StreamingOptions& options) {
  if (options.memory_limit == 0) return;
  keep_no_freed_memory();
  const auto tensors = tensors_of(module);
  std::size_t bytes = 0;
  for (const auto& tensor : tensors) {
    TORCH_CHECK(tensor.is_cpu(), "sd::stream_weights: expected a module on the CPU, got ",
                tensor.device());
    bytes += aligned(tensor.nbytes());
  }
  const auto mapping = std::make_shared<const ScratchMapping>(options.folder, bytes);
  auto* place = static_cast<char*>(mapping->data());
  for (const auto& tensor : tensors) {
    // The tensor keeps the mapping.
    tensor.set_data(at::from_blob(
        place, tensor.sizes(), tensor.strides(), [mapping](void*) {},
        tensor.options().requires_grad(false)));
    place += aligned(tensor.nbytes());
  }
  auto& all = streams();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.mappings.emplace_back(mapping);
  all.folder = options.folder;
  all.memory_limit = options.memory_limit;
}

at::Tensor streamed_map(at::IntArrayRef sizes, const at::TensorOptions& options,
                        at::MemoryFormat format) {
  constexpr int64_t kLarge = int64_t{1} << 22;  // numbers, 16 MB in fp32
  auto& all = streams();
  const bool streams_maps = all.memory_limit.load(std::memory_order_relaxed) != 0;
  const auto shape = at::empty(sizes, options.device(at::kMeta), format);
  if (!streams_maps || !options.device().is_cpu() || shape.numel() < kLarge) {
    return at::empty(sizes, options, format);
  }
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto mapping = std::make_shared<const ScratchMapping>(all.folder, shape.nbytes());
  all.mappings.emplace_back(mapping);
  return at::from_blob(mapping->data(), sizes, shape.strides(), [mapping](void*) {}, options);
}

void let_go_of_weights(bool written) {
  auto& all = streams();
  const int64_t limit = all.memory_limit.load(std::memory_order_relaxed);
  // A margin, as what comes next takes memory before it can say so.
  if (limit == 0 || cli::resident_memory() < limit - limit / 8) return;
  const std::lock_guard<std::mutex> lock(all.mutex);
  auto kept = std::move(all.mappings);
  all.mappings.clear();
  for (const auto& item : kept) {
    const auto mapping = item.lock();
    if (!mapping) continue;
    mapping->release(written);
    all.mappings.push_back(item);
  }
  const int64_t rest = cli::resident_memory();
  if (rest < limit) return;
  TORCH_WARN_ONCE(
      "--memory_limit: expected at most ", limit, " bytes, got ", rest,
      " without the weights; hint: --gradient_checkpointing, a smaller batch or picture");
}

}  // namespace sd
