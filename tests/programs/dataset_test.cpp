// SPDX-License-Identifier: Apache-2.0
#include <fstream>

#include "support.h"
#include "support/images/image.h"
#include "support/images/png.h"
#include "support/images/tensor.h"
#include "training/batches.h"
#include "training/data.h"
#include "training/random.h"

using torch::Tensor;
using namespace training;

namespace {

void write_grey(const std::string& path, int width, int height, int grey = 0) {
  const auto level = static_cast<uint8_t>(grey);
  images::save_png(path, images::Image(width, height, {level, level, level}));
}

// A folder with pictures of the given sizes, each of one grey.
void write_pictures(const ScratchFolder& folder, const std::vector<std::pair<int, int>>& sizes) {
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    write_grey(folder.file(std::to_string(i) + ".png"), sizes[i].first, sizes[i].second,
               static_cast<int>(40 * i));
  }
}

void write_text(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

ImageDataset read_dataset(const ScratchFolder& folder, const DatasetOptions& options) {
  return {read_data_folder(folder.path().string()).pictures, options};
}

DatasetOptions at_resolution(int64_t resolution, bool center_crop = false) {
  DatasetOptions options;
  options.resolution = resolution;
  options.center_crop = center_crop;
  return options;
}

std::string all_notices(const DataFolder& folder) {
  std::string text;
  for (const auto& notice : folder.notices) text += notice + "\n";
  return text;
}

}  // namespace

TEST_CASE("data folder: captions come from text files, metadata.jsonl and N_name", "[data]") {
  const ScratchFolder folder;
  for (const char* name : {"a.png", "b.png", "c.png", "d.png"}) write_grey(folder.file(name), 8, 8);
  write_text(folder.file("a.txt"), "\xEF\xBB\xBF a toy,\n  red \n");
  write_text(folder.file("b.caption"), "a caption");
  write_text(folder.file("c.txt"), "overruled");
  write_text(folder.file("metadata.jsonl"),
             "{\"file_name\": \"c.png\", \"text\": \"from \\\"jsonl\\\"\"}\n\n");
  std::filesystem::create_directory(folder.path() / "3_sks dog");
  write_grey(folder.file("3_sks dog/e.png"), 8, 8);
  write_grey(folder.file("3_sks dog/f.png"), 8, 8);
  write_text(folder.file("3_sks dog/f.txt"), "own");
  const auto data = read_data_folder(folder.path().string());
  REQUIRE(data.pictures.size() == 6);
  const std::vector<std::optional<std::string>> captions{
      "a toy, red", "a caption", "from \"jsonl\"", std::nullopt, "sks dog", "own"};
  for (std::size_t i = 0; i < captions.size(); ++i) {
    INFO(data.pictures[i].path);
    CHECK(data.pictures[i].caption == captions[i]);
    CHECK(data.pictures[i].repeats == (i < 4 ? 1 : 3));
  }
  REQUIRE(data.notices.size() == 1);
  CHECK(data.notices[0] == "'c.txt' in " + folder.path().string() +
                               " is not used: metadata.jsonl has its picture's caption");
  const ImageDataset dataset(data.pictures, at_resolution(8));
  CHECK(dataset.samples_per_epoch() == 10);
  CHECK(dataset.caption(3, "the prompt") == "the prompt");
}

TEST_CASE("data folder: a caption is that of all pictures of its name", "[data]") {
  const ScratchFolder folder;
  write_grey(folder.file("a.png"), 8, 8);
  write_grey(folder.file("a.jpg"), 8, 8);  // told apart by content
  write_text(folder.file("a.txt"), "both");
  const auto data = read_data_folder(folder.path().string());
  REQUIRE(data.pictures.size() == 2);
  for (const auto& picture : data.pictures) CHECK(picture.caption == "both");
  CHECK(data.notices.empty());
}

