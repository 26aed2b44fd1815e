// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>

namespace sd {

/// Memory for values that are written once and read often, whose place is a file: the system reads
/// what was released again when it is asked for. The file has no name and goes with the process.
class ScratchMapping {
 public:
  /// Errors: c10::Error if the folder has no room for a file of that size
  ScratchMapping(const std::string& folder, std::size_t bytes);
  ~ScratchMapping();
  ScratchMapping(const ScratchMapping&) = delete;
  ScratchMapping& operator=(const ScratchMapping&) = delete;

  /// `bytes` zeros at first, at the begin of a page.
  void* data() const { return data_; }
  std::size_t size() const { return size_; }

  /// Gives all of the memory back to the system. `written`: values were written since the last time,
  /// and go to the disk first, so that the system can take their memory when it needs it.
  void release(bool written) const;

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace sd
