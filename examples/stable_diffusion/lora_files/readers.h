// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "lora_files/key_names.h"

namespace lora_files {

/// What a program makes of a file.
struct Verdict {
  std::string program;
  int64_t loads = 0;   ///< tensors that it uses, of those of adapters
  bool fails = false;  ///< it ends with an error instead of leaving tensors out
  std::string why;     ///< what it does not use, and the reason; empty if it uses all
  std::string mend;    ///< the format that mends it, for `--to`; empty if none is needed or helps
};

/// A file as far as its readers look at it.
struct Contents {
  std::vector<TensorName> names;
  std::vector<std::string> families;
  bool bundled = false;     ///< with embeddings of textual inversion
  bool configured = false;  ///< PEFT's configuration is beside it
  std::string peft_type;    ///< what that says
};

/// What other programs make of it. The rules for diffusers 0.42.1 and PEFT 0.21.2 were found by
/// running them, and a test does so still; those for ComfyUI, A1111 and sd-scripts by reading their
/// sources.
std::vector<Verdict> verdicts(const Contents& contents);

}  // namespace lora_files