TEST_CASE("data folder: captions of another ending stand in for the usual ones", "[data]") {
  const ScratchFolder folder;
  write_grey(folder.file("a.png"), 8, 8);
  write_text(folder.file("a.tags"), "red, round");
  CHECK_THAT(all_notices(read_data_folder(folder.path().string())), ContainsSubstring("'a.tags'"));
  auto data = read_data_folder(folder.path().string(), ".tags");
  CHECK(data.notices.empty());
  CHECK(data.pictures.at(0).caption == "red, round");
  write_text(folder.file("a.txt"), "not asked for");
  data = read_data_folder(folder.path().string(), ".tags");
  CHECK(data.pictures.at(0).caption == "red, round");
  CHECK_THAT(all_notices(data), ContainsSubstring("'a.txt'"));
  for (const char* text : {"red, round\nand more\n", "\xEF\xBB\xBFred, round\r\n\r\nmore"}) {
    write_text(folder.file("a.tags"), text);
    data = read_data_folder(folder.path().string(), ".tags", /*first_line=*/true);
    CHECK(data.pictures.at(0).caption == "red, round");
    CHECK_THAT(all_notices(data), ContainsSubstring("of 'a.tags' in") &&
                                      ContainsSubstring("the first line alone counts"));
  }
  write_text(folder.file("a.tags"), "red, round\n\n");
  data = read_data_folder(folder.path().string(), ".tags", /*first_line=*/true);
  CHECK_THAT(all_notices(data), !ContainsSubstring("first line"));
}

TEST_CASE("masks are those of their pictures' paths, and of one picture each", "[data]") {
  const ScratchFolder pictures, masks;
  for (const char* name : {"1_a", "2_b"}) {
    std::filesystem::create_directory(pictures.path() / name);
    write_grey(pictures.file(std::string(name) + "/x.png"), 8, 8);
  }
  write_grey(pictures.file("y.png"), 8, 8);
  for (const char* name : {"x.png", "y.png", "z.png"}) write_grey(masks.file(name), 8, 8, 255);
  auto files = read_data_folder(pictures.path().string()).pictures;
  REQUIRE(files.size() == 3);
  const auto add = [&] {
    return add_masks(files, pictures.path().string(), masks.path().string());
  };
  CHECK_THROWS_WITH(add(), ContainsSubstring("x.png': expected the mask of one picture") &&
                               ContainsSubstring("1_a/x.png' and") &&
                               ContainsSubstring("2_b/x.png'"));
  std::filesystem::create_directory(masks.path() / "2_b");
  write_grey(masks.file("2_b/x.png"), 8, 8, 255);
  const auto notices = add();
  CHECK(files[0].mask == masks.file("y.png"));
  CHECK(files[1].mask == masks.file("x.png"));
  CHECK(files[2].mask == masks.file("2_b/x.png"));
  REQUIRE(notices.size() == 1);
  CHECK_THAT(notices[0],
             ContainsSubstring("'z.png' in") && ContainsSubstring("is the mask of no picture"));
  write_grey(masks.file("y.jpg"), 8, 8, 255);  // told apart by content
  CHECK_THROWS_WITH(add(), ContainsSubstring("expected one mask of this name"));
}

TEST_CASE("data folder: whatever is no picture is left out with a notice", "[data]") {
  const ScratchFolder folder;
  write_grey(folder.file("a.png"), 8, 8);
  write_text(folder.file("notes.txt"), "bought in May");
  write_text(folder.file("b.jpg"), "<html>not found</html>");
  write_text(folder.file(".DS_Store"), "x");
  std::filesystem::create_directory(folder.path() / "more");
  const auto data = read_data_folder(folder.path().string());
  CHECK(data.pictures.size() == 1);
  REQUIRE(data.notices.size() == 4);
  const std::string text = all_notices(data);
  CHECK_THAT(text, ContainsSubstring("'notes.txt' in " + folder.path().string() +
                                     " is left out: it is a text file"));
  CHECK_THAT(text, ContainsSubstring("'b.jpg'") && ContainsSubstring("a web page"));
  CHECK_THAT(text, ContainsSubstring("'.DS_Store'"));
  CHECK_THAT(text, ContainsSubstring("'more'") && ContainsSubstring("N_name"));
  std::filesystem::create_directories(folder.path() / "2_sks/3_deeper");
  write_grey(folder.file("2_sks/b.png"), 8, 8);
  write_grey(folder.file("more/c.png"), 8, 8);
  std::filesystem::create_symlink("loop.png", folder.path() / "loop.png");
  write_text(folder.file("metadata.jsonl"), "{\"file_name\": \"more/c.png\", \"text\": \"x\"}\n");
  const std::string more = all_notices(read_data_folder(folder.path().string() + "/"));
  CHECK_THAT(more, ContainsSubstring("'3_deeper'") && ContainsSubstring("in a sub-folder and is"));
  CHECK_THAT(more, ContainsSubstring("'loop.png'") && ContainsSubstring("a broken link"));
  CHECK_THAT(more,
             ContainsSubstring("'c.png' in") && ContainsSubstring("listed in metadata.jsonl"));
  CHECK_THAT(more, ContainsSubstring("'more'") && ContainsSubstring("N_name"));
}

