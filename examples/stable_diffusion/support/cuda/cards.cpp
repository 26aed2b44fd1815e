// SPDX-License-Identifier: Apache-2.0
#include "support/cuda/cards.h"

#include <array>
#include <cstddef>
#include <type_traits>

#include "support/cli/fmt.h"
#include "support/cuda/libraries.h"

namespace cuda {

namespace {

constexpr int kComputeCapabilityMajor = 75;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR

using Uuid = std::array<unsigned char, 16>;  // CUuuid

// The few functions of the driver's interface (cuda.h) that say what is there.
struct Driver {
  int (*init)(unsigned) = nullptr;
  int (*count)(int*) = nullptr;
  int (*get)(int*, int) = nullptr;
  int (*name)(char*, int, int) = nullptr;
  int (*memory)(std::size_t*, int) = nullptr;
  int (*attribute)(int*, int, int) = nullptr;
  // Of a part of a divided GPU its own, where the older cuDeviceGetUuid has that of the whole.
  int (*uuid)(Uuid*, int) = nullptr;

  bool load() {
    const auto find = [&](auto& function, const char* symbol) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(find_driver_function(symbol));
      return function != nullptr;
    };
    find(uuid, "cuDeviceGetUuid_v2");
    return find(init, "cuInit") && find(count, "cuDeviceGetCount") && find(get, "cuDeviceGet") &&
           find(name, "cuDeviceGetName") && find(memory, "cuDeviceTotalMem_v2") &&
           find(attribute, "cuDeviceGetAttribute");
  }
};

std::string uuid_of(const Driver& driver, int device) {
  Uuid bytes{};
  if (driver.uuid == nullptr || driver.uuid(&bytes, device) != 0) return "";
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

std::vector<Card> find_cards() {
  std::vector<Card> found;
  Driver driver;
  int count = 0;
  if (!driver.load() || driver.init(0) != 0 || driver.count(&count) != 0) return found;
  for (int i = 0; i < count; ++i) {
    int device = 0, generation = 0;
    std::array<char, 256> name{};
    std::size_t bytes = 0;
    if (driver.get(&device, i) != 0 || driver.name(name.data(), 255, device) != 0 ||
        driver.memory(&bytes, device) != 0 ||
        driver.attribute(&generation, kComputeCapabilityMajor, device) != 0) {
      continue;
    }
    found.push_back(
        {name.data(), static_cast<int64_t>(bytes), generation, uuid_of(driver, device)});
  }
  return found;
}

}  // namespace

const std::vector<Card>& cards() {
  static const auto found = find_cards();
  return found;
}

c10::ScalarType fast_precision(c10::Device device) {
  const auto index = static_cast<std::size_t>(device.has_index() ? device.index() : 0);
  if (!device.is_cuda() || index >= cards().size()) return c10::kFloat;
  constexpr int kAmpere = 8;  // the first that multiplies bf16
  return cards()[index].generation >= kAmpere ? c10::kBFloat16 : c10::kHalf;
}

}  // namespace cuda
