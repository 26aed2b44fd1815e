// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lora_files/readers.h"

namespace lora_files {

/// Something wrong or worth knowing about a file, as a sentence, and what to do about it.
struct Finding {
  std::string what;
  std::string mend;  ///< may be empty
};

/// What `convert_lora --doctor` finds out.
struct Diagnosis {
  std::vector<std::string> families;  ///< kinds of model that it can be for; none: unknown
  std::string trainer;                ///< who wrote it, by its metadata; empty: unknown
  std::vector<std::string> methods, namings;
  int64_t layers = 0, tensors = 0;
  std::string ranks, alphas;      ///< "4", "4 to 16" or "none"
  std::vector<Finding> findings;  ///< what is wrong, the worst first
  std::vector<Verdict> verdicts;  ///< lightlora first
};

/// The file of weights: the path itself, or the one in a folder of PEFT or diffusers.
/// Errors: c10::Error for a folder without one
std::string weights_in(const std::string& path);

/// Examines a LoRA file of any family, or a folder of PEFT. Reads every tensor.
/// Errors: c10::Error for a file that is none of tensors
Diagnosis examine(const std::string& path, bool allow_trailing_bytes = false);

/// For people: what is in it, what is wrong with it, and which programs load how much of it.
void print_diagnosis(const std::string& path, const Diagnosis& diagnosis);
/// The same for programs, as one JSON object.
void print_diagnosis_json(const std::string& path, const Diagnosis& diagnosis);

}  // namespace lora_files
