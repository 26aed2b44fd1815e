// SPDX-License-Identifier: Apache-2.0
#include "training/data.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "support/cli/fmt.h"
#include "support/cli/message.h"
#include "support/files/json_file.h"
#include "support/images/load.h"

namespace training {

namespace {

namespace fs = std::filesystem;

constexpr const char* kMetadata = "metadata.jsonl";
constexpr uint64_t kCaptionBytes = 64'000, kMetadataBytes = 32'000'000;
constexpr int64_t kMostRepeats = 100'000, kMostSamples = 10'000'000;  // of an epoch
constexpr std::array<const char*, 2> kCaptionExtensions = {".txt", ".caption"};

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

// Where a text stops being UTF-8; npos if it does not. Overlong forms and surrogates are let pass.
std::size_t first_wrong_byte(const std::string& text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t length = lead < 0x80   ? 1
                               : lead < 0xC2 ? 0
                               : lead < 0xE0 ? 2
                               : lead < 0xF0 ? 3
                               : lead < 0xF5 ? 4
                                             : 0;
    if (length == 0 || i + length > text.size()) return i;
    for (std::size_t k = 1; k < length; ++k) {
      if ((static_cast<unsigned char>(text[i + k]) & 0xC0U) != 0x80U) return i;
    }
    i += length;
  }
  return std::string::npos;
}

// Takes the byte order mark of Windows' editors off.
// Errors: c10::Error naming the file and its encoding if that is not UTF-8
void check_encoding(std::string& text, const std::string& where) {
  if (text.rfind("\xEF\xBB\xBF", 0) == 0) text.erase(0, 3);
  const bool wide = text.rfind("\xFF\xFE", 0) == 0 || text.rfind("\xFE\xFF", 0) == 0 ||
                    text.find('\0') != std::string::npos;
  TORCH_CHECK(!wide, where, ": expected text in UTF-8, got UTF-16; hint: save it as UTF-8");
  const auto wrong = first_wrong_byte(text);
  TORCH_CHECK(wrong == std::string::npos, where, ": expected text in UTF-8, got another encoding (",
              "byte ", wrong + 1, "), such as Latin-1; hint: save it as UTF-8");
}

std::string read_caption(const fs::path& path) {
  std::string text = lightlora::read_file(path.string(), kCaptionBytes);
  check_encoding(text, "'" + path.string() + "'");
  return one_line(text);
}

// The caption beside a picture, which is then taken off the files that nobody asked for.
std::optional<std::string> caption_beside(const fs::path& picture, std::set<fs::path>& others) {
  for (const char* extension : kCaptionExtensions) {
    fs::path path = picture;
    path.replace_extension(extension);
    if (others.erase(path) > 0) return read_caption(path);
  }
  return std::nullopt;
}

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
    return found->get<std::string>();
  };
  const auto name = text_of("file_name");
  TORCH_CHECK(name, where, ": expected a 'file_name', got none");
  const fs::path path = (folder / *name).lexically_normal();
  const auto inside = path.lexically_relative(folder.lexically_normal());
  TORCH_CHECK(!inside.empty() && *inside.begin() != "..", where,
              ": expected the name of a file in the folder, got '", *name, "'");
  TORCH_CHECK(images::is_image_file(path.string()), where, ": expected a picture '", *name,
              "' in the folder, got ",
              fs::exists(path) ? images::describe_other_file(path.string()) : "no such file");
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
    captions.insert(read_metadata_line(folder, line, where));
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

// The pictures directly in a folder; what else is there goes to `others`.
std::vector<PictureFile> pictures_in(const fs::path& folder, const Captions& captions,
                                     std::set<fs::path>& others) {
  std::vector<PictureFile> pictures;
  for (const auto& path : sorted_entries(folder)) {
    if (is_picture(path)) {
      pictures.push_back({path.string(), std::nullopt, 1});
    } else if (path.filename() != kMetadata) {
      others.insert(path);
    }
  }
  for (auto& picture : pictures) {
    const auto beside = caption_beside(picture.path, others);
    const auto listed = captions.find(fs::path(picture.path).lexically_normal());
    picture.caption = listed == captions.end() ? beside : std::optional(listed->second);
  }
  return pictures;
}

