// SPDX-License-Identifier: Apache-2.0
#include "support/fake_cuda/generator.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Utils.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cstring>

#include "support/fake_cuda/device.h"
#include "support/fake_cuda/fake_cuda.h"

namespace fake_cuda {
namespace {

constexpr int64_t kStateBytes = 16;
// What one kernel takes of the sequence; Philox counts in fours.
constexpr uint64_t kStride = 4;

uint64_t mixed(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

DeviceGenerator::DeviceGenerator(c10::DeviceIndex index)
    : c10::GeneratorImpl(c10::Device(c10::kCUDA, index),
                         c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}

at::Generator DeviceGenerator::draw() {
  auto generator = at::detail::createCPUGenerator(mixed(mixed(seed_) + offset_));
  offset_ += kStride;
  return generator;
}

uint64_t DeviceGenerator::current_seed() const {
  refuse_while_recording("Cannot call CUDAGeneratorImpl::current_seed");
  return seed_;
}

void DeviceGenerator::set_current_seed(uint64_t seed) {
  refuse_while_recording("Cannot call CUDAGeneratorImpl::set_current_seed");
  seed_ = seed;
  offset_ = 0;
}

uint64_t DeviceGenerator::seed() {
  set_current_seed(c10::detail::getNonDeterministicRandom(/*is_cuda=*/true));
  return seed_;
}

void DeviceGenerator::set_state(const c10::TensorImpl& state) {
  refuse_while_recording("Cannot call CUDAGeneratorImpl::set_state");
  at::detail::check_rng_state(state);
  TORCH_CHECK(state.numel() == kStateBytes, "RNG state is wrong size: expected ", kStateBytes,
              " bytes, got ", state.numel());
  const auto* bytes = static_cast<const char*>(state.data());
  std::memcpy(&seed_, bytes, sizeof seed_);
  std::memcpy(&offset_, bytes + sizeof seed_, sizeof offset_);
}

c10::intrusive_ptr<c10::TensorImpl> DeviceGenerator::get_state() const {
  refuse_while_recording("Cannot call CUDAGeneratorImpl::get_state");
  at::Tensor state = at::empty({kStateBytes}, at::TensorOptions(at::kByte).device(at::kCPU));
  auto* bytes = state.data_ptr<uint8_t>();
  std::memcpy(bytes, &seed_, sizeof seed_);
  std::memcpy(bytes + sizeof seed_, &offset_, sizeof offset_);
  return state.getIntrusivePtr();
}

DeviceGenerator* DeviceGenerator::clone_impl() const {
  auto* copy = new DeviceGenerator(device().index());
  copy->seed_ = seed_;
  copy->offset_ = offset_;
  return copy;
}

const at::Generator& default_generator(c10::DeviceIndex index) {
  static const auto* all = [] {
    auto* made = new std::array<at::Generator, kDeviceCount>;
    for (int i = 0; i < kDeviceCount; ++i) {
      (*made)[i] = at::make_generator<DeviceGenerator>(static_cast<c10::DeviceIndex>(i));
    }
    return made;
  }();
  return all->at(index < 0 ? current_device() : index);
}

}  // namespace fake_cuda
