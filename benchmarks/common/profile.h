// SPDX-License-Identifier: Apache-2.0
// Where the time of a call goes, by operator.
#pragma once

#include <ATen/record_function.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace measure {

/// Time and calls of each operator that this thread ran, without that of the operators which it
/// called.
class Profile {
 public:
  template <typename Call>
  explicit Profile(const Call& call) {
    stack().clear();
    table().clear();
    const auto handle =
        at::addThreadLocalCallback(at::RecordFunctionCallback(&Profile::begin, &Profile::end));
    const auto start = Clock::now();
    call();
    seconds_ = std::chrono::duration<double>(Clock::now() - start).count();
    at::removeCallback(handle);
    for (const auto& [name, row] : table()) rows_.emplace_back(name, row);
    std::sort(rows_.begin(), rows_.end(),
              [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  }

  /// The most expensive operators, with their share of the whole; `repeats` is how often the call
  /// took its step.
  void print(std::size_t most, int64_t repeats = 1) const {
    const double steps = static_cast<double>(repeats);
    fmt::print("{:>12} {:>7} {:>8}  operator\n", "us a step", "share", "calls");
    double shown = 0;
    for (std::size_t i = 0; i < std::min(most, rows_.size()); ++i) {
      const auto& [name, row] = rows_[i];
      shown += row.seconds;
      fmt::print("{:>12.1f} {:>6.1f}% {:>8.1f}  {}\n", 1e6 * row.seconds / steps,
                 100 * row.seconds / seconds_, static_cast<double>(row.calls) / steps, name);
    }
    fmt::print("{:>12.1f} {:>6.1f}% {:>8}  the rest, and between the operators\n",
               1e6 * (seconds_ - shown) / steps, 100 * (seconds_ - shown) / seconds_, "");
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Row {
    int64_t calls = 0;
    double seconds = 0;
  };
  struct Started : at::ObserverContext {
    Clock::time_point at = Clock::now();
  };

  // Seconds spent in the callees of each operator that is running.
  static std::vector<double>& stack() {
    static thread_local std::vector<double> running;
    return running;
  }
  static std::map<std::string, Row>& table() {
    static thread_local std::map<std::string, Row> rows;
    return rows;
  }

  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& /*function*/) {
    stack().push_back(0);
    return std::make_unique<Started>();
  }
  static void end(const at::RecordFunction& function, at::ObserverContext* context) {
    const auto* started = static_cast<const Started*>(context);
    const double all = std::chrono::duration<double>(Clock::now() - started->at).count();
    Row& row = table()[function.name()];
    ++row.calls;
    row.seconds += all - stack().back();
    stack().pop_back();
    if (!stack().empty()) stack().back() += all;
  }

  std::vector<std::pair<std::string, Row>> rows_;
  double seconds_ = 0;
};

}  // namespace measure
