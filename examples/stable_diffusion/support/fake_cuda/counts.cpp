// SPDX-License-Identifier: Apache-2.0
#include <mutex>
#include <sstream>
#include <unordered_map>

#include "support/fake_cuda/device.h"
#include "support/fake_cuda/fake_cuda.h"
#include "support/fake_cuda/operators.h"

namespace fake_cuda {
namespace {

struct Counting {
  std::mutex mutex;
  std::unordered_map<c10::OperatorName, int64_t> kernels;
  Counts rest;
};

Counting& counting() {
  static auto* only = new Counting;
  return *only;
}

std::string full_name(const c10::OperatorName& name) {
  const auto colons = name.name.rfind(':');
  const auto base = colons == std::string::npos ? name.name : name.name.substr(colons + 1);
  return name.overload_name.empty() ? base : base + "." + name.overload_name;
}

int64_t total(const std::map<std::string, int64_t>& counts) {
  int64_t sum = 0;
  for (const auto& [name, count] : counts) sum += count;
  return sum;
}

void write_counts(std::ostream& out, const std::map<std::string, int64_t>& counts) {
  const char* between = "";
  out << "{";
  for (const auto& [name, count] : counts) {
    out << between << '"' << name << "\": " << count;
    between = ", ";
  }
  out << "}";
}

}  // namespace

int64_t Counts::kernel_total() const { return total(kernels); }

int64_t Counts::wait_total() const { return total(waits); }

std::string Counts::json() const {
  std::ostringstream out;
  out << "{\"kernel_total\": " << kernel_total() << ", \"wait_total\": " << wait_total()
      << ", \"uploads\": " << uploads << ", \"downloads\": " << downloads
      << ", \"peak_bytes\": " << peak_bytes(0) << ", \"waits\": ";
  write_counts(out, waits);
  out << ", \"kernels\": ";
  write_counts(out, kernels);
  out << "}";
  return out.str();
}

Counts counts() {
  auto& all = counting();
  const std::lock_guard<std::mutex> lock(all.mutex);
  Counts result = all.rest;
  for (const auto& [name, count] : all.kernels) result.kernels[full_name(name)] += count;
  return result;
}

void reset_counts() {
  auto& all = counting();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.kernels.clear();
  all.rest = {};
}

void refuse_while_recording(const std::string& what) {
  TORCH_CHECK(!is_recording(), "CUDA error: operation not permitted when stream is capturing (",
              what, ")");
}

void count_kernel(const c10::OperatorName& name) {
  auto& all = counting();
  const std::lock_guard<std::mutex> lock(all.mutex);
  ++all.kernels[name];
}

void count_wait(const std::string& reason) {
  refuse_while_recording(reason);
  auto& all = counting();
  const std::lock_guard<std::mutex> lock(all.mutex);
  ++all.rest.waits[reason];
}

void count_upload() {
  auto& all = counting();
  const std::lock_guard<std::mutex> lock(all.mutex);
  ++all.rest.uploads;
}

void count_download() {
  auto& all = counting();
  const std::lock_guard<std::mutex> lock(all.mutex);
  ++all.rest.downloads;
}

}  // namespace fake_cuda
