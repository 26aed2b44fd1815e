// SPDX-License-Identifier: Apache-2.0
#include "training/data.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "support/cli/fmt.h"
#include "support/cli/message.h"
#include "support/files/json_file.h"
#include "support/files/limits.h"
#include "support/images/load.h"

namespace training {

namespace {

namespace fs = std::filesystem;

constexpr const char* kMetadata = "metadata.jsonl";
constexpr uint64_t kCaptionBytes = 64'000, kMetadataBytes = 32'000'000;
constexpr int64_t kMostRepeats = 100'000, kMostSamples = 10'000'000;  // of an epoch
const std::vector<std::string>& usual_extensions() {
  static const std::vector<std::string> extensions{".txt", ".caption"};
  return extensions;
}

// Links may lead nowhere, or to themselves.
bool is_folder(const fs::path& path) {
  std::error_code broken;
  return fs::is_directory(path, broken);
}

std::vector<fs::path> sorted_entries(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    entries.push_back(entry->path());
  }
  TORCH_CHECK(!error, "'", folder.string(),
              "': expected a readable folder, got the error: ", error.message());
  std::sort(entries.begin(), entries.end());
  return entries;
}

// One line without white space at its ends; line breaks become spaces.
std::string one_line(const std::string& text) {
  std::istringstream words(text);
  std::string line, word;
  while (words >> word) line += (line.empty() ? "" : " ") + word;
  return line;
}

// Takes the byte order mark of Windows' editors off.
// Errors: c10::Error naming the file and its encoding if that is not UTF-8
void check_encoding(std::string& text, const std::string& where) {
  if (text.rfind("\xEF\xBB\xBF", 0) == 0) text.erase(0, 3);
  const bool wide = text.rfind("\xFF\xFE", 0) == 0 || text.rfind("\xFE\xFF", 0) == 0 ||
                    text.find('\0') != std::string::npos;
  TORCH_CHECK(!wide, where, ": expected text in UTF-8, got UTF-16; hint: save it as UTF-8");
  const auto wrong = cli::first_wrong_byte(text);
  TORCH_CHECK(wrong == std::string::npos, where, ": expected text in UTF-8, got another encoding (",
              "byte ", wrong + 1, "), such as Latin-1; hint: save it as UTF-8");
}

}  // namespace

std::string read_text(const std::string& path, uint64_t most) {
  std::string text = lightlora::read_file(path, most);
  check_encoding(text, "'" + path + "'");
  return text;
}

namespace {

using Captions = std::map<fs::path, std::string>;

// One line of metadata.jsonl as (picture, caption).
std::pair<fs::path, std::string> read_metadata_line(const fs::path& folder, const std::string& line,
                                                    const std::string& where) {
  const auto entry = sd::parse_json(line, where);
  TORCH_CHECK(
      entry.is_object(), where,
      ": expected a JSON object such as {\"file_name\": \"1.png\", \"text\": \"a dog\"}, got ",
      entry.type_name());
  const auto text_of = [&](const char* key) -> std::optional<std::string> {
    const auto found = entry.find(key);
    if (found == entry.end()) return std::nullopt;
    TORCH_CHECK(found->is_string(), where, ": expected text for '", key, "', got ", found->dump());
    const auto text = found->get<std::string>();
    TORCH_CHECK(text.find('\0') == std::string::npos, where, ": expected text for '", key,
                "', got one with a byte of zero");
    return text;
  };
  const auto name = text_of("file_name");
  TORCH_CHECK(name, where, ": expected a 'file_name', got none");
  const fs::path path = (folder / *name).lexically_normal();
  const auto inside = path.lexically_relative(folder.lexically_normal());
  TORCH_CHECK(!inside.empty() && *inside.begin() != "..", where,
              ": expected the name of a file in the folder, got '", *name, "'");
  TORCH_CHECK(
      images::is_image_file(path.string()), where, ": expected a picture '", *name,
      "' in the folder, got ",
      sd::limits::exists(path) ? images::describe_other_file(path.string()) : "no such file");
  for (const char* key : {"text", "caption", "prompt"}) {
    const auto text = text_of(key);
    if (!text) continue;
    TORCH_CHECK(text->size() <= kCaptionBytes, where, ": expected a text of at most ",
                kCaptionBytes, " bytes, got ", text->size());
    return {path, one_line(*text)};
  }
  TORCH_CHECK(false, where, ": expected 'text' beside 'file_name', got none");
}

void read_metadata(const fs::path& folder, Captions& captions) {
  if (!fs::exists(folder / kMetadata)) return;
  std::istringstream file(lightlora::read_file((folder / kMetadata).string(), kMetadataBytes));
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    const auto where = fmt::format("'{}' line {}", (folder / kMetadata).string(), number);
    check_encoding(line, where);
    if (one_line(line).empty()) continue;
    const auto [entry, is_new] = captions.insert(read_metadata_line(folder, line, where));
    TORCH_CHECK(is_new, where, ": expected one line for each picture, got a second one for '",
                entry->first.filename().string(), "'");
  }
}