TEST_CASE("data folder: metadata.jsonl that does not fit is an error with its line", "[data]") {
  const ScratchFolder folder;
  write_grey(folder.file("a.png"), 8, 8);
  const auto fails = [&](const std::string& line, const std::string& message) {
    write_text(folder.file("metadata.jsonl"), "\n" + line + "\n");
    CHECK_THROWS_WITH(read_data_folder(folder.path().string()),
                      ContainsSubstring("metadata.jsonl' line 2") && ContainsSubstring(message));
  };
  fails("{\"file_name\": ", "expected JSON");
  fails("[1]", "got array");
  fails("{\"text\": \"x\"}", "expected a 'file_name'");
  fails("{\"file_name\": \"z.png\", \"text\": \"x\"}", "got no such file");
  fails("{\"file_name\": \"a.png\"}", "expected 'text'");
  fails("{\"file_name\": \"a.png\", \"text\": 3}", "expected text for 'text', got 3");
  fails("{\"file_name\": \"a.png\\u0000b\", \"text\": \"x\"}", "a byte of zero");
  write_text(
      folder.file("metadata.jsonl"),
      "{\"file_name\": \"a.png\", \"text\": \"x\"}\n{\"file_name\": \"./a.png\", \"text\": \"y\"}");
  CHECK_THROWS_WITH(read_data_folder(folder.path().string()),
                    ContainsSubstring("line 2") && ContainsSubstring("a second one for 'a.png'"));
}

TEST_CASE("data folder: a caption that is no UTF-8 by its letter is named", "[data]") {
  const ScratchFolder folder;
  write_grey(folder.file("a.png"), 8, 8);
  // A surrogate, and a slash in more bytes than it needs.
  for (const char* text : {"a \xED\xA0\x80 bear", "a \xE0\x80\xAF bear", "a \xF4\x90\x80\x80"}) {
    write_text(folder.file("a.txt"), text);
    CHECK_THROWS_WITH(read_data_folder(folder.path().string()),
                      ContainsSubstring("a.txt'") && ContainsSubstring("(byte 3)"));
  }
}

TEST_CASE("data folder: one without pictures is an error that says what it holds", "[data]") {
  const ScratchFolder folder;
  CHECK_THROWS_WITH(read_data_folder(folder.path().string()),
                    ContainsSubstring("expected a folder with pictures, got one without"));
  write_text(folder.file("photo.png"), "text");
  CHECK_THROWS_WITH(read_data_folder(folder.path().string()),
                    ContainsSubstring("'photo.png'") && ContainsSubstring("a text file"));
  CHECK_THROWS_WITH(read_data_folder(folder.file("none")), ContainsSubstring("none'"));
}

TEST_CASE("data set: pictures of any size become squares of the resolution", "[dataset]") {
  const ScratchFolder folder;
  write_pictures(folder, {{40, 60}, {60, 40}, {20, 20}});
  const auto dataset = read_dataset(folder, at_resolution(32));
  REQUIRE(dataset.size() == 3);
  CHECK_FALSE(dataset.is_fixed(0));
  CHECK(dataset.is_fixed(2));
  auto generator = generator_for(0, Stream::sample, 0);
  for (int64_t i = 0; i < 3; ++i) {
    const Tensor sample = dataset.sample(i, generator);
    CHECK(sample.sizes() == torch::IntArrayRef({3, 32, 32}));
    CHECK(std::abs(sample.mean().item<double>() - (40.0 * static_cast<double>(i) / 127.5 - 1)) <
          1e-5);
  }
  CHECK(read_dataset(folder, at_resolution(32, /*center_crop=*/true)).is_fixed(0));
}

