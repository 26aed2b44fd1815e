// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <ATen/core/Generator.h>

namespace fake_cuda {

/// Random numbers of a device. As on a GPU the state is a seed and an offset, 16 bytes, and each
/// kernel takes the next piece of the sequence; the numbers are not those of a CPU generator of the
/// same seed.
class DeviceGenerator final : public c10::GeneratorImpl {
 public:
  explicit DeviceGenerator(c10::DeviceIndex index);

  /// A CPU generator for one kernel; the next call gives other numbers.
  at::Generator draw();

  void set_current_seed(uint64_t seed) override;
  uint64_t current_seed() const override;
  uint64_t seed() override;
  void set_offset(uint64_t offset) override { offset_ = offset; }
  uint64_t get_offset() const override { return offset_; }
  void set_state(const c10::TensorImpl& state) override;
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override;

  // at::check_generator's demand on a generator class.
  static c10::DeviceType device_type() { return c10::kCUDA; }

 private:
  DeviceGenerator* clone_impl() const override;

  uint64_t seed_ = c10::default_rng_seed_val;
  uint64_t offset_ = 0;
};

const at::Generator& default_generator(c10::DeviceIndex index);

}  // namespace fake_cuda
