// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

namespace training {

/// Writes one event file of TensorBoard's format.
///
/// Format: records of (length u64, masked CRC-32C of it, payload, masked CRC-32C of that), all
/// little-endian; a payload is the protocol buffer `tensorflow.Event`. Every record reaches the
/// file before the call returns.
class TensorBoardWriter {
 public:
  /// Makes a new file in the folder. A run that goes on gives the step it starts at: TensorBoard
  /// then forgets what older files say about later ones.
  /// Errors: c10::Error if it cannot be made
  explicit TensorBoardWriter(const std::string& folder, int64_t first_step = 0);

  void add_scalar(const std::string& tag, double value, int64_t step);
  /// A picture as the bytes of its PNG file.
  void add_image(const std::string& tag, const std::string& png, int64_t width, int64_t height,
                 int64_t step);

  const std::string& path() const { return path_; }

 private:
  void write_event(int64_t step, const std::string& payload);
  void write_record(const std::string& payload);

  std::string path_;
  std::ofstream file_;
};

/// CRC-32C (Castagnoli), as RFC 3720 defines it.
uint32_t crc32c(const std::string& bytes);

}  // namespace training
