// SPDX-License-Identifier: Apache-2.0
// Files of the reference Python package. programs/safetensors_interop_test.py runs the last test
// case on files that it makes on the spot and checks what comes out with the reference.
#include <lightlora/file_io.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "paths.h"
#include "safetensors_bytes.h"
#include "support.h"

using namespace lightlora;

namespace {

const std::filesystem::path reference_files = LIGHTLORA_TEST_DATA "/safetensors";

SafetensorsFile open_reference(const std::string& name) {
  return SafetensorsFile((reference_files / (name + ".safetensors")).string());
}

}  // namespace

TEST_CASE("safetensors: the reference's values of every dtype are read", "[safetensors][parity]") {
  const SafetensorsFile file = open_reference("dtypes");
  REQUIRE(file.tensors().size() == 12);
  const auto values = torch::arange(6, at::kLong).reshape({2, 3});
  for (const auto& tensor : file.tensors()) {
    CAPTURE(tensor.name);
    CHECK(tensor.name == tensor.dtype_name);
    const auto loaded = file.load(tensor.name);
    CHECK(loaded.scalar_type() == tensor.dtype);
    const auto expected = tensor.dtype == at::kBool ? values.remainder(2) : values;
    CHECK(at::equal(loaded.to(at::kDouble), expected.to(at::kDouble)));
  }
}

TEST_CASE("safetensors: the reference's shapes, names and metadata are read",
          "[safetensors][parity]") {
  const TensorMap shapes = open_reference("shapes").load_all();
  CHECK(shapes.at("scalar").dim() == 0);
  CHECK(shapes.at("scalar").item<double>() == 2.5);
  CHECK(shapes.at("none").sizes() == at::IntArrayRef({0, 5}));
  CHECK(shapes.at("deep").dim() == 8);
  const SafetensorsFile names = open_reference("names");
  CHECK(names.contains("\xC3\xA9 \"quoted\" \\ \xF0\x9F\x98\x80\n"));
  CHECK(names.metadata() == Metadata{{"k\xC3\xA9y\t", "line\nbreak \x01 \xE2\x82\xAC \"\\/"}});
  CHECK(open_reference("empty").tensors().empty());
  CHECK(at::equal(
      open_reference("lora").load("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1."
                                  "to_q.lora.up.weight"),
      torch::arange(6, at::kFloat).reshape({3, 2})));
}

TEST_CASE("safetensors: files of the reference are written again byte for byte",
          "[safetensors][parity]") {
  const ScratchFolder folder;
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(reference_files)) {
    CAPTURE(entry.path().string());
    const SafetensorsFile file(entry.path().string());
    save_safetensors(folder.file("x"), file.load_all(), file.metadata());
    CHECK(bytes::read(folder.file("x")) == bytes::read(entry.path()));
    ++count;
  }
  CHECK(count == 5);
}

TEST_CASE("safetensors: each file of a folder is written again or refused with a reason",
          "[safetensors][parity]") {
  const ScratchFolder scratch;
  const char* from = std::getenv("LIGHTLORA_INTEROP_FROM");
  const char* to = std::getenv("LIGHTLORA_INTEROP_TO");
  const std::filesystem::path target = to != nullptr ? std::filesystem::path(to) : scratch.path();
  int count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(from != nullptr ? from : reference_files)) {
    const std::string copy = (target / entry.path().filename()).string();
    ++count;
    try {
      const SafetensorsFile file(entry.path().string());
      save_safetensors(copy, file.load_all(), file.metadata());
    } catch (const c10::Error& error) {
      bytes::write(copy + ".refused", error.what_without_backtrace());
      continue;
    }
    const SafetensorsFile original(entry.path().string()), written(copy);
    CHECK(written.tensors().size() == original.tensors().size());
  }
  CHECK(count > 0);
}
