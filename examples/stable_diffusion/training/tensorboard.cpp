// SPDX-License-Identifier: Apache-2.0
#include "training/tensorboard.h"

#include <c10/util/Exception.h>

#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>

#include "support/cli/fmt.h"
#include "support/cli/process.h"

namespace training {

namespace {

// Protocol buffers: a field is a varint (number << 3 | wire type) and then its value.
enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>((value & 0x7F) | 0x80);
  return bytes + static_cast<char>(value);
}

std::string field_key(int number, WireType type) {
  return varint(static_cast<uint64_t>(number) << 3 | type);
}

std::string integer_field(int number, int64_t value) {
  return field_key(number, kVarint) + varint(static_cast<uint64_t>(value));
}

std::string bytes_field(int number, const std::string& value) {
  return field_key(number, kBytes) + varint(value.size()) + value;
}

template <typename Value>
std::string little_endian(Value value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

// The checksums of checksums that follow data which holds checksums are weak, hence the mask.
std::string masked_crc(const std::string& bytes) {
  const uint32_t crc = crc32c(bytes);
  return little_endian(((crc >> 15) | (crc << 17)) + 0xA282EAD8U);
}

double wall_time() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

std::string event_file_name() {
  return fmt::format("events.out.tfevents.{}.{}.{}", static_cast<int64_t>(wall_time()),
                     cli::machine_name(), cli::process_id());
}

}  // namespace

uint32_t crc32c(const std::string& bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> result{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0x82F63B78U : 0);
      result[i] = value;
    }
    return result;
  }();
  uint32_t crc = 0xFFFFFFFFU;
  for (const char c : bytes) crc = table[(crc ^ static_cast<uint8_t>(c)) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

TensorBoardWriter::TensorBoardWriter(const std::string& folder, int64_t first_step) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  path_ = (std::filesystem::path(folder) / event_file_name()).string();
  file_.open(path_, std::ios::binary | std::ios::app);
  TORCH_CHECK(file_, "'", path_, "': expected a file for TensorBoard that can be written, got '",
              std::strerror(errno), "'");
  write_event(0, bytes_field(3, "brain.Event:2"));
  // session_log with status START makes TensorBoard drop this step and what came after it.
  if (first_step > 0) write_event(first_step + 1, bytes_field(7, integer_field(1, 1)));
}

void TensorBoardWriter::write_record(const std::string& payload) {
  const std::string length = little_endian(static_cast<uint64_t>(payload.size()));
  file_ << length << masked_crc(length) << payload << masked_crc(payload) << std::flush;
  TORCH_CHECK(file_, "'", path_, "': expected to add to the file, got '", std::strerror(errno),
              "'");
}

void TensorBoardWriter::write_event(int64_t step, const std::string& payload) {
  write_record(field_key(1, kFixed64) + little_endian(wall_time()) + integer_field(2, step) +
               payload);
}

void TensorBoardWriter::add_scalar(const std::string& tag, double value, int64_t step) {
  const std::string simple = field_key(2, kFixed32) + little_endian(static_cast<float>(value));
  write_event(step, bytes_field(5, bytes_field(1, bytes_field(1, tag) + simple)));
}

void TensorBoardWriter::add_image(const std::string& tag, const std::string& png, int64_t width,
                                  int64_t height, int64_t step) {
  constexpr int64_t kRgb = 3;
  const std::string image = integer_field(1, height) + integer_field(2, width) +
                            integer_field(3, kRgb) + bytes_field(4, png);
  write_event(step, bytes_field(5, bytes_field(1, bytes_field(1, tag) + bytes_field(4, image))));
}

}  // namespace training