TEST_CASE("data set: random crops move, centre crops do not, flips mirror", "[dataset]") {
  const ScratchFolder folder;
  images::Image ramp(96, 32);
  for (int64_t y = 0; y < 32; ++y) {
    for (int64_t x = 0; x < 96 * 3; ++x) ramp.row(y)[x] = static_cast<uint8_t>(x / 3);
  }
  images::save_png(folder.file("ramp.png"), ramp);
  auto generator = generator_for(0, Stream::sample, 0);
  const auto left_edges = [&](bool center_crop, bool random_flip) {
    auto options = at_resolution(32, center_crop);
    options.random_flip = random_flip;
    const auto dataset = read_dataset(folder, options);
    std::set<float> edges;
    for (int i = 0; i < 20; ++i) {
      edges.insert(dataset.sample(0, generator)[0][0][0].item<float>());
    }
    return edges;
  };
  CHECK(left_edges(true, false).size() == 1);
  CHECK(left_edges(true, true).size() == 2);
  CHECK(left_edges(false, false).size() > 5);
  auto options = at_resolution(32, true);
  const auto dataset = read_dataset(folder, options);
  View mirrored;
  mirrored.flipped = true;
  CHECK(torch::equal(dataset.pixels(0, mirrored), dataset.pixels(0, {}).flip({2})));
}

TEST_CASE("buckets are those of sd-scripts, and pictures go to the nearest shape", "[buckets]") {
  // make_bucket_resolutions((512, 512), 256, 1024, 64) of kohya-ss/sd-scripts.
  std::vector<Size> expected{{256, 832}, {256, 896}, {256, 960}, {256, 1024}, {320, 704},
                             {320, 768}, {384, 640}, {448, 576}, {512, 512}};
  for (std::size_t i = expected.size() - 1; i-- > 0;) {
    expected.push_back({expected[i].height, expected[i].width});
  }
  std::sort(expected.begin(), expected.end());
  const auto sizes = bucket_sizes(BucketOptions::of(512));
  CHECK((sizes == expected));
  CHECK(nearest_bucket(sizes, {3000, 3000}) == Size{512, 512});
  CHECK(nearest_bucket(sizes, {1000, 800}) == Size{576, 448});
  CHECK(nearest_bucket(sizes, {100, 1000}) == Size{256, 1024});
  const ScratchFolder folder;
  write_pictures(folder, {{40, 80}, {80, 40}, {70, 70}});
  auto options = at_resolution(32);
  options.buckets = BucketOptions::of(32);
  const auto dataset = read_dataset(folder, options);
  auto generator = generator_for(0, Stream::sample, 0);
  CHECK(dataset.sample(0, generator).sizes() == torch::IntArrayRef({3, 40, 24}));
  CHECK(dataset.sample(1, generator).sizes() == torch::IntArrayRef({3, 24, 40}));
  CHECK(dataset.sample(2, generator).sizes() == torch::IntArrayRef({3, 32, 32}));
}

TEST_CASE("data set: SDXL is told a picture's own size, the cut and the bucket",
          "[dataset][sdxl]") {
  const ScratchFolder folder;
  write_pictures(folder, {{40, 80}, {80, 40}});
  using Numbers = std::vector<int64_t>;
  auto options = at_resolution(32);
  // The shorter side becomes 32: pictures of 32x64 and 64x32, of which squares are cut.
  const auto squares = read_dataset(folder, options);
  CHECK(squares.time_ids(0, {0, 5, false}) == Numbers{80, 40, 5, 0, 32, 32});
  CHECK(squares.time_ids(1, {7, 0, false}) == Numbers{40, 80, 0, 7, 32, 32});
  // Pictures that cover their buckets of 24x40 and 40x24 are 24x48 and 48x24.
  options.buckets = BucketOptions::of(32);
  const auto buckets = read_dataset(folder, options);
  CHECK(buckets.time_ids(0, {0, 5, false}) == Numbers{80, 40, 5, 0, 40, 24});
  CHECK(buckets.time_ids(1, {3, 0, false}) == Numbers{40, 80, 0, 3, 24, 40});
  // In the mirrored picture the cut begins where it ended before.
  CHECK(buckets.time_ids(1, {3, 0, true}) == Numbers{40, 80, 0, 48 - 3 - 40, 24, 40});
  options.center_crop = true;
  const auto centred = read_dataset(folder, options);
  auto generator = generator_for(0, Stream::sample, 0);
  CHECK(centred.time_ids(0, centred.draw_view(0, generator)) == Numbers{80, 40, 4, 0, 40, 24});
}

