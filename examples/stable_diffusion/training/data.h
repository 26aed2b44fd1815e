// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Generator.h>
#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "support/images/image.h"
#include "support/images/resize.h"

// What is trained on: a folder of pictures with their captions, the sizes that they are cut to, and
// the pictures themselves.

namespace training {

/// What happens to a caption each time it is used, as sd-scripts has it.
struct CaptionOptions {
  bool shuffle = false;     ///< the parts between commas come in random order
  int64_t keep_tokens = 0;  ///< but the first ones stay where they are
  double dropout_rate = 0;  ///< share of samples without a caption
  /// Samples of every n-th epoch have none; 0: of no epoch.
  int64_t dropout_every_n_epochs = 0;
  double tag_dropout_rate = 0;  ///< share of the parts that are left out
  std::string prefix, suffix;   ///< with a space between them and the caption

  /// Whether the caption may read otherwise each time.
  bool varies() const { return shuffle || tag_dropout_rate > 0; }
};

/// A caption with what stands before and behind it, and nothing of it left out.
std::string fixed_caption(std::string caption, const CaptionOptions& options);

/// One use of a caption in an epoch, which count from 1. Takes numbers from the generator only for
/// what is left to chance.
std::string process_caption(std::string caption, const CaptionOptions& options,
                            at::Generator& generator, int64_t epoch = 1);

/// A picture to train on, as its folder describes it.
struct PictureFile {
  std::string path;
  std::optional<std::string> caption;  ///< what it shows; none: the run's prompt says it
  int64_t repeats = 1;                 ///< how often it comes in one pass over the data
  /// A picture of what counts, white where the loss does in full and black where it does not; its
  /// red channel is read, as in sd-scripts.
  std::string mask = {};
  CaptionOptions caption_options = {};
  // What is not as the run has it: whether half of its samples are mirrored, whether they are cut out
  // of the middle, and whether its transparency is its mask.
  std::optional<bool> flip = {}, center_crop = {}, alpha_mask = {};
};

/// The text of a file without the byte order mark of Windows' editors.
/// Errors: c10::Error naming the file if it is not UTF-8 or has more than `most` bytes
std::string read_text(const std::string& path, uint64_t most);

/// Gives each picture of the folder `pictures` the mask of its name (without the ending) in the
/// folder `masks`, or in the sub-folder there that is called as the picture's own. Returns a line
/// for masks that belong to no picture.
/// Errors: c10::Error naming a picture that has no mask, and a mask that several would share
std::vector<std::string> add_masks(std::vector<PictureFile>& files, const std::string& pictures,
                                   const std::string& masks);

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
///   its folder, and `text` (or `caption`, or `prompt`); it wins over text files, with a notice.
/// Whatever else lies there is left out with a notice. `extension` is the ending of captions' files
/// in place of the usual ones; of these `first_line` takes the first line alone, as sd-scripts does,
/// with a notice.
/// Errors: c10::Error if the folder is missing or holds no picture, or if metadata.jsonl is
///         malformed or names a picture that is not there
DataFolder read_data_folder(const std::string& folder,
                            const std::optional<std::string>& extension = {},
                            bool first_line = false);

/// How many pictures a folder and its sub-folders `N_name` hold; none if there is no such folder.
int64_t count_pictures(const std::string& folder);

/// The pictures of a folder, after a line on standard output for everything else in it.
/// Errors: as read_data_folder
std::vector<PictureFile> read_pictures(const std::string& folder,
                                       const std::optional<std::string>& extension = {},
                                       bool first_line = false);

void print_notices(const std::vector<std::string>& lines);

/// Width and height of training pictures.
struct Size {
  int64_t width = 0, height = 0;
};

inline bool operator==(Size a, Size b) { return a.width == b.width && a.height == b.height; }
inline bool operator<(Size a, Size b) {
  return a.width != b.width ? a.width < b.width : a.height < b.height;
}

/// Aspect-ratio buckets: pictures keep about their shape, and those of a bucket have one size.
struct BucketOptions {
  int64_t resolution = 512;  ///< a bucket has at most resolution^2 pixels
  int64_t min_size = 256;    ///< shortest side of a bucket
  int64_t max_size = 1024;   ///< longest side of a bucket
  int64_t step = 64;         ///< sides are multiples of it

