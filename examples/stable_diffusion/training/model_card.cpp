// SPDX-License-Identifier: Apache-2.0
#include "training/model_card.h"

#include <lightlora/file_io.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

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

}  // namespace

void write_model_card(const std::string& folder, const ModelCard& card) {
  std::ostringstream text;
  text << "---\nbase_model: " << quoted(card.base_model) << "\nlibrary_name: diffusers\n"
       << "instance_prompt: " << quoted(card.prompt) << "\ntags:\n- text-to-image\n- diffusers\n"
       << "- lora\n- dreambooth\n- stable-diffusion\n- lightlora\n---\n\n"
       << "# " << cell(card.title) << "\n\n"
       << "LoRA adapters for `" << card.base_model << "`, trained with lightlora on the prompt `"
       << cell(card.prompt) << "`."
       << (card.trains_text_encoder ? " They adapt the text encoder too." : "") << "\n\n"
       << "## Use\nIn diffusers:\n```python\nfrom diffusers import StableDiffusionPipeline\n\n"
       << "pipe = StableDiffusionPipeline."
       << (std::filesystem::is_regular_file(card.base_model) ? "from_single_file" : "from_pretrained")
       << "(" << quoted(card.base_model) << ")\n"
       << "pipe.load_lora_weights(\".\")  # this folder\n"
       << "image = pipe(" << quoted(card.prompt) << ").images[0]\n```\n"
       << "In lightlora:\n```sh\ntext_to_image --pretrained_model_name_or_path " << card.base_model
       << " --lora lightlora.safetensors --prompt " << quoted(card.prompt)
       << " --output picture.png\n```\n`pytorch_lora_weights.safetensors` also opens in A1111 and "
       << "ComfyUI after `convert_lora --to kohya`.\n";
  if (!card.pictures.empty()) {
    text << "\n## Pictures\n`" << cell(card.picture_prompt) << "`\n\n";
    for (const auto& picture : card.pictures) text << "![" << picture << "](" << picture << ")\n";
  }
  text << "\n## Settings\n| flag | value |\n|---|---|\n";
  for (const auto& [name, value] : card.settings) {
    text << "| `" << name << "` | " << cell(value) << " |\n";
  }
  lightlora::AtomicFile file((std::filesystem::path(folder) / "README.md").string());
  file.write(text.str());
  file.commit();
}

}  // namespace training
