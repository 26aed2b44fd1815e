// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>

// The zip container as torch.save writes it: stored entries only. Standard library only, so that
// the fuzzers need no LibTorch.

namespace lightlora::detail {

/// A fault in a container or in the pickle in it: one line without the file's name.
class ArchiveError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Where the bytes of a stored entry lie in the file.
struct ZipEntry {
  uint64_t begin = 0;
  uint64_t size = 0;
  uint32_t crc = 0;
};

using ZipEntries = std::map<std::string, ZipEntry>;

inline bool is_zip(std::string_view file) { return file.substr(0, 4) == "PK\x03\x04"; }

/// The checksum of zip files (CRC-32).
inline uint32_t crc32(std::string_view bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> entries{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0u);
      entries[i] = value;
    }
    return entries;
  }();
  uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes) crc = table[(crc ^ static_cast<unsigned char>(c)) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

// Reads little-endian numbers, never outside of the bytes.
class ZipBytes {
 public:
  explicit ZipBytes(std::string_view bytes) : bytes_(bytes) {}

  std::size_t size() const { return bytes_.size(); }
  uint64_t number(uint64_t at, int width) const {
    const auto field = text(at, static_cast<uint64_t>(width));
    uint64_t value = 0;
    for (int i = width; i-- > 0;) {
      value = value << 8 | static_cast<unsigned char>(field[static_cast<std::size_t>(i)]);
    }
    return value;
  }
  std::string_view text(uint64_t at, uint64_t length) const {
    if (at > bytes_.size() || length > bytes_.size() - at) {
      throw ArchiveError(
          "expected a whole zip archive, got one that is cut off or damaged; hint: "
          "download or copy it again");
    }
    return bytes_.substr(static_cast<std::size_t>(at), static_cast<std::size_t>(length));
  }
  void require(uint64_t at, uint32_t signature) const {
    if (number(at, 4) != signature) {
      throw ArchiveError("expected a zip archive's directory, got other bytes at " +
                         std::to_string(at) + "; hint: the file is damaged");
    }
  }

 private:
  std::string_view bytes_;
};

struct ZipDirectory {
  uint64_t begin = 0;
  uint64_t entries = 0;
};

// The end record lies at the end of the file, in front of a comment of at most 64 KiB; large files
// have a second one with 64-bit numbers.
inline ZipDirectory find_zip_directory(const ZipBytes& zip) {
  constexpr uint64_t record = 22, locator = 20;
  if (zip.size() < record) zip.text(0, record);
  const uint64_t last = zip.size() - record;
  for (uint64_t back = 0; back <= last && back <= 0xFFFF; ++back) {
    const uint64_t at = last - back;
    if (zip.number(at, 4) != 0x06054B50 || zip.number(at + 20, 2) != back) continue;
    ZipDirectory directory{zip.number(at + 16, 4), zip.number(at + 10, 2)};
    const bool wide = directory.begin == 0xFFFFFFFF || directory.entries == 0xFFFF;
    if (wide && at >= locator && zip.number(at - locator, 4) == 0x07064B50) {
      const uint64_t end = zip.number(at - locator + 8, 8);
      zip.require(end, 0x06064B50);
      directory = {zip.number(end + 48, 8), zip.number(end + 32, 8)};
    }
    return directory;
  }
  throw ArchiveError(
      "expected a zip archive with a directory at its end, got none; hint: the file "
      "is cut off; download or copy it again");
}

// Replaces the numbers that did not fit into 32 bits by those of the extra field.
inline void read_zip64(const ZipBytes& zip, uint64_t extra, uint64_t length, uint64_t& size,
                       uint64_t& stored, uint64_t& header) {
  for (uint64_t at = extra; at + 4 <= extra + length;) {
    const uint64_t id = zip.number(at, 2), bytes = zip.number(at + 2, 2);
    if (id == 1) {
      uint64_t field = at + 4;
      for (uint64_t* value : {&size, &stored, &header}) {
        if (*value != 0xFFFFFFFF || field + 8 > at + 4 + bytes) continue;
        *value = zip.number(field, 8);
        field += 8;
      }
    }
    at += 4 + bytes;
  }
}

/// The entries of an archive whose entries are stored as they are and lie in the file.
/// Errors: ArchiveError for a damaged archive, compressed or encrypted entries, a name twice
inline ZipEntries read_zip(std::string_view file) {
  const ZipBytes zip(file);
  const ZipDirectory directory = find_zip_directory(zip);
  ZipEntries entries;
  uint64_t at = directory.begin, total = 0;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    zip.require(at, 0x02014B50);
    const uint64_t flags = zip.number(at + 8, 2), method = zip.number(at + 10, 2);
    uint64_t stored = zip.number(at + 20, 4), size = zip.number(at + 24, 4);
    const uint64_t name_length = zip.number(at + 28, 2), extra_length = zip.number(at + 30, 2);
    uint64_t header = zip.number(at + 42, 4);
    const std::string name(zip.text(at + 46, name_length));
    read_zip64(zip, at + 46 + name_length, extra_length, size, stored, header);
    if (method != 0 || (flags & 1) != 0 || stored != size) {
      throw ArchiveError(
          "expected stored entries as torch.save writes them, got a compressed or "
          "encrypted one; hint: unpack the archive first");
    }
    zip.require(header, 0x04034B50);
    const uint64_t begin = header + 30 + zip.number(header + 26, 2) + zip.number(header + 28, 2);
    zip.text(begin, size);
    total += size;
    const ZipEntry entry{begin, size, static_cast<uint32_t>(zip.number(at + 16, 4))};
    if (total > file.size() || !entries.emplace(name, entry).second) {
      throw ArchiveError(
          "expected entries that do not overlap, each name once, got others; hint: "
          "the file is damaged");
    }
    at += 46 + name_length + extra_length + zip.number(at + 32, 2);
  }
  return entries;
}

}  // namespace lightlora::detail
