// SPDX-License-Identifier: Apache-2.0
#include "recording.h"

#include <ATen/core/Generator.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "memory.h"
#include "support/cuda/graph_recorder.h"
#include "support/fake_cuda/fake_cuda.h"
#include "support/fake_cuda/generator.h"

namespace fake_cuda {
namespace {

// What one recording holds. Tensors that its kernels see stay alive, so that nothing else comes to
// lie in their memory.
struct Graph {
  uint64_t number = 0;
  std::vector<std::function<void()>> kernels;
  std::unordered_set<void*> own_memory;  // handed out while it was recorded
  std::unordered_map<void*, std::pair<c10::Storage, std::vector<char>>>
      before;  // of others' memory
};

std::mutex graph_mutex;
std::atomic<Graph*> recorded_graph{nullptr};

void* memory_of(const c10::Storage& storage) {
  return storage.unsafeGetStorageImpl()->mutable_data();
}

std::vector<uint64_t> generator_states() {
  std::vector<uint64_t> states;
  for (int i = 0; i < kDeviceCount; ++i) {
    states.push_back(default_generator(static_cast<c10::DeviceIndex>(i)).get_offset());
  }
  return states;
}

void restore_generators(const std::vector<uint64_t>& offsets) {
  for (int i = 0; i < kDeviceCount; ++i) {
    at::Generator generator = default_generator(static_cast<c10::DeviceIndex>(i));
    generator.set_offset(offsets[static_cast<size_t>(i)]);
  }
}

class Recorder final : public cuda::GraphRecorder {
 public:
  int warm_ups() const override { return 2; }
  void warm_up(const std::function<void()>& work) override { work(); }

  void record(const std::function<void()>& work) override {
    static std::atomic<uint64_t> recordings{0};
    Graph graph;
    graph.number = ++recordings;
    const auto offsets = generator_states();
    TORCH_CHECK(!recorded_graph.exchange(&graph), "fake CUDA: a capture is under way already");
    std::exception_ptr error;
    try {
      work();
    } catch (...) {
      error = std::current_exception();
    }
    recorded_graph = nullptr;
    // Nothing has happened: that is what a capture is.
    for (auto& [address, saved] : graph.before) {
      std::memcpy(touchable(address, saved.second.size()), saved.second.data(),
                  saved.second.size());
    }
    graph.before.clear();
    restore_generators(offsets);
    if (error) std::rethrow_exception(error);
    graph_ = std::move(graph);
    poison();
  }

  void replay() override {
    for (const auto& kernel : graph_.kernels) kernel();
    poison();
  }

 private:
  // What was not copied out is gone, as it is when the next recording uses the same pool.
  void poison() {
    for (void* address : graph_.own_memory) poison_block_of(graph_.number, address);
  }

  Graph graph_;
};

}  // namespace

bool is_recording() { return recorded_graph != nullptr; }

void note_write(const at::Tensor& tensor) {
  if (!is_recording() || !tensor.defined() || !tensor.is_cuda()) return;
  const std::lock_guard<std::mutex> lock(graph_mutex);
  Graph& graph = *recorded_graph;
  const auto& storage = tensor.storage();
  void* address = memory_of(storage);
  if (!address || graph.own_memory.count(address) || graph.before.count(address)) return;
  const auto* bytes = static_cast<const char*>(touchable(address, storage.nbytes()));
  graph.before[address] = {storage, std::vector<char>(bytes, bytes + storage.nbytes())};
}

uint64_t note_allocation(void* address) {
  if (!is_recording()) return 0;
  const std::lock_guard<std::mutex> lock(graph_mutex);
  recorded_graph.load()->own_memory.insert(address);
  return recorded_graph.load()->number;
}

void note_kernel(std::function<void()> again) {
  if (!is_recording()) return;
  const std::lock_guard<std::mutex> lock(graph_mutex);
  recorded_graph.load()->kernels.push_back(std::move(again));
}

void write_back(const c10::IValue& recorded, const c10::IValue& again) {
  if (recorded.isTensorList()) {
    const auto to = recorded.toTensorVector(), from = again.toTensorVector();
    for (size_t i = 0; i < to.size(); ++i) write_back(to[i], from.at(i));
  }
  if (!recorded.isTensor() || !recorded.toTensor().defined()) return;
  const auto& to = recorded.toTensor().storage();
  const auto& from = again.toTensor().storage();
  if (to.is_alias_of(from) || to.nbytes() == 0) return;
  TORCH_CHECK(to.nbytes() == from.nbytes(), "fake CUDA: a recorded kernel had a result of ",
              to.nbytes(), " bytes, and has one of ", from.nbytes(), " now");
  std::memcpy(touchable(memory_of(to), to.nbytes()), touchable(memory_of(from), to.nbytes()),
              to.nbytes());
}

}  // namespace fake_cuda

// Found by the programs, which cannot tell the simulation from their own.
static_assert(std::string_view(cuda::kGraphRecorderSymbol) == "lightlora_make_graph_recorder");
extern "C" cuda::GraphRecorder* lightlora_make_graph_recorder(c10::Device) {
  return new fake_cuda::Recorder;
}