// N and name of a folder called `N_name`.
std::optional<std::pair<int64_t, std::string>> repeats_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  int64_t repeats = 0;
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data(), end, repeats);
  if (rest == end || rest == name.data() || *rest != '_') return std::nullopt;
  TORCH_CHECK(error == std::errc() && repeats <= kMostRepeats, "'", folder.string(),
              "': expected pictures to come at most ", kMostRepeats, " times, got '", name, "'");
  return std::make_pair(repeats, one_line(std::string(rest + 1, end)));
}

bool is_picture(const fs::path& path) {
  const bool hidden = path.filename().string()[0] == '.';  // macOS keeps "._name.png" files
  return !hidden && images::is_image_file(path.string());
}

// What is known of a folder while it is read.
struct Reading {
  Captions listed;                      // in metadata.jsonl
  std::vector<std::string> extensions;  // of captions beside pictures
  bool first_line = false;              // is all that counts of these
  std::vector<fs::path> cut;            // those that have more
  std::set<fs::path> others;            // what is no picture, and nobody has asked for
  std::set<fs::path> captions;          // taken off these, for another picture of the same name
  std::vector<fs::path> overruled;      // captions beside pictures that are listed
};

// The caption's file beside a picture, which is then taken off the others. As in sd-scripts it is
// that of all pictures of the name, a.jpg as well as a.png.
std::optional<fs::path> caption_beside(const fs::path& picture, Reading& reading) {
  for (const auto& extension : reading.extensions) {
    fs::path path = picture;
    path.replace_extension(extension);
    if (reading.others.erase(path) > 0) reading.captions.insert(path);
    if (reading.captions.count(path) > 0) return path;
  }
  return std::nullopt;
}

std::string read_caption(const fs::path& path, Reading& reading) {
  const auto text = read_text(path.string(), kCaptionBytes);
  const auto end = std::min(text.find_first_of("\r\n"), text.size());
  if (!reading.first_line || one_line(text.substr(end)).empty()) return one_line(text);
  reading.cut.push_back(path);
  return one_line(text.substr(0, end));
}

// The pictures directly in a folder.
std::vector<PictureFile> pictures_in(const fs::path& folder, Reading& reading) {
  std::vector<PictureFile> pictures;
  for (const auto& path : sorted_entries(folder)) {
    if (is_picture(path)) {
      pictures.push_back({path.string(), std::nullopt, 1});
    } else if (path.filename() != kMetadata) {
      reading.others.insert(path);
    }
  }
  for (auto& picture : pictures) {
    const auto beside = caption_beside(picture.path, reading);
    const auto listed = reading.listed.find(fs::path(picture.path).lexically_normal());
    if (listed != reading.listed.end()) {
      picture.caption = listed->second;
      if (beside) reading.overruled.push_back(*beside);
    } else if (beside) {
      picture.caption = read_caption(*beside, reading);
    }
  }
  return pictures;
}

std::string shown(const fs::path& path) {
  return fmt::format("'{}' in {}", cli::printable(path.filename().string()),
                     cli::printable(path.parent_path().string()));
}

std::string overruled_notice(const std::vector<fs::path>& captions) {
  if (captions.size() == 1) {
    return shown(captions.front()) + " is not used: metadata.jsonl has its picture's caption";
  }
  return fmt::format(
      "{} captions beside pictures are not used, such as {}: metadata.jsonl has those pictures' "
      "captions",
      captions.size(), shown(captions.front()));
}

std::string cut_notice(const std::vector<fs::path>& captions) {
  if (captions.size() == 1) return "of " + shown(captions.front()) + " the first line alone counts";
  return fmt::format("of {} captions the first line alone counts, such as {}", captions.size(),
                     shown(captions.front()));
}

// Lines of metadata.jsonl whose pictures are left out.
std::string unused_notice(const Captions& captions) {
  const auto name = shown(captions.begin()->first);
  if (captions.size() == 1) return name + " is listed in metadata.jsonl, but left out";
  return fmt::format("{} pictures are listed in metadata.jsonl, but left out, such as {}",
                     captions.size(), name);
}

std::string notice(const fs::path& folder, const fs::path& path) {
  const auto name = shown(path);
  const auto place = (folder / "").parent_path();  // without a slash at the end
  if (is_folder(path) && path.parent_path() != place) {
    return name + " is a folder in a sub-folder and is left out";
  }
  if (is_folder(path)) {
    return name + " is a folder and is left out; hint: sub-folders are used if they are called " +
           "N_name, N being how often their pictures come, from 1";
  }
  return name + " is left out: it is " + images::describe_other_file(path.string());
}

}  // namespace

int64_t count_pictures(const std::string& folder) {
  if (!is_folder(folder)) return 0;
  const auto directly_in = [](const fs::path& where) {
    const auto entries = sorted_entries(where);
    return std::count_if(entries.begin(), entries.end(), is_picture);
  };
  int64_t count = directly_in(folder);
  for (const auto& path : sorted_entries(folder)) {
    const auto repeats = is_folder(path) ? repeats_of(path) : std::nullopt;
    if (repeats && repeats->first > 0) count += directly_in(path);
  }
  return count;
}

