// SPDX-License-Identifier: Apache-2.0
#include "training/model_card.h"

#include <lightlora/file_io.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "support/cli/fmt.h"

namespace training {

namespace {

// A string that YAML and Python both take as it is.
std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', /*ensure_ascii=*/false,
                                   nlohmann::json::error_handler_t::replace);
}

// A cell of a Markdown table.
std::string cell(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '|' || c == '`') result += '\\';
    result += c == '\n' ? ' ' : c;
  }
  return result;
}

constexpr const char* kTop = R"(---
base_model: {quoted_model}
library_name: diffusers
instance_prompt: {quoted_prompt}
tags:
- text-to-image
- diffusers
- lora
- dreambooth
- stable-diffusion{xl}
- lightlora
---

# {title}

LoRA adapters for `{model}`, trained with lightlora on the prompt `{prompt}`.{also}

## Use
In diffusers:
```python
from diffusers import {pipeline}

pipe = {pipeline}.{load}({quoted_model})
pipe.load_lora_weights(".")  # this folder
image = pipe({quoted_prompt}).images[0]
```
In lightlora:
{fence}sh
{command}
{fence}
`pytorch_lora_weights.safetensors` also opens in A1111 and ComfyUI after `convert_lora --to kohya`.
)";

}  // namespace

void write_model_card(const std::string& folder, const ModelCard& card) {
  const bool is_file = std::filesystem::is_regular_file(card.base_model);
  const char* also =
      card.is_sdxl ? " They adapt the text encoders too." : " They adapt the text encoder too.";
  auto text = fmt::format(
      kTop, fmt::arg("model", card.base_model), fmt::arg("quoted_model", quoted(card.base_model)),
      fmt::arg("prompt", cell(card.prompt)), fmt::arg("quoted_prompt", quoted(card.prompt)),
      fmt::arg("title", cell(card.title)), fmt::arg("command", card.command),
      fmt::arg("fence", card.command.find("```") == std::string::npos ? "```" : "~~~~"),
      fmt::arg("also", card.trains_text_encoder ? also : ""),
      fmt::arg("xl", card.is_sdxl ? "-xl" : ""),
      fmt::arg("pipeline", card.is_sdxl ? "StableDiffusionXLPipeline" : "StableDiffusionPipeline"),
      fmt::arg("load", is_file ? "from_single_file" : "from_pretrained"));
  if (!card.pictures.empty()) {
    text += fmt::format("\n## Pictures\n`{}`\n\n", cell(card.picture_prompt));
    for (const auto& picture : card.pictures) text += fmt::format("![{0}]({0})\n", picture);
  }
  text +=
      "\n## Settings\nThose that are not the program's defaults; `config.toml` has all of "
      "them and repeats the run.\n\n| flag | value |\n|---|---|\n";
  for (const auto& [name, value] : card.settings) {
    text += fmt::format("| `{}` | {} |\n", name, cell(value));
  }
  lightlora::AtomicFile file((std::filesystem::path(folder) / "README.md").string());
  file.write(text);
  file.commit();
}

}  // namespace training