TEST_CASE("batches are full, of one size, and see every picture equally often", "[batches]") {
  const ScratchFolder folder;
  write_pictures(folder, {{40, 80}, {42, 80}, {44, 80}, {80, 40}, {70, 70}});
  auto options = at_resolution(32);
  options.buckets = BucketOptions::of(32);
  auto files = read_data_folder(folder.path().string()).pictures;
  files[4].repeats = 2;
  const ImageDataset dataset(files, options);
  BatchOrder order(dataset, 2, 7, Stream::order);
  std::vector<std::vector<int64_t>> batches;
  std::map<int64_t, int64_t> seen;
  for (int64_t j = 0; j < 18; ++j) {
    batches.push_back(order.batch(j));
    REQUIRE(batches.back().size() == 2);
    CHECK(dataset.sample_size(batches.back()[0]) == dataset.sample_size(batches.back()[1]));
    for (const int64_t picture : batches.back()) ++seen[picture];
  }
  CHECK(seen == std::map<int64_t, int64_t>{{0, 6}, {1, 6}, {2, 6}, {3, 6}, {4, 12}});
  BatchOrder again(dataset, 2, 7, Stream::order);
  for (const int64_t j : {13, 4, 17}) CHECK(again.batch(j) == batches[static_cast<std::size_t>(j)]);
  BatchOrder other(dataset, 2, 8, Stream::order);
  bool differs = false;
  for (int64_t j = 0; j < 18; ++j) {
    differs = differs || other.batch(j) != batches[static_cast<std::size_t>(j)];
  }
  CHECK(differs);
}

TEST_CASE("data sets that treat their pictures in another way are others", "[dataset]") {
  const ScratchFolder folder;
  write_pictures(folder, {{20, 20}});
  auto file = read_data_folder(folder.path().string()).pictures.at(0);
  std::set<std::string> prints;
  const auto add = [&] { prints.insert(ImageDataset({file}, at_resolution(8)).fingerprint()); };
  add();
  add();
  CHECK(prints.size() == 1);
  file.caption_options.shuffle = true;
  add();
  file.caption_options.dropout_every_n_epochs = 2;
  add();
  file.caption_options.prefix = "photo";
  add();
  file.flip = false;
  add();
  file.center_crop = true;
  add();
  CHECK(prints.size() == 6);
}

TEST_CASE("a validation split takes its share and leaves the rest", "[dataset]") {
  std::vector<PictureFile> files(10);
  for (std::size_t i = 0; i < files.size(); ++i) files[i].path = std::to_string(i);
  const auto all = files;
  const auto held = split_off(files, 0.2, 3);
  CHECK(held.size() == 2);
  CHECK(files.size() == 8);
  std::set<std::string> paths;
  for (const auto& file : files) paths.insert(file.path);
  for (const auto& file : held) paths.insert(file.path);
  CHECK(paths.size() == 10);
  CHECK(split_off(files, 0.01, 3).size() == 1);
  CHECK(split_off(files, 0, 3).empty());
  CHECK_THROWS_WITH(split_off(files, 1, 3), ContainsSubstring("--validation_split"));
}

TEST_CASE("data set: all damaged pictures are named at once", "[data]") {
  const ScratchFolder folder;
  for (const char* name : {"a.png", "b.png", "c.png"}) write_grey(folder.file(name), 64, 64);
  for (const char* name : {"a.png", "c.png"}) std::filesystem::resize_file(folder.file(name), 60);
  const auto read = [&] { read_dataset(folder, at_resolution(8)); };
  CHECK_THROWS_WITH(read(), ContainsSubstring("2 pictures cannot be read") &&
                                ContainsSubstring("a.png'") && ContainsSubstring("c.png'") &&
                                !ContainsSubstring("b.png'"));
  write_grey(folder.file("c.png"), 1, 51);
  CHECK_THROWS_WITH(read(), ContainsSubstring("2 pictures cannot be read") &&
                                ContainsSubstring("c.png': expected a picture at most 50 times"));
  std::filesystem::remove(folder.file("c.png"));
  CHECK_THROWS_WITH(read(), ContainsSubstring("a.png': expected a whole PNG picture") &&
                                !ContainsSubstring("cannot be read"));
}