DataFolder read_data_folder(const std::string& folder, const std::optional<std::string>& extension,
                            bool first_line) {
  TORCH_CHECK(fs::is_directory(folder), "'", folder, "': expected a folder with pictures, got ",
              fs::exists(folder) ? "a file" : "nothing of that name");
  Reading reading;
  reading.first_line = first_line;
  reading.extensions = extension ? std::vector<std::string>{*extension} : usual_extensions();
  read_metadata(folder, reading.listed);
  auto& others = reading.others;
  DataFolder result;
  result.pictures = pictures_in(folder, reading);
  for (const auto& path : std::set<fs::path>(others)) {
    const auto repeats = is_folder(path) ? repeats_of(path) : std::nullopt;
    if (!repeats || repeats->first < 1) continue;
    others.erase(path);
    read_metadata(path, reading.listed);
    for (auto& picture : pictures_in(path, reading)) {
      picture.repeats = repeats->first;
      if (!picture.caption && !repeats->second.empty()) picture.caption = repeats->second;
      result.pictures.push_back(std::move(picture));
    }
  }
  int64_t samples = 0;
  for (const auto& picture : result.pictures) samples += picture.repeats;
  TORCH_CHECK(samples <= kMostSamples, "'", folder, "': expected at most ", kMostSamples,
              " pictures with their repetitions, got ", samples);
  for (const auto& path : others) result.notices.push_back(notice(folder, path));
  if (!reading.overruled.empty()) result.notices.push_back(overruled_notice(reading.overruled));
  if (!reading.cut.empty()) result.notices.push_back(cut_notice(reading.cut));
  for (const auto& picture : result.pictures) {
    reading.listed.erase(fs::path(picture.path).lexically_normal());
  }
  if (!reading.listed.empty()) result.notices.push_back(unused_notice(reading.listed));
  TORCH_CHECK(!result.pictures.empty(), "'", folder,
              "': expected a folder with pictures, got one without",
              result.notices.empty() ? "" : " (" + result.notices.front() + ")",
              "; hint: put the subject's photos (jpg or png) there");
  return result;
}

namespace {

// A picture's path in a folder, without the ending.
std::string stem_in(const fs::path& folder, const fs::path& picture) {
  return picture.lexically_normal()
      .lexically_relative(folder.lexically_normal())
      .replace_extension()
      .generic_string();
}

// The masks of a folder and of those sub-folders in which the pictures have theirs.
std::map<std::string, std::string> masks_in(const fs::path& folder,
                                            const std::vector<PictureFile>& files,
                                            const fs::path& pictures) {
  std::set<fs::path> folders{folder};
  for (const auto& file : files) {
    const auto own = folder / fs::path(stem_in(pictures, file.path)).parent_path();
    if (is_folder(own)) folders.insert((own / "").parent_path());
  }
  std::map<std::string, std::string> masks;
  for (const auto& where : folders) {
    for (const auto& path : sorted_entries(where)) {
      if (!is_picture(path)) continue;
      const auto [mask, is_new] = masks.emplace(stem_in(folder, path), path.string());
      TORCH_CHECK(is_new || mask->second == path.string(), "'", path.string(),
                  "': expected one mask of this name, got '", mask->second, "' too");
    }
  }
  return masks;
}

}  // namespace

std::vector<std::string> add_masks(std::vector<PictureFile>& files, const std::string& pictures,
                                   const std::string& masks) {
  TORCH_CHECK(fs::is_directory(masks), "'", masks, "': expected a folder with masks, got ",
              fs::exists(masks) ? "a file" : "nothing of that name",
              "; hint: check --conditioning_data_dir");
  const auto found = masks_in(masks, files, pictures);
  std::map<std::string, std::string> owners;  // masks to pictures
  for (auto& file : files) {
    auto mask = found.find(stem_in(pictures, file.path));
    if (mask == found.end()) mask = found.find(fs::path(file.path).stem().string());
    TORCH_CHECK(mask != found.end(), "'", file.path, "': expected a mask of this name in '", masks,
                "', got none");
    const auto [owner, is_first] = owners.emplace(mask->second, file.path);
    TORCH_CHECK(is_first, "'", mask->second, "': expected the mask of one picture, got that of '",
                owner->second, "' and '", file.path, "'; hint: masks of pictures in sub-folders ",
                "lie in sub-folders of the same names");
    file.mask = mask->second;
  }
  std::vector<std::string> unused;
  for (const auto& [name, path] : found) {
    if (owners.count(path) == 0) unused.push_back(path);
  }
  if (unused.empty()) return {};
  if (unused.size() == 1) return {shown(unused.front()) + " is the mask of no picture"};
  return {
      fmt::format("{} masks are of no picture, such as {}", unused.size(), shown(unused.front()))};
}

void print_notices(const std::vector<std::string>& lines) {
  for (const auto& line : lines) fmt::print("notice: {}\n", line);
}

std::vector<PictureFile> read_pictures(const std::string& folder,
                                       const std::optional<std::string>& extension,
                                       bool first_line) {
  auto data = read_data_folder(folder, extension, first_line);
  print_notices(data.notices);
  return std::move(data.pictures);
}

}  // namespace training
