// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/file_io.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "support/files/disk.h"
#include "training/options.h"

// Folders `checkpoint-N` in a run's output folder. A checkpoint is there completely or not at all,
// whenever the process is killed.

namespace training {

struct Checkpoint {
  int64_t step = 0;
  std::string path;
};

/// The checkpoints of an output folder, by step.
std::vector<Checkpoint> list_checkpoints(const std::string& output_dir);

/// The checkpoint that --resume_from_checkpoint names: the last one for "latest", else the folder
/// of that path, or of that name in the output folder. Step 0 and no path if "latest" finds none.
/// Errors: c10::Error if the folder is no checkpoint
Checkpoint find_checkpoint(const std::string& output_dir, const std::string& wanted);

/// The file of a checkpoint's state.
/// Errors: lightlora::SafetensorsError or c10::Error naming the file if it is damaged
lightlora::SafetensorsFile open_state(const std::string& path);

/// Its tensors.
/// Errors: c10::Error if one of them holds NaN
lightlora::TensorMap load_numbers(const lightlora::SafetensorsFile& file);

/// Lets `write` fill a new folder, and gives it the name checkpoint-<step> when that has succeeded.
/// Errors: what `write` throws; nothing is left of the folder then, and older ones are as they were
void save_checkpoint(const std::string& output_dir, int64_t step,
                     const std::function<void(const std::string& folder)>& write);

/// Removes the oldest of those checkpoints for which `is_own` holds, so that `limit` of them are
/// left.
void prune_checkpoints(const std::string& output_dir, int64_t limit,
                       const std::function<bool(const Checkpoint&)>& is_own);

/// Gives those later than a step for which `is_own` holds names under which nothing takes them for
/// checkpoints of this run: `left-checkpoint-N`, with a number behind it if that is taken. Returns
/// the new names.
std::vector<std::string> leave_checkpoints(const std::string& output_dir, int64_t step,
                                           const std::function<bool(const Checkpoint&)>& is_own);

/// Removes what killed runs left behind, unless the process that writes it is alive.
void remove_unfinished_checkpoints(const std::string& output_dir);

/// The output folder of a run while it is at work: nobody else's meanwhile.
class OutputFolder {
 public:
  /// Makes the folder if it is missing, and finds out now whether files can be written there. A run
  /// that does not go on from an earlier one's checkpoints finds no results of it, or removes them
  /// if the options say so.
  /// Errors: c10::Error if files cannot be written, if another run is at work there, or if there
  ///         are results that the run would mix its own with
  OutputFolder(const RunOptions& options, bool goes_on);

 private:
  std::optional<sd::FolderLock> lock_;  // of the folder itself, so that nothing is left behind
};

}  // namespace training