std::string notice(const fs::path& path) {
  const auto name = fmt::format("'{}' in {}", cli::printable(path.filename().string()),
                                cli::printable(path.parent_path().string()));
  if (fs::is_directory(path)) {
    return name + " is a folder and is left out; hint: sub-folders are used if they are called " +
           "N_name, N being how often their pictures come";
  }
  return name + " is left out: it is " + images::describe_other_file(path.string());
}

}  // namespace

int64_t count_pictures(const std::string& folder) {
  if (!fs::is_directory(folder)) return 0;
  const auto directly_in = [](const fs::path& where) {
    const auto entries = sorted_entries(where);
    return std::count_if(entries.begin(), entries.end(), is_picture);
  };
  int64_t count = directly_in(folder);
  for (const auto& path : sorted_entries(folder)) {
    const auto repeats = fs::is_directory(path) ? repeats_of(path) : std::nullopt;
    if (repeats && repeats->first > 0) count += directly_in(path);
  }
  return count;
}

DataFolder read_data_folder(const std::string& folder) {
  TORCH_CHECK(fs::is_directory(folder), "'", folder, "': expected a folder with pictures, got ",
              fs::exists(folder) ? "a file" : "nothing of that name");
  Captions captions;
  read_metadata(folder, captions);
  std::set<fs::path> others;
  DataFolder result;
  result.pictures = pictures_in(folder, captions, others);
  for (const auto& path : std::set<fs::path>(others)) {
    const auto repeats = fs::is_directory(path) ? repeats_of(path) : std::nullopt;
    if (!repeats || repeats->first < 1) continue;
    others.erase(path);
    read_metadata(path, captions);
    for (auto& picture : pictures_in(path, captions, others)) {
      picture.repeats = repeats->first;
      if (!picture.caption && !repeats->second.empty()) picture.caption = repeats->second;
      result.pictures.push_back(std::move(picture));
    }
  }
  int64_t samples = 0;
  for (const auto& picture : result.pictures) samples += picture.repeats;
  TORCH_CHECK(samples <= kMostSamples, "'", folder, "': expected at most ", kMostSamples,
              " pictures with their repetitions, got ", samples);
  for (const auto& path : others) result.notices.push_back(notice(path));
  TORCH_CHECK(!result.pictures.empty(), "'", folder,
              "': expected a folder with pictures, got one without",
              result.notices.empty() ? "" : " (" + result.notices.front() + ")",
              "; hint: put the subject's photos (jpg or png) there");
  return result;
}

std::optional<std::string> read_caption_beside(const std::string& picture,
                                               const std::string& extension) {
  fs::path path = picture;
  path.replace_extension(extension);
  if (!fs::is_regular_file(path)) return std::nullopt;
  return read_caption(path);
}

void add_masks(std::vector<PictureFile>& files, const std::string& folder) {
  TORCH_CHECK(fs::is_directory(folder), "'", folder, "': expected a folder with masks, got ",
              fs::exists(folder) ? "a file" : "nothing of that name",
              "; hint: check --conditioning_data_dir");
  std::map<std::string, std::string> masks;
  for (const auto& path : sorted_entries(folder)) {
    if (is_picture(path)) masks[path.stem().string()] = path.string();
  }
  for (auto& file : files) {
    const auto found = masks.find(fs::path(file.path).stem().string());
    TORCH_CHECK(found != masks.end(), "'", file.path, "': expected a mask of this name in '",
                folder, "', got none");
    file.mask = found->second;
  }
}

std::vector<PictureFile> read_pictures(const std::string& folder) {
  auto data = read_data_folder(folder);
  for (const auto& line : data.notices) fmt::print("notice: {}\n", line);
  return std::move(data.pictures);
}

}  // namespace training
