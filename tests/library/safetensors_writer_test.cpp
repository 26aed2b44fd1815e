// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <lightlora/file_io.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "safetensors_bytes.h"
#include "support.h"

using namespace lightlora;

namespace {

std::vector<std::string> synced;  // what the process asked the disk to hold, in its order

}  // namespace

/// The C library's own, which also notes what it is called for.
extern "C" int fsync(int descriptor) {
  char path[4096];
  const auto link = "/proc/self/fd/" + std::to_string(descriptor);
  const ssize_t length = readlink(link.c_str(), path, sizeof(path));
  if (length > 0) synced.emplace_back(path, static_cast<size_t>(length));
  return static_cast<int>(syscall(SYS_fsync, descriptor));
}

namespace {

/// The names in a folder, so that a forgotten temporary file is seen.
std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    names.push_back(file.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

template <typename Error = c10::Error>
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

/// Runs `call` with files limited to `size` bytes, which fails as a full disk does.
std::string with_file_limit(rlim_t size, const std::function<void()>& call) {
  struct rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  const struct rlimit limit{size, old.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &limit);
  std::string message = message_of(call);
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  return message;
}

}  // namespace

TEST_CASE("save_safetensors: the bytes are the reference writer's", "[safetensors]") {
  // safetensors.torch.save({"b": torch.tensor([1.5, -2.0]), "a": torch.tensor([True, False, True]),
  //                         "c": torch.tensor(7)}, metadata={"format": "pt"})  # safetensors 0.8.0
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"c":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},)"
      R"("a":{"dtype":"BOOL","shape":[3],"data_offsets":[16,19]}})";
  const std::string data =
      bytes::of<int64_t>(7) + bytes::of(1.5F) + bytes::of(-2.0F) + std::string("\1\0\1", 3);
  const std::string padding((8 - header.size() % 8) % 8, ' ');
  const ScratchFolder folder;
  save_safetensors(folder.file("x"),
                   {{"b", torch::tensor({1.5F, -2.0F})},
                    {"a", torch::tensor({true, false, true})},
                    {"c", torch::tensor(int64_t{7})}},
                   {{"format", "pt"}});
  CHECK(bytes::read(folder.file("x")) == bytes::file(header + padding, data));
}

TEST_CASE("save_safetensors: tensors are ordered by type, then name, and aligned",
          "[safetensors]") {
  const ScratchFolder folder;
  const std::vector<at::ScalarType> falling{
      at::kLong,  at::kDouble,        at::kFloat,       at::kInt,  at::kBFloat16, at::kHalf,
      at::kShort, at::kFloat8_e4m3fn, at::kFloat8_e5m2, at::kChar, at::kByte,     at::kBool};
  TensorMap tensors;
  std::vector<std::string> expected;
  for (size_t i = 0; i < falling.size(); ++i) {
    for (const char* prefix : {"n", "m"}) {
      const std::string name = prefix + std::to_string(i);
      tensors[name] = torch::ones({3}).to(falling[i]);
      expected.push_back(name);
    }
    std::swap(expected[2 * i], expected[2 * i + 1]);  // "m" before "n"
  }
  save_safetensors(folder.file("x"), tensors);
  const SafetensorsFile opened(folder.file("x"));
  std::vector<std::string> names;
  for (const auto& tensor : opened.tensors()) {
    names.push_back(tensor.name);
    CHECK(tensor.begin % c10::elementSize(tensor.dtype) == 0);
    CHECK(at::equal(opened.load(tensor.name).to(at::kFloat), torch::ones({3})));
  }
  CHECK(names == expected);
}

TEST_CASE("save_safetensors: equal arguments give equal bytes", "[safetensors]") {
  const ScratchFolder folder;
  const auto x = torch::arange(6, at::kFloat).reshape({2, 3});
  TensorMap one, other;
  one["a"] = x;
  one["b"] = x.add(1);
  other["b"] = x.add(1);
  other["a"] = x.t().contiguous().t();
  save_safetensors(folder.file("one"), one, {{"k", "1"}, {"j", "2"}});
  save_safetensors(folder.file("two"), other, {{"j", "2"}, {"k", "1"}});
  CHECK(bytes::read(folder.file("one")) == bytes::read(folder.file("two")));
  CHECK_THAT(bytes::read(folder.file("one")),
             ContainsSubstring(R"({"__metadata__":{"j":"2","k":"1"},"a":)"));
}

