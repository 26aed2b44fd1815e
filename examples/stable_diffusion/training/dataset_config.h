// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "training/data.h"
#include "training/options.h"

namespace training {

/// What a data set's file of sd-scripts' kind says: the pictures of its subsets, and options that it
/// sets for all of them.
struct DatasetConfig {
  std::vector<PictureFile> pictures;
  std::vector<PictureFile> regularization;  ///< of subsets with is_reg: class pictures
  DataOptions data;
  int64_t batch_size = 1;
};

/// Reads sd-scripts' `--dataset_config`: TOML with `[general]`, one `[[datasets]]` and any number of
/// `[[datasets.subsets]]`. What a subset says comes before what its data set says, that before
/// `[general]`, and that before `data` and `batch_size`, which hold the flags.
/// A subset without captions has its class_tokens as the caption of every picture.
/// Errors: c10::Error naming the file and the key for what is not supported, such as color_aug, for
///         values of another type, and for several data sets; those of `read_data_folder`
DatasetConfig read_dataset_config(const std::string& path, const DataOptions& data,
                                  int64_t batch_size);

}  // namespace training
