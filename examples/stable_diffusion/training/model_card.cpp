// SPDX-License-Identifier: Apache-2.0
#include "training/model_card.h"

#include <lightlora/file_io.h>

#include <filesystem>
#include <map>
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
{tags}- stable-diffusion{xl}
- lightlora
---

# {title}

{about}

## Use
In diffusers:
```python
{code}```
In lightlora:
{fence}sh
{command}
{fence}
{further})";

// What a pipeline of diffusers reads a learned word with.
std::string word_code(const CardWord& word, bool is_sdxl) {
  const auto file = quoted(word.file), token = quoted(word.token);
  if (word.layerwise) return "# " + file + " is a layer-wise word, which only lightlora reads.\n";
  if (!is_sdxl) return fmt::format("pipe.load_textual_inversion({}, token={})\n", file, token);
  std::string code;
  for (const auto& [key, number] : {std::pair("clip_l", ""), std::pair("clip_g", "_2")}) {
    code += fmt::format(
        "pipe.load_textual_inversion(load_file({0})[\"{1}\"], token={2},\n"
        "    text_encoder=pipe.text_encoder{3}, tokenizer=pipe.tokenizer{3})\n",
        file, key, token, number);
  }
  return code;
}

// Draws with the files beside the card.
std::string diffusers_code(const ModelCard& card) {
  const bool is_file = std::filesystem::is_regular_file(card.base_model);
  const char* pipeline = card.is_sdxl ? "StableDiffusionXLPipeline" : "StableDiffusionPipeline";
  std::string code = fmt::format("from diffusers import {}\n", pipeline);
  if (card.is_sdxl && !card.words.empty()) code += "from safetensors.torch import load_file\n";
  code += fmt::format("\npipe = {}.{}({})\n", pipeline,
                      is_file ? "from_single_file" : "from_pretrained", quoted(card.base_model));
  if (card.kind == ModelCard::Kind::lora) {
    code += "pipe.load_lora_weights(\".\")  # this folder\n";
  }
  for (const auto& word : card.words) code += word_code(word, card.is_sdxl);
  const auto skip = card.clip_skip > 0 ? fmt::format(", clip_skip={}", card.clip_skip) : "";
  return code + fmt::format("image = pipe({}{}).images[0]\n", quoted(card.prompt), skip);
}

std::string about(const ModelCard& card) {
  if (card.kind == ModelCard::Kind::word) {
    return fmt::format("A word for `{}`, learned with lightlora: `{}`.", card.base_model,
                       cell(card.words.empty() ? card.prompt : card.words.front().token));
  }
  const char* also =
      card.is_sdxl ? " They adapt the text encoders too." : " They adapt the text encoder too.";
  return fmt::format("LoRA adapters for `{}`, trained with lightlora on the prompt `{}`.{}",
                     card.base_model, cell(card.prompt), card.trains_text_encoder ? also : "");
}

}  // namespace

std::vector<std::pair<std::string, std::string>> unusual_settings(
    const std::vector<cli::Setting>& settings, const std::vector<cli::Setting>& usual) {
  std::map<std::string, std::string> known;
  for (const auto& setting : usual) known[setting.name] = setting.text();
  std::vector<std::pair<std::string, std::string>> result;
  for (const auto& setting : settings) {
    const auto found = known.find(setting.name);
    if (found != known.end() && found->second == setting.text()) continue;
    result.emplace_back(setting.name, setting.text());
  }
  return result;
}

void write_model_card(const std::string& folder, const ModelCard& card) {
  const bool lora = card.kind == ModelCard::Kind::lora;
  auto text = fmt::format(
      kTop, fmt::arg("quoted_model", quoted(card.base_model)),
      fmt::arg("quoted_prompt", quoted(card.prompt)), fmt::arg("title", cell(card.title)),
      fmt::arg("tags", lora ? "- lora\n- dreambooth\n" : "- textual_inversion\n"),
      fmt::arg("about", about(card)), fmt::arg("code", diffusers_code(card)),
      fmt::arg("command", card.command),
      fmt::arg("fence", card.command.find("```") == std::string::npos ? "```" : "~~~~"),
      fmt::arg("xl", card.is_sdxl ? "-xl" : ""),
      fmt::arg("further", lora ? "`pytorch_lora_weights.safetensors` also opens in A1111 and "
                                 "ComfyUI after `convert_lora --to kohya`.\n"
                               : ""));
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