TEST_CASE("save_safetensors: names and metadata survive whatever they contain", "[safetensors]") {
  const ScratchFolder folder;
  const std::string odd = "\"\\/\n\t\x01\x7F \xC3\xA9 \xF0\x9F\x98\x80";
  const Metadata metadata{
      {odd, odd}, {"", ""}, {"nul", std::string("a\0b", 3)}, {"json", "{\"r\": 4}"}};
  save_safetensors(folder.file("x"), {{odd, torch::ones({1})}}, metadata);
  const SafetensorsFile opened(folder.file("x"));
  CHECK(opened.metadata() == metadata);
  CHECK(opened.contains(odd));
}

TEST_CASE("save_safetensors: tensors of any layout are written densely", "[safetensors]") {
  const ScratchFolder folder;
  const auto base = torch::arange(24, at::kFloat).reshape({4, 6});
  const TensorMap tensors{{"transposed", base.t()},
                          {"scalar", torch::tensor(2.5, at::kDouble)},
                          {"empty", torch::empty({0, 3})},
                          {"expanded", torch::ones({1}).expand({5})},
                          {"strided", torch::arange(10, at::kHalf).slice(0, 1, 10, 3)},
                          {"negated", at::_neg_view(torch::ones({3}))},
                          {"needs gradient", torch::ones({2}).requires_grad_()},
                          {"nan", torch::full({2}, NAN)}};
  save_safetensors(folder.file("x"), tensors);
  const TensorMap loaded = SafetensorsFile(folder.file("x")).load_all();
  REQUIRE(loaded.size() == tensors.size());
  for (const auto& [name, tensor] : tensors) {
    CAPTURE(name);
    CHECK(loaded.at(name).scalar_type() == tensor.scalar_type());
    CHECK(loaded.at(name).sizes() == tensor.sizes());
    CHECK(
        at::allclose(loaded.at(name), tensor.detach(), /*rtol=*/0, /*atol=*/0, /*equal_nan=*/true));
  }
}

TEST_CASE("save_safetensors: tensors that share memory are refused", "[safetensors]") {
  const ScratchFolder folder;
  const auto base = torch::arange(8, at::kFloat);
  const std::string expected = "'" + folder.file("x") +
                               "': expected tensors with memory of their own, got 'a' and 'b' "
                               "sharing some; hint: clone() one of them";
  for (const auto& [a, b] : std::vector<std::pair<at::Tensor, at::Tensor>>{
           {base, base},
           {base, base.view({2, 4})},
           {base.slice(0, 0, 5), base.slice(0, 4, 8)},
           {base.view({4, 2}).t(), base.slice(0, 7, 8)}}) {
    CHECK(message_of<c10::ValueError>([&a = a, &b = b, &folder] {
            save_safetensors(folder.file("x"), {{"a", a}, {"b", b}});
          }) == expected);
  }
  CHECK(names_in(folder.path()).empty());
  save_safetensors(folder.file("x"), {{"a", base.slice(0, 0, 4)}, {"b", base.slice(0, 4, 8)}});
  CHECK(SafetensorsFile(folder.file("x")).load("b")[0].item<float>() == 4);
}

TEST_CASE("save_safetensors: NaN is refused with the finite check, and nothing is left",
          "[safetensors]") {
  const ScratchFolder folder;
  const auto save = [&](const TensorMap& tensors) {
    return message_of<c10::ValueError>([&] {
      save_safetensors(folder.file("x"), tensors, {}, SafetensorsSaveOptions().check_finite(true));
    });
  };
  CHECK(save({{"a", torch::ones({2})}, {"b", torch::tensor({1.0F, NAN})}}) ==
        "'" + folder.file("x") +
            "': expected finite values in tensor 'b', got NaN or infinity at element 1");
  CHECK(names_in(folder.path()).empty());
  CHECK(save({{"a", torch::ones({2})}}) == "no error");
}

