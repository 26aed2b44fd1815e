// SPDX-License-Identifier: Apache-2.0
// Reading, turning, cropping and resizing pictures against PIL; tests/parity/make_images.py made
// the files.
#include "support/images/image.h"

#include <lightlora/file_io.h>
#include <unistd.h>

#include <fstream>

#include "paths.h"
#include "support.h"
#include "support/images/load.h"
#include "support/images/png.h"
#include "support/images/resize.h"
#include "support/images/tensor.h"

namespace {

const std::string kData = LIGHTLORA_TEST_DATA "/images/";

/// Three different values per pixel, which tell the pixel's place.
images::Image numbered(int64_t width, int64_t height) {
  images::Image image(width, height);
  for (std::size_t i = 0; i < image.pixels.size(); ++i) image.pixels[i] = static_cast<uint8_t>(i);
  return image;
}

images::Image from_tensor(const at::Tensor& values) {
  images::Image image(values.size(1), values.size(0));
  std::copy_n(values.const_data_ptr<uint8_t>(), values.numel(), image.pixels.begin());
  return image;
}

int largest_difference(const images::Image& a, const images::Image& b) {
  REQUIRE(a.width == b.width);
  REQUIRE(a.height == b.height);
  int largest = 0;
  for (std::size_t i = 0; i < a.pixels.size(); ++i) {
    largest = std::max(largest, std::abs(int{a.pixels[i]} - int{b.pixels[i]}));
  }
  return largest;
}

void write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string load_error(const std::string& path) {
  try {
    images::load_image(path);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

/// What load_image says after the name about a file with this name and content.
std::string error_of_content(const std::string& name, const std::string& bytes) {
  const ScratchFolder folder;
  const std::string path = folder.file(name);
  write(path, bytes);
  const std::string message = load_error(path);
  const std::string start = "'" + path + "': expected a ";
  REQUIRE(message.substr(0, start.size()) == start);
  CHECK(message.find('\n') == std::string::npos);
  return message.substr(start.size());
}

}  // namespace

TEST_CASE("image: every format and colour type decodes as PIL does", "[image][parity]") {
  const lightlora::SafetensorsFile expected(kData + "expected.safetensors");
  CHECK(expected.tensors().size() == 44);
  for (const auto& info : expected.tensors()) {
    INFO(info.name);
    const auto want = from_tensor(expected.load(info.name));
    const auto got = images::load_image(kData + info.name);
    CHECK(largest_difference(got, want) == 0);
    CHECK(images::is_image_file(kData + info.name));
  }
}

TEST_CASE("image: resizing equals PIL's in every value", "[image][parity]") {
  const lightlora::SafetensorsFile expected(kData + "resized.safetensors");
  const auto source = images::load_image(kData + "resize_source.png");
  CHECK(expected.tensors().size() == 24);
  for (const auto& info : expected.tensors()) {
    INFO(info.name);
    const auto filter = images::filter_by_name(info.name.substr(0, info.name.find('_')));
    const auto want = from_tensor(expected.load(info.name));
    CHECK(largest_difference(images::resize(source, want.width, want.height, filter), want) == 0);
  }
}

TEST_CASE("image: the shorter side gets the size and the longer one is rounded down", "[image]") {
  const auto size_of = [](int64_t width, int64_t height) {
    const auto image =
        images::resize_shorter_side(images::Image(width, height), 64, images::Filter::kLanczos);
    return std::make_pair(image.width, image.height);
  };
  CHECK(size_of(100, 75) == std::make_pair<int64_t, int64_t>(85, 64));
  CHECK(size_of(75, 100) == std::make_pair<int64_t, int64_t>(64, 85));
  CHECK(size_of(32, 32) == std::make_pair<int64_t, int64_t>(64, 64));
  CHECK(size_of(64, 640) == std::make_pair<int64_t, int64_t>(64, 640));
}

TEST_CASE("image: wrong filters and sizes are errors", "[image]") {
  CHECK_THROWS_AS(images::filter_by_name("nearest"), c10::ValueError);
  CHECK_THROWS_WITH(images::filter_by_name("cubic"),
                    ContainsSubstring("expected bilinear, bicubic or lanczos, got 'cubic'"));
  CHECK_THROWS_WITH(images::resize(images::Image(4, 4), 0, 3, images::Filter::kBicubic),
                    ContainsSubstring("expected positive sizes, got 4x4 to 0x3"));
  CHECK_THROWS_WITH(images::resize_shorter_side({}, 8, images::Filter::kBicubic),
                    ContainsSubstring("got 0x0 to 8"));
  CHECK_THROWS_WITH(images::Image(0, 5), ContainsSubstring("expected a positive size, got 0x5"));
  CHECK_THROWS_WITH(images::crop(images::Image(4, 4), 1, 0, 4, 4),
                    ContainsSubstring("expected a rectangle inside 4x4, got 4x4 at (1, 0)"));
  CHECK_THROWS_WITH(images::crop_centre(images::Image(4, 4), 5, 4),
                    ContainsSubstring("inside 4x4"));
}

TEST_CASE("image: cropping keeps the pixels of the rectangle", "[image]") {
  const auto image = numbered(6, 5);
  const auto part = images::crop(image, /*left=*/2, /*top=*/1, /*width=*/3, /*height=*/4);
  for (int64_t y = 0; y < 4; ++y) {
    CHECK(std::equal(part.row(y), part.row(y) + 9, image.row(y + 1) + 6));
  }
  // An odd rest: (6 - 3) / 2 = 1.5 and (5 - 4) / 2 = 0.5 go to the even neighbours 2 and 0.
  CHECK(images::crop_centre(image, 3, 4) == images::crop(image, 2, 0, 3, 4));
}

TEST_CASE("image: turning upright undoes each orientation", "[image]") {
  // Applying this orientation after that one gives the picture back.
  const std::pair<int, int> inverse[] = {{2, 2}, {3, 3}, {4, 4}, {5, 5}, {6, 8}, {7, 7}, {8, 6}};
  const auto image = numbered(5, 3);
  for (const auto& [first, second] : inverse) {
    INFO(first);
    const auto turned = images::apply_orientation(image, first);
    CHECK(turned != image);
    CHECK(turned.width == (first >= 5 ? 3 : 5));
    CHECK(images::apply_orientation(turned, second) == image);
  }
  for (const int none : {-1, 0, 1, 9}) CHECK(images::apply_orientation(image, none) == image);
  CHECK(images::flip_horizontally(images::flip_horizontally(image)) == image);
  CHECK(images::flip_horizontally(image).pixels[0] == image.pixels[4 * 3]);
}

TEST_CASE("image: a picture becomes a tensor in [-1, 1] and back", "[image]") {
  images::Image image = numbered(16, 16);
  image.pixels[0] = 255;
  const auto tensor = images::to_tensor(image);
  CHECK(tensor.sizes() == at::IntArrayRef({3, 16, 16}));
  CHECK(tensor.scalar_type() == at::kFloat);
  CHECK(tensor[0][0][0].item<float>() == 1.0f);
  CHECK(tensor[1][0][2].item<float>() == (image.pixels[7] / 255.0f - 0.5f) / 0.5f);
  CHECK(images::to_image(tensor) == image);
  CHECK(images::to_image(tensor.to(at::kDouble).transpose(1, 2).contiguous().transpose(1, 2)) ==
        image);
}

TEST_CASE("image: a tensor is clamped and rounded", "[image]") {
  const auto value = [](double x) {
    return int{images::to_image(at::full({3, 1, 1}, x)).pixels[0]};
  };
  CHECK(value(-7) == 0);
  CHECK(value(7) == 255);
  CHECK(value(0) == 128);  // 127.5
  CHECK(value(-1 + 2 * 0.4 / 255) == 0);
  CHECK(value(-1 + 2 * 0.6 / 255) == 1);
}

TEST_CASE("image: tensors that are no picture are errors", "[image]") {
  CHECK_THROWS_WITH(images::to_image(at::zeros({1, 3, 4, 4})),
                    ContainsSubstring("expected shape (3, height, width), got [1, 3, 4, 4]"));
  CHECK_THROWS_AS(images::to_image(at::zeros({4, 4, 4})), c10::ValueError);
  CHECK_THROWS_WITH(images::to_image(at::full({3, 2, 2}, NAN)),
                    ContainsSubstring("got NaN or infinity"));
  CHECK_THROWS_WITH(images::to_tensor({}), ContainsSubstring("got an empty one"));
}

TEST_CASE("image: a file that is no picture is named with what it looks like", "[image]") {
  const std::string picture = "picture (JPEG, PNG, WebP, BMP, GIF or TGA), got ";
  CHECK(error_of_content("a.png", "") == picture + "an empty file");
  CHECK(error_of_content("a.png", "a cat\n") == picture + "a text file");
  CHECK(error_of_content("a.tga", "a cat\n") == picture + "a text file");
  CHECK(error_of_content("a.bmp", "BM is how this text begins") == picture + "a text file");
  CHECK(error_of_content("a.jpg", "<!DOCTYPE html><html>") ==
        picture + "a web page; hint: download the picture itself");
  CHECK(error_of_content("a.jpg", "version https://git-lfs.github.com/spec/v1\n") ==
        picture + "a Git LFS pointer; hint: git lfs pull fetches the file");
  CHECK(error_of_content("a.heic", std::string("\0\0\0\x18", 4) + "ftypheic") ==
        picture + "a HEIC picture; hint: convert it to PNG or JPEG first");
  CHECK(error_of_content("a.avif", std::string("\0\0\0\x18", 4) + "ftypavif") ==
        picture + "an AVIF picture; hint: convert it to PNG or JPEG first");
  CHECK(error_of_content("a.tif", std::string("II*\0", 4)) ==
        picture + "a TIFF or raw camera picture; hint: convert it to PNG or JPEG first");
  CHECK(error_of_content("a.svg", "<svg xmlns=''>") ==
        picture + "an SVG drawing; hint: convert it to PNG or JPEG first");
  CHECK(error_of_content("a.pdf", "%PDF-1.7") == picture + "a PDF document");
  CHECK(error_of_content("a.zip", "PK\x03\x04") ==
        picture + "a ZIP archive; hint: unpack it first");
  CHECK(error_of_content("a.mp4", std::string("\0\0\0\x18", 4) + "ftypisom") ==
        picture + "a video");
  CHECK(error_of_content("a.jpg", std::string("\x01\x02\0\x03", 4)) ==
        picture + "a file of unknown format");
}

TEST_CASE("image: a missing file, a folder and an unreadable size are errors", "[image]") {
  const ScratchFolder folder;
  CHECK(load_error(folder.file("none.png")) ==
        "'" + folder.file("none.png") +
            "': expected a readable file, got the error: No such file or directory");
  CHECK(load_error(folder.path().string()) ==
        "'" + folder.path().string() + "': expected a file, got a folder");
  CHECK(load_error("/dev/null") == "'/dev/null': expected a file, got a device or a pipe");
  // A bitmap header that claims 60000 x 60000 pixels.
  std::string huge = bytes_of(kData + "colour.bmp");
  huge.replace(18, 8, std::string("\x60\xEA\0\0\x60\xEA\0\0", 8));
  CHECK(
      error_of_content("huge.bmp", huge) ==
      "whole BMP picture, got a damaged or unusual one: it claims 60000x60000 pixels, the limit is "
      "178956970 in all");
}

TEST_CASE("image: a file larger than any picture is not read, for its mask neither", "[image]") {
  const ScratchFolder folder;
  const std::string path = folder.file("large.png");
  const std::string head = bytes_of(kData + "colour.png").substr(0, 64);
  std::ofstream(path, std::ios::binary) << head;
  std::filesystem::resize_file(path, 70'000'000'000);  // takes no room
  const std::string expected =
      "'" + path + "': expected a picture of at most 1000000000 bytes, got 70000000000";
  CHECK_THROWS_WITH(images::load_image(path), ContainsSubstring(expected));
  CHECK_THROWS_WITH(images::load_alpha(path), ContainsSubstring(expected));
}

TEST_CASE("image: a picture that ends too early is an error in every format", "[image]") {
  for (const std::string name : {"colour.png", "interlaced.png", "colour.jpg", "progressive.jpg",
                                 "cmyk.jpg", "lossy.webp", "lossless.webp"}) {
    const std::string whole = bytes_of(kData + name);
    for (const double share : {0.1, 0.5, 0.95}) {
      INFO(name << " " << share);
      const auto size = static_cast<std::size_t>(static_cast<double>(whole.size()) * share);
      CHECK_THAT(error_of_content(name, whole.substr(0, size)),
                 ContainsSubstring("picture, got a damaged or unusual one: "));
    }
  }
  const std::string png = bytes_of(kData + "colour.png");
  CHECK(error_of_content("a.png", png.substr(0, png.size() / 2)) ==
        "whole PNG picture, got a damaged or unusual one: the file ends too early");
  CHECK(error_of_content("a.jpg", bytes_of(kData + "colour.jpg").substr(0, 900)) ==
        "whole JPEG picture, got a damaged or unusual one: the file ends too early");
}

TEST_CASE("image: damaged bytes never crash the decoders", "[image]") {
  uint32_t random = 1;  // xorshift: the same bytes on every machine
  const auto next = [&random] {
    random ^= random << 13;
    random ^= random >> 17;
    return random ^= random << 5;
  };
  for (const std::string name :
       {"colour.png", "palette_alpha.png", "orientation_6.jpg", "cmyk.jpg", "lossy.webp",
        "lossless.webp", "colour.bmp", "colour.gif", "packed.tga", "colour_key.png"}) {
    const std::string whole = bytes_of(kData + name);
    for (int round = 0; round < 60; ++round) {
      std::vector<uint8_t> bytes(whole.begin(), whole.end());
      for (int i = 0; i < 3; ++i) bytes[next() % bytes.size()] = static_cast<uint8_t>(next());
      try {
        const auto image = images::decode_image(bytes, name);
        CHECK(static_cast<int64_t>(image.pixels.size()) == image.width * image.height * 3);
      } catch (const c10::Error& error) {
        CHECK_THAT(error.what_without_backtrace(),
                   ContainsSubstring("'" + name + "': expected a "));
      }
    }
  }
}

TEST_CASE("image: a large JPEG is decoded at a fraction of its size, near to what it becomes",
          "[image]") {
  const auto divided = [](int64_t size, int64_t divisor) { return (size + divisor - 1) / divisor; };
  for (const std::string name : {"colour", "full_colour", "progressive", "grey"}) {
    const std::string path = kData + name + ".jpg";
    const images::Image whole = images::load_image(path);
    REQUIRE((whole.width == 31 && whole.height == 22));
    for (const auto& [least, divisor] :
         {std::pair(0, 1), std::pair(12, 1), std::pair(11, 2), std::pair(5, 4)}) {
      CAPTURE(name, least);
      const auto loaded = images::load_reduced(path, least);
      CHECK((loaded.width == 31 && loaded.height == 22));
      const int64_t width = divided(31, divisor), height = divided(22, divisor);
      const auto shrunk = images::resize(whole, width, height, images::Filter::kBilinear);
      // libjpeg, as PIL's draft has it, keeps more of the detail than averaging does.
      CHECK(largest_difference(loaded.image, divisor == 1 ? whole : shrunk) <=
            (divisor == 1 ? 0 : 60));
    }
  }
  const auto turned = images::load_reduced(kData + "orientation_6.jpg", 11);
  CHECK((turned.width == 22 && turned.height == 31));
  CHECK((turned.image.width == 11 && turned.image.height == 16));
}

TEST_CASE("image: a folder is sorted into pictures and others", "[image]") {
  const ScratchFolder folder;
  std::filesystem::create_directory(folder.file("more.png"));
  images::save_png(folder.file("b.png"), images::Image(2, 2));
  images::save_png(folder.file("a 猫"), images::Image(2, 2));  // by content, without an extension
  images::save_png(folder.file(".c.png"), images::Image(2, 2));
  write(folder.file("._b.png"), std::string("\0\5\x16\7", 4));
  write(folder.file("b.txt"), "a cat");
  const auto listed = images::list_images(folder.path().string());
  CHECK(listed.images == std::vector<std::string>{folder.file("a 猫"), folder.file("b.png")});
  CHECK(listed.others == std::vector<std::string>{"._b.png", ".c.png", "b.txt", "more.png"});
  CHECK_FALSE(images::is_image_file(folder.file("more.png")));
  CHECK_FALSE(images::is_image_file(folder.file("none.png")));
  CHECK_FALSE(images::is_image_file(folder.file("b.txt")));
}

TEST_CASE("image: a folder with a file that only claims to be a picture is an error", "[image]") {
  const ScratchFolder folder;
  images::save_png(folder.file("a.png"), images::Image(2, 2));
  write(folder.file("b.PNG"), "a cat");
  CHECK_THROWS_WITH(images::list_images(folder.path().string()),
                    ContainsSubstring("'" + folder.file("b.PNG") +
                                      "': expected a picture (JPEG, PNG, "
                                      "WebP, BMP, GIF or TGA), got a text file"));
  CHECK_THROWS_WITH(images::list_images(folder.file("none")),
                    ContainsSubstring("expected a folder with pictures, got no such folder"));
  CHECK_THROWS_WITH(images::list_images(folder.file("a.png")),
                    ContainsSubstring("expected a folder with pictures, got a file"));
}

TEST_CASE("image: a GIF's transparent colour shows and is its mask, whatever the background is",
          "[image]") {
  const ScratchFolder folder;
  for (const char background : {'\0', '\1'}) {
    // Two pixels, red and blue, of which the first one's colour is transparent.
    std::string bytes("GIF89a\2\0\1\0\x81", 11);
    bytes += background;
    bytes += std::string("\0\xFF\0\0\0\0\xFF\0\0\0\0\0\0", 13);
    const std::string control("\x21\xF9\4\1\0\0\0\0", 8);
    const std::string pixels("\x2C\0\0\0\0\2\0\1\0\0\2\2\x44\x0A\0\x3B", 16);
    const auto clear = folder.file("clear.gif"), opaque = folder.file("opaque.gif");
    std::ofstream(clear, std::ios::binary) << bytes + control + pixels;
    std::ofstream(opaque, std::ios::binary) << bytes + pixels;
    // PIL: convert("RGB"), and the fourth channel of convert("RGBA").
    const std::vector<uint8_t> colours{255, 0, 0, 0, 0, 255}, alpha{0, 0, 0, 255, 255, 255};
    CHECK(images::load_image(clear).pixels == colours);
    CHECK(images::load_image(opaque).pixels == colours);
    CHECK(images::has_transparency(clear));
    CHECK_FALSE(images::has_transparency(opaque));
    CHECK(images::load_alpha(clear).pixels == alpha);
    CHECK(images::load_alpha(opaque).empty());
  }
}
