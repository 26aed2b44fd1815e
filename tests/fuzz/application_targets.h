// SPDX-License-Identifier: Apache-2.0
// What the fuzzers check of the files that the application reads: each is read or refused with one
// line. An input becomes a file in memory, since that is what the readers open.
#pragma once

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>
#include <lightlora/files.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "generation/parameters.h"
#include "lora_files/doctor.h"
#include "lora_files/inspect.h"
#include "lora_files/translate.h"
#include "models/unet.h"
#include "models/vae.h"
#include "research/pretraining/emoji.h"
#include "support/cli/config.h"
#include "support/cli/message.h"
#include "support/files/json_file.h"
#include "support/files/limits.h"
#include "support/images/load.h"
#include "support/images/png.h"
#include "targets.h"
#include "text/prompt.h"
#include "text/tokenizer.h"
#include "training/data.h"
#include "training/validation.h"

namespace fuzz {

/// A folder in memory for as long as the process runs.
inline const std::filesystem::path& scratch() {
  static const struct Folder {
    Folder() : path("/dev/shm/lightlora-fuzz-" + std::to_string(getpid())) {
      std::filesystem::create_directories(path);
    }
    ~Folder() { std::filesystem::remove_all(path); }
    std::filesystem::path path;
  } folder;
  return folder.path;
}

inline std::string write(const std::string& name, std::string_view bytes) {
  const auto path = scratch() / name;
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return path.string();
}

/// The parts of an input between zero bytes, as many as there are names.
inline void write_parts(const std::vector<std::string>& names, std::string_view bytes) {
  for (const auto& name : names) {
    const auto end = bytes.find('\0');
    const auto part = bytes.substr(0, end);
    if (part.empty()) {
      std::filesystem::remove(scratch() / name);
    } else {
      write(name, part);
    }
    bytes = end == bytes.npos ? std::string_view() : bytes.substr(end + 1);
  }
}

/// Whether a reader takes its input; what it throws is one line to the user.
/// Errors: std::logic_error if a promise is broken
template <typename Read>
bool reads(const Read& read) {
  const auto check = [](const std::string& message) {
    const std::string line = cli::message_line(message);
    demand(is_one_line(line) && line.size() < 2000, "an error message is one line of UTF-8");
    return false;
  };
  try {
    read();
    return true;
  } catch (const c10::Error& error) {
    return check(error.what_without_backtrace());
  } catch (const std::invalid_argument& error) {  // of the command line
    return check(error.what());
  }
}

// Each says whether the readers take an input.
// Errors: std::logic_error if a promise is broken

/// The files of a tokenizer, with zero bytes between them.
inline bool tokenizer(std::string_view input) {
  write_parts(
      {"text/tokenizer_config.json", "text/vocab.json", "text/merges.txt", "text/added_tokens.json",
       "text/tokenizer.json", "text/special_tokens_map.json", "text/clip_merges.txt.gz"},
      input);
  return reads([] {
    const sd::Tokenizer tokenizer((scratch() / "text").string());
    const auto ids = tokenizer.tokenize("a (teddy bear:1.2), [x] <w1>aaaa");
    demand(ids.size() < 1000, "a short text has few tokens");
    for (const auto id : ids) demand(id >= 0 && id < tokenizer.size(), "ids are known");
    sd::prompt_chunks(tokenizer, "a (teddy bear:1.2), [x] BREAK b", sd::PromptSyntax::a1111);
  });
}

/// The configurations of a model's parts.
inline bool model_config(std::string_view input) {
  const auto path = write("config.json", input);
  return reads([&] {
    const auto config = sd::read_json_file(path);
    reads([&] {
      const auto unet = sd::UNet2DConditionModelOptions::from_json(config, path);
      for (const auto layers : unet.layers_per_block()) {
        demand(layers >= 1 && layers <= sd::limits::kBlockLayers, "blocks are of a size");
      }
    });
    reads([&] {
      const auto vae = sd::AutoencoderKLOptions::from_json(config, path);
      demand(vae.block_out_channels().size() <= size_t{sd::limits::kLevels}, "levels are few");
    });
  });
}

/// Pictures of every format, and the texts of a PNG.
inline bool picture(std::string_view input) {
  const auto path = write("picture.tga", input);
  const bool read =
      reads([&] { demand(!images::load_image(path).empty(), "a picture has pixels"); });
  reads([&] {
    for (const auto& [key, text] : images::read_png_text(path)) {
      demand(!key.empty() && text.size() <= 8'000'000, "texts are of a size");
    }
  });
  return read;
}

/// Configuration files of flags (TOML).
inline bool settings(std::string_view input) {
  const auto path = write("config.toml", input);
  return reads([&] {
    for (const auto& setting : cli::read_config(path)) {
      demand(setting.kind == cli::ValueKind::list || setting.values.size() == 1,
             "a setting has a value");
    }
  });
}

/// What lies beside pictures to learn from: metadata.jsonl and captions.
inline bool data_folder(std::string_view input) {
  write("data/1.png", "\x89PNG\r\n\x1A\n");
  write_parts({"data/metadata.jsonl", "data/1.txt", "data/notes"}, input);
  return reads([] {
    const auto found = training::read_data_folder((scratch() / "data").string());
    demand(found.pictures.size() == 1, "the picture is found");
    const auto& caption = found.pictures.front().caption;
    demand(!caption || caption->find('\n') == caption->npos, "a caption is one line");
  });
}

/// What a data set is made of: Unicode's list of emoji.
inline bool emoji_list(std::string_view input) {
  const auto path = write("emoji.txt", input);
  return reads([&] {
    for (const auto& emoji : pretraining::read_emoji_names(path)) {
      demand(emoji.code_point <= 0x10FFFF && !emoji.name.empty(), "emoji have names");
    }
  });
}

/// Lists of prompts to sample, in all three forms.
inline bool training_lists(std::string_view input) {
  bool read = false;
  for (const char* name : {"prompts.txt", "prompts.json", "prompts.toml"}) {
    const auto path = write(name, input);
    read |= reads([&] {
      for (const auto& prompt : training::read_sample_prompts(path, /*seed=*/1)) {
        demand(!prompt.width || *prompt.width > 0, "sizes are positive");
      }
    });
  }
  return read;
}

/// The settings in a picture, as A1111 writes them.
inline bool parameters(std::string_view input) {
  return reads([&] {
    const auto found = generation::parse_parameters(std::string(input), "picture.png");
    const auto again = generation::parse_parameters(found.text(), "picture.png");
    demand(again.prompt == found.prompt && again.negative_prompt == found.negative_prompt &&
               again.fields == found.fields,
           "what is written is read as it was");
    if (const auto* files = found.find("LoRA files")) generation::files_in_list(*files);
  });
}

/// A LoRA file of any family, for the doctor and --inspect, which print to the standard output.
inline bool doctor(std::string_view input) {
  const auto path = write("lora.safetensors", input);
  reads([&] {
    const auto contents = lightlora::read_adapters(path);
    lora_files::print_contents(path, contents);
    lora_files::print_json(path, contents);
  });
  return reads([&] {
    const auto diagnosis = lora_files::examine(path);
    lora_files::print_diagnosis(path, diagnosis);
    lora_files::print_diagnosis_json(path, diagnosis);
    const bool any = lora_files::print_names(path, diagnosis.families, /*trailing=*/false, false);
    demand(any == lora_files::print_names(path, diagnosis.families, false, /*json=*/true),
           "text and JSON show the same");
    demand(!diagnosis.verdicts.empty() || !diagnosis.findings.empty(),
           "every program has a verdict, or the file is no LoRA");
    demand(diagnosis.layers <= diagnosis.tensors, "layers have tensors");
  });
}

/// A LoRA file of a transformer model: what is read is written in every format that can hold it.
inline bool transformer_lora(std::string_view input) {
  const auto path = write("transformer.safetensors", input);
  return reads([&] {
    const auto file = lora_files::read_transformer(path, {"diffusers", "", false, false});
    TORCH_CHECK(file, "no LoRA of a transformer model");
    demand(file->tensors >= static_cast<int64_t>(file->layers.size()), "layers have tensors");
    for (const auto& format : lora_files::transformer_formats()) {
      reads([&] {
        for (const auto& [component, tensors] : lora_files::tensors_of(*file, format, at::kFloat)) {
          demand(!tensors.empty() && component.empty() == (format != "peft"),
                 "PEFT's format alone has components");
        }
      });
    }
  });
}

}  // namespace fuzz