TEST_CASE("save_safetensors: what the format cannot hold is refused", "[safetensors]") {
  const ScratchFolder folder;
  const auto ones = torch::ones({1});
  const auto save = [&](const std::string& name, const at::Tensor& tensor,
                        const Metadata& metadata) {
    return message_of<c10::ValueError>(
        [&] { save_safetensors(folder.file("x"), {{name, tensor}}, metadata); });
  };
  const std::string prefix = "'" + folder.file("x") + "': expected ";
  const std::string names =
      prefix + "a tensor name of 1 to 4096 bytes of UTF-8 without NUL and not __metadata__, got ";
  CHECK(save("", ones, {}) == names + "''");
  CHECK(save("__metadata__", ones, {}) == names + "'__metadata__'");
  CHECK(save(std::string("a\0b", 3), ones, {}) == names + "'a?b'");
  CHECK(save("a\xFF", ones, {}) == names + "'a?'");
  CHECK(save(std::string(4097, 'n'), ones, {}) == names + "'" + std::string(100, 'n') + "...'");
  CHECK(save("a", ones, {{"k", "\xFF"}}) == prefix + "metadata in UTF-8, got other bytes in 'k'");
  const std::string dense =
      prefix + "a dense tensor as 'a', got an undefined, sparse, quantized or meta one";
  CHECK(save("a", {}, {}) == dense);
  CHECK(save("a", torch::eye(2).to_sparse(), {}) == dense);
  CHECK(save("a", torch::ones({1}, at::kMeta), {}) == dense);
  CHECK(save("a", at::quantize_per_tensor(ones, 0.1, 0, at::kQInt8), {}) == dense);
  CHECK(save("a", torch::ones({1}, at::kComplexFloat), {}) ==
        prefix + "a dtype of safetensors for 'a', got ComplexFloat");
  CHECK(save("a", torch::ones({1, 1, 1, 1, 1, 1, 1, 1, 1}), {}) ==
        prefix + "at most 8 dimensions of 'a', got 9");
  CHECK(names_in(folder.path()).empty());
}

TEST_CASE("save_safetensors: a reader of the replaced file keeps the old values", "[safetensors]") {
  const ScratchFolder folder;
  const auto path = folder.file("x");
  save_safetensors(path, {{"a", torch::full({5000}, 1.0F)}});
  const SafetensorsFile old(path);
  save_safetensors(path, {{"a", torch::full({9}, 2.0F)}});
  CHECK(at::equal(old.load("a"), torch::full({5000}, 1.0F)));
  CHECK(at::equal(SafetensorsFile(path).load("a"), torch::full({9}, 2.0F)));
  CHECK(names_in(folder.path()) == std::vector<std::string>{"x"});
}

TEST_CASE("save_safetensors: a full disk leaves the old file and no other", "[safetensors]") {
  const ScratchFolder folder;
  const auto path = folder.file("x");
  save_safetensors(path, {{"a", torch::ones({4})}});
  const std::string before = bytes::read(path);
  const auto save = [&] { save_safetensors(path, {{"a", torch::zeros({100000})}}); };
  CHECK(with_file_limit(4096, save) ==
        "'" + path + "': expected 400072 bytes of free space, got 'File too large'");
  CHECK(bytes::read(path) == before);
  CHECK(names_in(folder.path()) == std::vector<std::string>{"x"});
}

TEST_CASE("AtomicFile: a write that fails leaves nothing", "[safetensors]") {
  const ScratchFolder folder;
  const std::string message = with_file_limit(4096, [&] {
    lightlora::AtomicFile file(folder.file("x"));
    file.write(std::string(10000, 'x'));
  });
  CHECK(message == "'" + folder.file("x") + "': expected a complete file, got 'File too large'");
  CHECK(names_in(folder.path()).empty());
}

TEST_CASE("AtomicFile: without commit nothing appears", "[safetensors]") {
  const ScratchFolder folder;
  {
    lightlora::AtomicFile file(folder.file("x"));
    file.write("content");
    REQUIRE(names_in(folder.path()).size() == 1);
    CHECK(names_in(folder.path())[0] != "x");
  }
  CHECK(names_in(folder.path()).empty());
}

