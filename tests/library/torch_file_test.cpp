// SPDX-License-Identifier: Apache-2.0
// Files of torch.save: what is read, and what is refused. The files themselves come from
// parity/make_torch_files.py.
#include <lightlora/file_io.h>

#include <fstream>
#include <iterator>

#include "paths.h"
#include "support.h"

using lightlora::TorchFile;

namespace {

const std::string kData = LIGHTLORA_TEST_DATA "/torch_files/";

std::string content(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

std::string error(const std::string& path) {
  try {
    const TorchFile file(path);
    file.load_all();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

}  // namespace

TEST_CASE("torch files: every tensor equals what Python saved", "[torch_file]") {
  for (const char* name : {"plain.pt", "protocol_4.pt"}) {
    INFO(name);
    const TorchFile file(kData + name);
    const auto expected = lightlora::SafetensorsFile(kData + "expected.safetensors");
    CHECK(file.tensors().size() == expected.tensors().size());
    for (const auto& tensor : expected.tensors()) {
      INFO(tensor.name);
      REQUIRE(file.contains(tensor.name));
      const auto value = file.load(tensor.name);
      CHECK(value.scalar_type() == tensor.dtype);
      CHECK(value.is_contiguous());
      CHECK(at::equal(value, expected.load(tensor.name)));
    }
    CHECK(file.metadata().at("name") == "cat");
    CHECK(file.metadata().at("step") == "-500");
    CHECK_THROWS_WITH(file.load("no"), ContainsSubstring("expected tensor 'no'"));
  }
}

TEST_CASE("torch files: wrappers that trainers write are read", "[torch_file]") {
  CHECK(TorchFile(kData + "parameter_dict.pt").load("string_to_param.*").size(0) == 2);
  const TorchFile trainer(kData + "trainer.ckpt");
  CHECK(trainer.contains("state_dict.0.weight"));
  CHECK(trainer.metadata().at("epoch") == "3");
}

TEST_CASE("torch files: anything but tensors is refused by name", "[torch_file]") {
  const std::pair<const char*, const char*> cases[] = {
      {"system.pt", "calls 'posix.system', which is refused"},
      {"eval.pt", "calls '__builtin__.eval', which is refused"},
      {"module.pt", "'torch.nn.modules.linear.Linear'"},
      {"old_format.pt", "files of PyTorch before 1.6 must be saved again"}};
  for (const auto& [name, text] : cases) {
    const auto message = error(kData + name);
    CHECK_THAT(message, ContainsSubstring(kData + name));
    CHECK_THAT(message, ContainsSubstring(text));
    CHECK(message.find('\n') == message.npos);
  }
}

TEST_CASE("torch files: damage is noticed", "[torch_file]") {
  ScratchFolder folder;
  const std::string bytes = content(kData + "plain.pt"), path = folder.file("x.pt");
  const auto with = [&](std::string changed) {
    std::ofstream(path, std::ios::binary) << changed;
    return error(path);
  };
  REQUIRE(with(bytes) == "no error");
  CHECK_THAT(with(bytes.substr(0, bytes.size() / 2)), ContainsSubstring("cut off"));
  CHECK_THAT(with(bytes.substr(0, bytes.size() - 1)), ContainsSubstring("cut off"));
  std::string changed = bytes;
  changed[bytes.find("name") + 1] = 'X';
  CHECK_THAT(with(changed), ContainsSubstring("checksum"));
  changed = bytes;
  changed[changed.rfind("PK\x01\x02") + 10] = 8;
  CHECK_THAT(with(changed), ContainsSubstring("compressed or encrypted"));
  CHECK_THAT(with("PK\x03\x04"), ContainsSubstring("cut off or damaged"));
  CHECK_THAT(with("x"), ContainsSubstring("expected a zip archive"));
}

TEST_CASE("torch files and safetensors open by their first bytes", "[torch_file]") {
  const auto torch_file = lightlora::open_tensors(kData + "plain.pt");
  const auto safetensors = lightlora::open_tensors(kData + "expected.safetensors");
  CHECK(torch_file->contains("half"));
  CHECK(safetensors->contains("half"));
  CHECK_THROWS_WITH(lightlora::open_tensors(kData + "no"), ContainsSubstring("got nothing"));
}
