// SPDX-License-Identifier: Apache-2.0
#include "support/images/png.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "paths.h"
#include "support.h"
#include "support/images/load.h"

namespace {

images::Image stripes() {
  images::Image image(17, 9);
  for (std::size_t i = 0; i < image.pixels.size(); ++i) {
    image.pixels[i] = static_cast<uint8_t>(i * i);
  }
  return image;
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::size_t number_of_entries(const std::filesystem::path& folder) {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder)) ++count;
  return count;
}

}  // namespace

TEST_CASE("png: a saved picture reads back with its texts", "[png]") {
  const ScratchFolder folder;
  const images::PngText text = {{"parameters", "a café\nSteps: 25, Seed: 7"},
                                {"Title", "猫 🐈 \x01 end"},
                                {"empty", ""},
                                {"Software", "lightlora"}};
  images::save_png(folder.file("a.png"), stripes(), text);
  CHECK(images::load_image(folder.file("a.png")) == stripes());
  CHECK(images::read_png_text(folder.file("a.png")) == text);
  const std::string bytes = bytes_of(folder.file("a.png"));
  CHECK(bytes.find(std::string("tEXtparameters\0a caf\xE9\n", 22)) != std::string::npos);
  CHECK(bytes.find(std::string("iTXtTitle\0", 10)) != std::string::npos);
  images::save_png(folder.file("b.png"), stripes());
  CHECK(images::read_png_text(folder.file("b.png")).empty());
}

TEST_CASE("png: equal input gives equal bytes", "[png]") {
  const ScratchFolder folder;
  images::save_png(folder.file("a.png"), stripes(), {{"parameters", "x"}});
  images::save_png(folder.file("b.png"), stripes(), {{"parameters", "x"}});
  CHECK(bytes_of(folder.file("a.png")) == bytes_of(folder.file("b.png")));
}

TEST_CASE("png: the text chunks that PIL writes are read", "[png][parity]") {
  CHECK(images::read_png_text(LIGHTLORA_TEST_DATA "/images/texts.png") ==
        images::PngText{{"parameters", "a café\nSteps: 25, Seed: 7"},
                        {"Comment",
                         [] {
                           std::string text;
                           for (int i = 0; i < 40; ++i) text += "long ";
                           return text;
                         }()},
                        {"Title", "猫 🐈"}});
}

TEST_CASE("png: bytes that are not UTF-8 become replacement characters", "[png]") {
  const ScratchFolder folder;
  // A stray byte, an overlong slash, a surrogate, a cut sequence.
  images::save_png(folder.file("a.png"), stripes(),
                   {{"prompt", "a\xFFz \xC0\xAF \xED\xA0\x80 \xE7\x8C"}});
  const std::string r = "\xEF\xBF\xBD";
  CHECK(images::read_png_text(folder.file("a.png"))["prompt"] ==
        "a" + r + "z " + r + r + " " + r + r + r + " " + r + r);
}

TEST_CASE("png: a keyword must be printable and short", "[png]") {
  const ScratchFolder folder;
  for (const std::string& key : {std::string(), std::string(" a"), std::string("a "),
                                 std::string("é"), std::string("a\n"), std::string(80, 'a')}) {
    CHECK_THROWS_WITH(
        images::save_png(folder.file("a.png"), stripes(), {{key, "x"}}),
        ContainsSubstring("expected a keyword of 1 to 79 printable ASCII characters, got '" + key +
                          "'"));
  }
  CHECK_THROWS_AS(images::save_png(folder.file("a.png"), {}), c10::ValueError);
  CHECK(number_of_entries(folder.path()) == 0);
}

TEST_CASE("png: a failed save leaves the older file and nothing else", "[png]") {
  const ScratchFolder folder;
  CHECK_THROWS_WITH(
      images::save_png(folder.file("none/a.png"), stripes()),
      ContainsSubstring("none/a.png': expected a folder that can be written to, got 'No such "
                        "file or directory'; hint: create the folder first"));
  std::filesystem::create_directory(folder.file("b.png"));
  CHECK_THROWS_WITH(images::save_png(folder.file("b.png"), stripes()),
                    ContainsSubstring("expected the name of a file to write, got a folder"));
  CHECK(number_of_entries(folder.path()) == 1);
}

TEST_CASE("png: a folder without write permission is a clear error", "[png]") {
  // /proc refuses new files to every user, root included.
  CHECK_THROWS_WITH(
      images::save_png("/proc/a.png", stripes()),
      ContainsSubstring("'/proc/a.png': expected a folder that can be written to, got '"));
}

TEST_CASE("png: reading texts of other files is an error", "[png]") {
  const std::string data = LIGHTLORA_TEST_DATA "/images/";
  CHECK_THROWS_WITH(images::read_png_text(data + "colour.jpg"),
                    ContainsSubstring("colour.jpg': expected a PNG picture, got another file"));
  const ScratchFolder folder;
  std::ofstream(folder.file("cut.png"), std::ios::binary)
      << bytes_of(data + "texts.png").substr(0, 100);
  CHECK_THROWS_WITH(
      images::read_png_text(folder.file("cut.png")),
      ContainsSubstring("cut.png': expected a whole PNG picture, got a damaged one: the file "
                        "ends too early"));
}

TEST_CASE("png: a name may have no ending, and none of another format in any spelling", "[png]") {
  for (const char* name : {"a", "a.png", "a.PNG", "dir.jpg/a", "a.jpg.png", "a.1"}) {
    CHECK_NOTHROW(images::check_png_name(name));
  }
  for (const char* name : {"a.jpg", "a.JPG", "a.Jpeg", "b/a.WebP", "a.png.GIF"}) {
    CHECK_THROWS_WITH(images::check_png_name(name), ContainsSubstring(".png"));
  }
}