TEST_CASE("AtomicFile: the file, then its name reach the disk", "[safetensors]") {
  const ScratchFolder folder;
  synced.clear();
  lightlora::AtomicFile file(folder.file("x"));
  file.write("content");
  file.commit();
  REQUIRE(synced.size() == 2);
  CHECK(synced[0].find(folder.file(".lightlora-")) == 0);
  CHECK(synced[1] == folder.path().string());
}

TEST_CASE("AtomicFile: links stay links, also of links, and a file keeps its mode",
          "[safetensors]") {
  namespace fs = std::filesystem;
  const ScratchFolder folder;
  fs::create_directories(folder.path() / "real");
  fs::create_directory_symlink("real", folder.path() / "folder");
  fs::create_symlink("folder/file", folder.path() / "near");
  fs::create_symlink(folder.path() / "near", folder.path() / "far");
  const auto save = [&](const std::string& name, const std::string& content) {
    lightlora::AtomicFile file(folder.file(name));
    file.write(content);
    file.commit();
  };
  save("far", "first");  // what the links lead to is not there yet
  CHECK(bytes::read(folder.file("real/file")) == "first");
  REQUIRE(chmod(folder.file("real/file").c_str(), 0640) == 0);
  save("far", "second");
  CHECK(bytes::read(folder.file("real/file")) == "second");
  struct stat status{};
  REQUIRE(stat(folder.file("real/file").c_str(), &status) == 0);
  CHECK((status.st_mode & 07777) == 0640);
  for (const std::string name : {"far", "near", "folder"}) {
    CHECK(fs::is_symlink(folder.path() / name));
  }
  CHECK(names_in(folder.path() / "real") == std::vector<std::string>{"file"});

  fs::create_symlink("loop", folder.path() / "loop");
  CHECK(message_of([&] { save("loop", "x"); }) ==
        "'" + folder.file("loop") +
            "': expected a name that a file can have, got 'Too many levels of symbolic links'");
}

TEST_CASE("save_safetensors: places that cannot be written are named", "[safetensors]") {
  const ScratchFolder folder;
  const auto save = [](const std::string& path) {
    return message_of([&] { save_safetensors(path, {{"a", torch::ones({1})}}); });
  };
  const auto missing = folder.file("missing/x");
  CHECK(save(missing) == "'" + missing +
                             "': expected a folder that can be written to, got 'No such file or "
                             "directory'; hint: create the folder first");
  CHECK(save(folder.path().string()) ==
        "'" + folder.path().string() + "': expected the name of a file to write, got a folder");
  CHECK(save("/dev/null") ==
        "'/dev/null': expected the name of a file to write, got a device or a pipe");
}

TEST_CASE("save_safetensors: a folder without permission keeps its old file", "[safetensors]") {
  const ScratchFolder folder;
  const auto path = folder.file("x");
  save_safetensors(path, {{"a", torch::ones({4})}});
  const std::string before = bytes::read(path);
  REQUIRE(chmod(folder.path().c_str(), 0555) == 0);
  // Permissions do not bind the superuser, so it lends itself to nobody for the attempt.
  const bool superuser = geteuid() == 0;
  if (superuser) REQUIRE(seteuid(65534) == 0);
  const std::string message =
      message_of([&] { save_safetensors(path, {{"a", torch::zeros({4})}}); });
  if (superuser) REQUIRE(seteuid(0) == 0);
  REQUIRE(chmod(folder.path().c_str(), 0755) == 0);
  CHECK(message ==
        "'" + path + "': expected a folder that can be written to, got 'Permission denied'");
  CHECK(bytes::read(path) == before);
  CHECK(names_in(folder.path()) == std::vector<std::string>{"x"});
}

TEST_CASE("save_safetensors: names as long as names can be are written", "[safetensors]") {
  const ScratchFolder folder;
  const std::string name(255, 'n');
  save_safetensors(folder.file(name), {{"a", torch::ones({1})}});
  CHECK(names_in(folder.path()) == std::vector<std::string>{name});
}
