// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace training {

/// A picture to train on, as its folder describes it.
struct PictureFile {
  std::string path;
  std::optional<std::string> caption;  ///< what it shows; none: the run's prompt says it
  int64_t repeats = 1;                 ///< how often it comes in one pass over the data
};

/// What a data folder holds.
struct DataFolder {
  std::vector<PictureFile> pictures;  ///< by path
  std::vector<std::string> notices;   ///< one line for each thing that is left out, and why
};

/// Reads a folder of pictures, in any of the layouts that trainers have made common:
/// - pictures side by side;
/// - sub-folders `N_name` (kohya's sd-scripts): their pictures come N times in one pass, and those
///   without a caption of their own have the caption `name`;
/// - a caption in a text file beside the picture, `photo.txt` or `photo.caption` for `photo.jpg`;
/// - captions in `metadata.jsonl` (Hugging Face), one object a line with `file_name`, relative to
///   its folder, and `text` (or `caption`, or `prompt`); it wins over text files.
/// Whatever else lies there is left out with a notice.
/// Errors: c10::Error if the folder is missing or holds no picture, or if metadata.jsonl is
///         malformed or names a picture that is not there
DataFolder read_data_folder(const std::string& folder);

}  // namespace training
