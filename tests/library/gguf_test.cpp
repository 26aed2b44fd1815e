// SPDX-License-Identifier: Apache-2.0
// GGUF files: ggml's numbers to the bit for every kind of block, what stable-diffusion.cpp and
// ComfyUI-GGUF write, and damaged files, each with one clear line.
#include <lightlora/detail/formats/gguf_blocks.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "library/safetensors_bytes.h"
#include "support.h"

using lightlora::GgufFile;
using torch::Tensor;

namespace {

// A writer of its own. What each test damages is a member.
struct Writer {
  struct Item {
    std::string name;
    std::vector<uint64_t> sizes;  // the innermost first
    uint32_t type;
    uint64_t offset;
  };

  std::string magic = "GGUF";
  uint32_t version = 3;
  std::string keys;
  uint64_t key_count = 0, more_tensors = 0;
  std::vector<Item> items;
  std::string data;
  uint64_t alignment = 32;

  static std::string text(const std::string& value) {
    return bytes::of<uint64_t>(value.size()) + value;
  }
  void key(const std::string& name, uint32_t type, const std::string& value) {
    keys += text(name) + bytes::of(type) + value;
    ++key_count;
  }
  void tensor(const std::string& name, std::vector<uint64_t> sizes, uint32_t type,
              const std::string& content) {
    data.resize((data.size() + alignment - 1) / alignment * alignment);
    items.push_back({name, std::move(sizes), type, data.size()});
    data += content;
  }
  std::string file() const {
    std::string all = magic + bytes::of(version) +
                      bytes::of<uint64_t>(items.size() + more_tensors) + bytes::of(key_count) +
                      keys;
    for (const auto& item : items) {
      all += text(item.name) + bytes::of(static_cast<uint32_t>(item.sizes.size()));
      for (const uint64_t size : item.sizes) all += bytes::of(size);
      all += bytes::of(item.type) + bytes::of(item.offset);
    }
    all.resize((all.size() + alignment - 1) / alignment * alignment);
    return all + data;
  }
};

struct Kind {
  const char* name;
  uint32_t id;
  std::vector<std::size_t> factors;  // where a block has numbers in fp16
  uint64_t hash;
};

// Of ggml's own package gguf 0.19.0: see tests/parity/make_gguf.py.
const std::vector<Kind> kKinds{
    {"Q4_0", 2, {0}, 0xbd0f9250dc4b1c1aULL},     {"Q4_1", 3, {0, 2}, 0xfd9f357e031db187ULL},
    {"Q5_0", 6, {0}, 0xade3ccf51f66b3a3ULL},     {"Q5_1", 7, {0, 2}, 0xcadb77cef634b29cULL},
    {"Q8_0", 8, {0}, 0x805b6dbc49883c24ULL},     {"Q2_K", 10, {80, 82}, 0x668e1e5df77f901bULL},
    {"Q3_K", 11, {108}, 0x3e5764f2d5144d50ULL},  {"Q4_K", 12, {0, 2}, 0xe07b13190dfd9f73ULL},
    {"Q5_K", 13, {0, 2}, 0xc29875208f542f0bULL}, {"Q6_K", 14, {208}, 0xf0afe9a6b10470e3ULL},
};

std::string blocks_of(const Kind& kind, std::size_t size, std::size_t count) {
  std::string all;
  int64_t state = 7;
  for (std::size_t i = 0; i < size * count; ++i) {
    state = (state * 1103515245 + 12345) % (int64_t{1} << 31);
    auto value = static_cast<unsigned char>(state >> 16 & 255);
    for (const std::size_t at : kind.factors) {
      if (i % size == at + 1) value = (value & 0x83) | 0x28;
    }
    all += static_cast<char>(value);
  }
  return all;
}

uint64_t fnv_of(const Tensor& tensor) {
  const auto* data = static_cast<const unsigned char*>(tensor.const_data_ptr());
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (std::size_t i = 0; i < tensor.nbytes(); ++i) hash = (hash ^ data[i]) * 0x100000001b3ULL;
  return hash;
}

std::string floats_of(int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += bytes::of(0.5F + static_cast<float>(i));
  return all;
}

// A file with one tensor of 2 x 3 numbers, and what is changed in it.
template <typename Change>
std::string changed(const Change& change) {
  Writer writer;
  writer.tensor("a", {3, 2}, 0, floats_of(6));
  change(writer);
  return writer.file();
}

std::string message_of(const std::string& path) {
  try {
    GgufFile file(path);
    file.load_all();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

struct DamagedGguf {
  const char* name;
  std::string file;
  const char* says;
};
const std::string kWholeGguf = changed([](Writer&) {});

std::string list(uint32_t type, uint64_t count, const std::string& rest = "") {
  return bytes::of(type) + bytes::of(count) + rest;
}

std::string lists_in_lists() {
  std::string nested;
  for (int i = 0; i < 10; ++i) nested += list(9, 1);
  return nested;
}

constexpr uint64_t kHuge = uint64_t{1} << 62;
const std::vector<DamagedGguf> kDamagedGguf{
    {"cut in the header", kWholeGguf.substr(0, 30), "cut off"},
    {"cut in the data", kWholeGguf.substr(0, kWholeGguf.size() - 1), "bytes of data"},
    {"only the magic", "GGUF", "cut off"},
    {"version 1", changed([](Writer& w) { w.version = 1; }), "version 2 or 3"},
    {"big-endian", changed([](Writer& w) { w.version = 0x03000000; }), "little-endian"},
    {"tensors beyond the file", changed([](Writer& w) { w.more_tensors = 100'000; }), "no room"},
    {"more tensors than anyone has", changed([](Writer& w) { w.more_tensors = kHuge; }),
     "at most 1000000 tensors"},
    {"keys beyond the file", changed([](Writer& w) { w.key_count = 90'000; }), "no room"},
    {"too many keys", changed([](Writer& w) { w.key_count = kHuge; }), "at most 100000 keys"},
    {"a long key", changed([](Writer& w) {
       w.keys = bytes::of<uint64_t>(kHuge);
       w.key_count = 1;
       w.tensor("b", {8}, 0, floats_of(8));
     }),
     "at most 65535"},
    {"a text beyond the file",
     changed([](Writer& w) { w.key("k", 8, bytes::of<uint64_t>(kHuge)); }), "no room"},
    {"a list beyond the file", changed([](Writer& w) { w.key("k", 9, list(8, kHuge)); }),
     "no room"},
    {"a list of lists of lists", changed([](Writer& w) { w.key("k", 9, lists_in_lists()); }),
     "at most 4"},
    {"a value of no type", changed([](Writer& w) { w.key("k", 13, "x"); }), "13 types"},
    {"a key twice", changed([](Writer& w) {
       w.key("k", 0, "x");
       w.key("k", 0, "x");
     }),
     "each key once"},
    {"escape codes", changed([](Writer& w) { w.key("\x1b[2J\n", 13, "x"); }), "13 types"},
    {"no UTF-8", changed([](Writer& w) { w.key("\xff", 0, "x"); }), "UTF-8"},
    {"an alignment of 0",
     changed([](Writer& w) { w.key("general.alignment", 4, bytes::of<uint32_t>(0)); }),
     "power of two"},
    {"an alignment of 48",
     changed([](Writer& w) { w.key("general.alignment", 4, bytes::of<uint32_t>(48)); }),
     "power of two"},
    {"an alignment that is a text",
     changed([](Writer& w) { w.key("general.alignment", 8, Writer::text("32")); }), "power of two"},
    {"a tensor twice", changed([](Writer& w) { w.tensor("a", {1}, 0, floats_of(1)); }),
     "each tensor once"},
    {"no name", changed([](Writer& w) { w.items[0].name = ""; }), "an empty one"},
    {"five dimensions", changed([](Writer& w) { w.items[0].sizes = {1, 1, 1, 6, 1}; }),
     "at most 4 dimensions"},
    {"sizes that overflow", changed([](Writer& w) { w.items[0].sizes = {kHuge, kHuge, kHuge}; }),
     "overflow"},
    {"a size above int64", changed([](Writer& w) { w.items[0].sizes = {~uint64_t{0}}; }),
     "fit int64"},
    {"sizes beyond the file", changed([](Writer& w) { w.items[0].sizes = {1 << 30, 1 << 20}; }),
     "bytes of data"},
    {"another type", changed([](Writer& w) { w.items[0].type = 16; }), "type 16"},
    {"half a block", changed([](Writer& w) { w.items[0].type = 2; }), "whole blocks of 32"},
    {"an offset in between", changed([](Writer& w) { w.items[0].offset = 4; }), "a multiple of 32"},
    {"a hole", changed([](Writer& w) {
       w.data += std::string(64, 'x');
       w.items[0].offset = 32;
     }),
     "where the one before ends"},
    {"an overlap", changed([](Writer& w) {
       w.tensor("b", {6}, 0, floats_of(6));
       w.items[1].offset = 0;
     }),
     "where the one before ends"},
    {"a shape of other numbers", changed([](Writer& w) {
       w.key("comfy.gguf.orig_shape.a", 9, list(5, 1, bytes::of<int32_t>(7)));
     }),
     "as many numbers"},
    {"a shape below 0", changed([](Writer& w) {
       w.key("comfy.gguf.orig_shape.a", 9,
             list(5, 2, bytes::of<int32_t>(-2) + bytes::of<int32_t>(-3)));
     }),
     "as many numbers"},
    {"a shape that is a text",
     changed([](Writer& w) { w.key("comfy.gguf.orig_shape.a", 8, Writer::text("x,")); }),
     "as many numbers"},
};

}  // namespace

TEST_CASE("gguf: blocks of every kind are ggml's numbers to the bit", "[gguf]") {
  const ScratchFolder folder;
  Writer writer;
  for (const auto& kind : kKinds) {
    const auto& type = *std::find_if(std::begin(lightlora::detail::gguf_types),
                                     std::end(lightlora::detail::gguf_types),
                                     [&](const auto& each) { return each.id == kind.id; });
    writer.tensor(kind.name, {type.numbers, 5}, kind.id, blocks_of(kind, type.bytes, 5));
  }
  bytes::write(folder.path() / "m.gguf", writer.file());
  const auto file = lightlora::open_tensors(folder.file("m.gguf"));
  CHECK(file->tensors().size() == kKinds.size());
  for (const auto& kind : kKinds) {
    INFO(kind.name);
    const Tensor numbers = file->load(kind.name);
    CHECK(numbers.scalar_type() == torch::kFloat);
    CHECK(numbers.size(0) == 5);
    CHECK(fnv_of(numbers) == kind.hash);
  }
}

TEST_CASE("gguf: plain numbers, keys and shapes", "[gguf]") {
  const ScratchFolder folder;
  Writer writer;
  writer.alignment = 64;
  writer.key("general.alignment", 4, bytes::of<uint32_t>(64));
  writer.key("general.architecture", 8, Writer::text("sdxl"));
  writer.key("x.flag", 7, std::string(1, '\1'));
  writer.key("x.list", 9, bytes::of<uint32_t>(8) + bytes::of<uint64_t>(1) + Writer::text("long"));
  writer.key("comfy.gguf.orig_shape.c", 9,
             bytes::of<uint32_t>(5) + bytes::of<uint64_t>(4) + bytes::of<int32_t>(3) +
                 bytes::of<int32_t>(2) + bytes::of<int32_t>(1) + bytes::of<int32_t>(1));
  writer.tensor("a", {3, 2}, 0, floats_of(6));
  const Tensor half = torch::randn({5}).to(torch::kHalf), brain = half.to(torch::kBFloat16);
  const auto raw = [](const Tensor& t) {
    return std::string(static_cast<const char*>(t.const_data_ptr()), t.nbytes());
  };
  writer.tensor("h", {5}, 1, raw(half));
  writer.tensor("b", {5}, 30, raw(brain));
  writer.tensor("c", {6}, 0, floats_of(6));
  writer.tensor("scalar", {}, 26, bytes::of<int32_t>(-7));
  bytes::write(folder.path() / "m.gguf", writer.file());
  const auto file = lightlora::open_tensors(folder.file("m.gguf"));
  CHECK(torch::equal(file->load("a"), torch::arange(6).view({2, 3}) + 0.5F));
  CHECK(torch::equal(file->load("h"), half));
  CHECK(torch::equal(file->load("b"), brain));
  CHECK(file->load("c").sizes() == at::IntArrayRef({3, 2, 1, 1}));
  CHECK(file->load("scalar").item<int32_t>() == -7);
  CHECK(file->metadata().at("general.architecture") == "sdxl");
  CHECK(file->metadata().at("x.flag") == "true");
  CHECK_THROWS_WITH(file->load("z"), ContainsSubstring("expected tensor 'z'"));
}

TEST_CASE("gguf: damaged files end in one line", "[gguf][strangers]") {
  const ScratchFolder folder;
  const std::string path = folder.file("m.gguf");
  bytes::write(path, kWholeGguf);
  CHECK(message_of(path).empty());
  for (const auto& row : kDamagedGguf) {
    INFO(row.name);
    bytes::write(path, row.file);
    const auto message = message_of(path);
    CHECK_THAT(message, ContainsSubstring(row.says));
    CHECK_THAT(message, ContainsSubstring("m.gguf': expected"));
    CHECK(message.find_first_of("\n\x1b") == message.npos);
  }
}
