// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "pipeline/lora.h"

namespace generation {

/// A prompt without its <lora:name:0.8>, and those.
struct TaggedPrompt {
  std::string text;
  std::vector<sd::LoRAChoice> tags;  ///< with the name in place of the path
  std::vector<std::string> unused;   ///< <hypernet:name:1>, which play no part here
};

/// Takes A1111's <lora:name>, <lora:name:weight>, <lora:name:text encoder's:unet's>, also with the
/// weights as te=0.5 and unet=1, <lyco:...> and <hypernet:...> out of a prompt; any other <word>
/// stays, since it may be a learned token.
/// Errors: c10::ValueError for a weight that is no number
TaggedPrompt take_lora_tags(const std::string& prompt);

/// The tag of a file.
std::string lora_tag(const sd::LoRAChoice& choice);

/// The file of a name below `folder`: a .safetensors file or a PEFT folder of this stem, or of this
/// path without its extension.
/// Errors: c10::Error that names close ones if there is none, or all if there are several
std::string find_lora(const std::string& name, const std::string& folder);

/// The file's name without its folder and extension, as tags have it.
std::string lora_stem(const std::string& path);

}  // namespace generation