  /// The usual 256, 1024 and 64 at a resolution of 512, and their like at others.
  static BucketOptions of(int64_t resolution);
};

/// The sizes that kohya's sd-scripts makes from these numbers, sorted.
/// Errors: c10::ValueError if there is none
std::vector<Size> bucket_sizes(const BucketOptions& options);

/// The bucket whose shape (width over height) is nearest to a picture's.
Size nearest_bucket(const std::vector<Size>& buckets, Size picture);

/// How pictures become training samples, as diffusers' DreamBooth script does it: the shorter side
/// is resized to the resolution, then a square is cut out, at random unless `center_crop`. With
/// buckets a picture is resized to cover its bucket, and that is cut out instead of a square.
struct DatasetOptions {
  int64_t resolution = 512;
  bool center_crop = false;
  images::Filter filter = images::Filter::kLanczos;
  bool random_flip = false;  ///< mirror every second sample, at random
  bool alpha_mask = false;   ///< a picture's transparency is its mask, unless it has another
  std::optional<BucketOptions> buckets;
};

/// Which part of its picture a sample is.
struct View {
  int64_t left = 0, top = 0;
  bool flipped = false;
};

/// Pictures, decoded and resized once and kept in memory, as large as samples need them. A JPEG that
/// is several times larger is decoded at a part of its size.
class ImageDataset {
 public:
  /// Errors: c10::Error naming the file if a picture is damaged or has vanished
  ImageDataset(std::vector<PictureFile> files, const DatasetOptions& options);

  int64_t size() const { return static_cast<int64_t>(pictures_.size()); }
  const PictureFile& file(int64_t index) const { return files_.at(static_cast<size_t>(index)); }
  /// What a picture shows: its own caption, or `otherwise`.
  std::string caption(int64_t index, const std::string& otherwise) const {
    return file(index).caption.value_or(otherwise);
  }
  /// Width and height of a picture's samples.
  Size sample_size(int64_t index) const { return sizes_.at(static_cast<size_t>(index)); }
  /// Width and height of a picture's file.
  Size original_size(int64_t index) const { return originals_.at(static_cast<size_t>(index)); }
  /// Samples in one pass: each picture as often as it repeats.
  int64_t samples_per_epoch() const;

  /// A number, in hexadecimal digits, that follows from the pictures' names, repeats, captions,
  /// samples and treatment: two data sets that differ in them differ in it.
  std::string fingerprint() const;

  bool center_crop(int64_t index) const {
    return file(index).center_crop.value_or(options_.center_crop);
  }
  /// Whether half of the samples of a picture are mirrored.
  bool flips(int64_t index) const { return file(index).flip.value_or(options_.random_flip); }
  /// Whether every sample of this picture is the same, apart from being mirrored.
  bool is_fixed(int64_t index) const;
  /// The part of a picture that a sample shows; takes numbers from the generator only for what is
  /// left to chance.
  View draw_view(int64_t index, at::Generator& generator) const;
  /// What SDXL is told about such a sample: height and width of the picture as its file has it, top
  /// and left of the cut in the resized and, if so, mirrored picture, height and width of the
  /// sample.
  std::vector<int64_t> time_ids(int64_t index, const View& view) const;
  /// One sample: (3, height, width) in [-1, 1], fp32 on the CPU.
  torch::Tensor pixels(int64_t index, const View& view) const;
  /// How much each pixel of a sample counts: (1, height, width) in [0, 1]; undefined: all in full.
  torch::Tensor mask(int64_t index, const View& view) const;
  /// pixels(index, draw_view(index, generator))
  torch::Tensor sample(int64_t index, at::Generator& generator) const {
    return pixels(index, draw_view(index, generator));
  }

 private:
  DatasetOptions options_;
  std::vector<PictureFile> files_;
  images::Image cut(const images::Image& picture, int64_t index, const View& view) const;

  std::vector<images::Image> pictures_, masks_;  // an empty mask: all counts
  std::vector<Size> originals_, sizes_;          // of the files, and of the samples
};

/// Takes `share` of the pictures, at least one, out of `files` at random (by seed) and returns
/// them: what a validation loss is measured on. Nothing if share is 0.
/// Errors: c10::ValueError if none would be left to train on
std::vector<PictureFile> split_off(std::vector<PictureFile>& files, double share, uint64_t seed);

}  // namespace training
