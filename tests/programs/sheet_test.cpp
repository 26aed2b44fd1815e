// SPDX-License-Identifier: Apache-2.0
#include "support/images/sheet.h"

#include "support.h"
#include "support/images/text.h"

namespace {

const images::Colour kRed = {200, 0, 0}, kBlue = {0, 0, 200};

int64_t count(const images::Image& image, images::Colour colour) {
  int64_t result = 0;
  for (std::size_t i = 0; i < image.pixels.size(); i += 3) {
    result +=
        std::equal(colour.begin(), colour.end(), image.pixels.begin() + static_cast<int64_t>(i));
  }
  return result;
}

int64_t dark_pixels(const images::Image& image) {
  int64_t result = 0;
  for (std::size_t i = 0; i < image.pixels.size(); i += 3) result += image.pixels[i] < 100;
  return result;
}

}  // namespace

TEST_CASE("sheet: small pictures are enlarged by one whole factor, large ones keep their pixels",
          "[sheet]") {
  const images::Image red(64, 64, kRed), blue(64, 32, kBlue);
  const auto sheet = images::draw_sheet({"", {}, {}, {{red, blue}}});
  CHECK(count(sheet, kRed) == 64 * 64 * 9);
  CHECK(count(sheet, kBlue) == 64 * 32 * 9);
  const auto large = images::draw_sheet({"", {}, {}, {{images::Image(160, 160, kRed)}}});
  CHECK(count(large, kRed) == 160 * 160);
  // Margins of 24 pixels and nothing else.
  CHECK(large.width == 160 + 48);
  CHECK(large.height == 160 + 48);
}

TEST_CASE("sheet: pictures stand in their row and column", "[sheet]") {
  const images::Image red(160, 160, kRed), blue(160, 160, kBlue);
  const auto sheet =
      images::draw_sheet({"", {}, {}, {{red, images::Image()}, {red, blue}, {blue}}});
  const auto at = [&](int64_t row, int64_t column) {
    const uint8_t* pixel = sheet.row(24 + row * 172 + 80) + (24 + column * 172 + 80) * 3;
    return images::Colour{pixel[0], pixel[1], pixel[2]};
  };
  CHECK(at(0, 0) == kRed);
  CHECK(at(1, 0) == kRed);
  CHECK(at(1, 1) == kBlue);
  CHECK(at(2, 0) == kBlue);
  CHECK(at(0, 1)[0] > 230);  // blank
  CHECK(at(2, 1)[0] > 230);
}

TEST_CASE("sheet: labels and title take room of their own and are drawn", "[sheet]") {
  const images::Image red(160, 160, kRed);
  const images::Sheet plain = {"", {}, {}, {{red, red}}};
  images::Sheet labelled = plain;
  labelled.title = "Before and after";
  labelled.column_labels = {"base", "LightLoRA"};
  labelled.row_labels = {"a sks bear on a blue background, seen from far away"};
  const auto a = images::draw_sheet(plain), b = images::draw_sheet(labelled);
  CHECK(b.width > a.width + 100);
  CHECK(b.height > a.height + 40);
  CHECK(count(b, kRed) == count(a, kRed));
  CHECK(dark_pixels(b) > 1000);
  CHECK(dark_pixels(a) == 0);
}

TEST_CASE("sheet: a long title on a small sheet stays inside it", "[sheet]") {
  images::Sheet sheet = {"", {}, {}, {{images::Image(64, 64, kRed)}}};
  const auto plain = images::draw_sheet(sheet);
  for (int i = 0; i < 30; ++i) sheet.title += "a title ";
  const auto titled = images::draw_sheet(sheet);
  CHECK(titled.width <= 48 + 481);
  CHECK(titled.height > plain.height + 100);
  for (int64_t y = 0; y < titled.height; ++y) CHECK(titled.row(y)[(titled.width - 4) * 3] > 200);
}

TEST_CASE("sheet: no picture or too few labels are errors", "[sheet]") {
  const images::Image red(8, 8, kRed);
  CHECK_THROWS_WITH(images::draw_sheet({}),
                    ContainsSubstring("expected at least one picture, got none"));
  CHECK_THROWS_WITH(images::draw_sheet({"", {}, {}, {{images::Image()}}}),
                    ContainsSubstring("expected at least one picture"));
  CHECK_THROWS_WITH(images::draw_sheet({"", {"a"}, {}, {{red, red}}}),
                    ContainsSubstring("expected labels for 2 columns and 1 rows, got 1 and 0"));
  CHECK_THROWS_AS(images::draw_sheet({"", {}, {"a", "b"}, {{red}}}), c10::ValueError);
}

TEST_CASE(
    "sheet: letters lose their marks, every other character outside ASCII is one question mark",
    "[sheet]") {
  CHECK(images::printable("a café, 猫 🐈\n\tz\x01") == "a cafe, ? ?  z?");
  CHECK(images::printable("a large sks piñata…") == "a large sks pinata...");
  CHECK(images::printable("\xFF!") == "?!");
}

TEST_CASE("sheet: text is broken at spaces, and inside a word only if it is too long", "[sheet]") {
  const int64_t width = images::text_width("a red apple", 2);
  CHECK(images::wrap_text("a red apple on a plate", width, 2) ==
        std::vector<std::string>{"a red apple", "on a plate"});
  CHECK(images::wrap_text("", width, 2).empty());
  std::string joined;
  for (const auto& line : images::wrap_text("x " + std::string(60, 'm'), width, 2)) {
    CHECK(images::text_width(line, 2) <= width);
    joined += line;
  }
  CHECK(joined == "x" + std::string(60, 'm'));
  // Narrower than any letter: one letter per line rather than no end.
  CHECK(images::wrap_text("ab", 1, 2) == std::vector<std::string>{"a", "b"});
}

TEST_CASE("sheet: every printable character but the space leaves a mark inside its line",
          "[sheet]") {
  for (char c = ' '; c <= '~'; ++c) {
    INFO(c);
    images::Image image(60, 60, {255, 255, 255});
    images::draw_text(image, std::string(1, c), 10, 10, 2, {0, 0, 0});
    const int64_t marks = dark_pixels(image);
    CHECK((marks > 0) == (c != ' '));
    images::fill(image, 10, 10, images::text_width(std::string(1, c), 2), images::line_height(2),
                 {255, 255, 255});
    CHECK(dark_pixels(image) == 0);
  }
  images::Image image(4, 4);
  images::draw_text(image, "far outside", -20, -5, 3, kRed);  // clipped
}
