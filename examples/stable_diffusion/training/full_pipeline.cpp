// SPDX-License-Identifier: Apache-2.0
#include <lightlora/file_io.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "support/cli/fmt.h"
#include "support/files/json_file.h"
#include "support/files/outputs.h"
#include "training/inversion.h"

namespace training {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

using Ids = std::map<std::string, int64_t>;  // of the tokens that the word stands for

void write_json(const fs::path& path, const json& value) {
  lightlora::AtomicFile file(path.string());
  file.write(value.dump(2) + "\n");
  file.commit();
}

// What a link points to, as a file of its own.
void copy_whole(const fs::path& from, const fs::path& to) {
  std::ifstream file(from, std::ios::binary);
  lightlora::AtomicFile copy(to.string());
  std::vector<char> part(1 << 20);
  while (file.read(part.data(), static_cast<std::streamsize>(part.size())), file.gcount() > 0) {
    copy.write({part.data(), static_cast<size_t>(file.gcount())});
  }
  TORCH_CHECK(file.eof(), "'", from.string(), "': expected a readable file, got '",
              std::strerror(errno), "'");
  copy.commit();
}

// Names as they stand in the folder: where links lead to plays no part in where a copy goes. A model
// has its parts and no further folders, so few levels are enough, also for links that turn in a
// circle.
void copy_part(const fs::path& from, const fs::path& to, int levels = 4) {
  sd::make_folder(to.string());
  for (const auto& entry : fs::directory_iterator(from)) {
    const fs::path target = to / entry.path().filename();
    if (entry.is_regular_file()) copy_whole(entry.path(), target);
    if (entry.is_directory() && levels > 0) copy_part(entry.path(), target, levels - 1);
  }
}

// How much copies of parts may come to. A link in a stranger's model may lead to a whole disk.
struct Amount {
  uintmax_t bytes = 0;
  int64_t files = 0;

  void add(const fs::path& part, int levels = 4) {
    constexpr uintmax_t kMostBytes = 64'000'000'000;
    constexpr int64_t kMostFiles = 10'000;
    for (const auto& entry : fs::directory_iterator(part)) {
      if (entry.is_regular_file()) bytes += entry.file_size();
      ++files;
      TORCH_CHECK(bytes <= kMostBytes && files <= kMostFiles, "'", part.string(),
                  "': expected parts of a model of at most ", kMostBytes, " bytes in ", kMostFiles,
                  " files to copy, got more; hint: is there a link in it that leads elsewhere?");
      if (entry.is_directory() && levels > 0) add(entry.path(), levels - 1);
    }
  }
};

// The parts that the model's index names, besides those that change.
std::vector<std::string> kept_parts(const fs::path& model) {
  const std::string path = (model / "model_index.json").string();
  std::vector<std::string> parts;
  const json index = sd::read_json_file(path);  // `items` does not keep what it goes through
  for (const auto& [part, classes] : index.items()) {
    if (!part.empty() && part[0] == '_') continue;
    lightlora::path_component(part, path);
    if (part.rfind("text_encoder", 0) == 0 || part.rfind("tokenizer", 0) == 0) continue;
    if (fs::is_directory(model / part)) parts.push_back(part);
  }
  return parts;
}

json listed(const std::string& token) {
  return {{"content", token}, {"single_word", false}, {"lstrip", false},
          {"rstrip", false},  {"normalized", true},   {"special", false}};
}

// Each of the files that may list added tokens.
void save_tokenizer(const fs::path& from, const fs::path& to, const Ids& ids) {
  copy_part(from, to);
  json names = json::object();
  if (fs::exists(to / "added_tokens.json")) {
    names = sd::read_json_file((to / "added_tokens.json").string());
  }
  for (const auto& [token, id] : ids) names[token] = id;
  write_json(to / "added_tokens.json", names);
  if (const auto path = to / "tokenizer.json"; fs::exists(path)) {
    json file = sd::read_json_file(path.string());
    for (const auto& [token, id] : ids) {
      file["added_tokens"].push_back(listed(token));
      file["added_tokens"].back()["id"] = id;
    }
    write_json(path, file);
  }
  if (const auto path = to / "tokenizer_config.json"; fs::exists(path)) {
    json config = sd::read_json_file(path.string());
    if (!config.contains("added_tokens_decoder")) return;  // the list would have to be complete
    for (const auto& [token, id] : ids) {
      config["added_tokens_decoder"][fmt::to_string(id)] = listed(token);
    }
    write_json(path, config);
  }
}

void save_text_encoder(const sd::StableDiffusion& pipeline, size_t encoder,
                       const at::Tensor& vectors, const std::vector<int64_t>& ids,
                       const fs::path& to) {
  lightlora::TensorMap tensors;
  for (const auto& item : pipeline.text_encoder(encoder)->named_parameters()) {
    tensors[item.key()] = item.value().detach().cpu();
  }
  auto& table = tensors.at("text_model.embeddings.token_embedding.weight");
  table = table.index_copy(0, at::tensor(ids, at::kLong), vectors.to(table.scalar_type()));
  json config =
      sd::read_json_file((fs::path(pipeline.folder()) / to.filename() / "config.json").string());
  config["vocab_size"] = table.size(0);
  sd::make_folder(to.string());
  lightlora::save_safetensors((to / "model.safetensors").string(), tensors, {{"format", "pt"}});
  write_json(to / "config.json", config);
}

}  // namespace

void check_full_pipeline(const std::string& model, bool layerwise, const std::string& folder) {
  TORCH_CHECK_VALUE(fs::is_directory(model),
                    "--save_as_full_pipeline: expected a model in diffusers "
                    "layout, got the file '",
                    model,
                    "'; hint: leave it out and draw with "
                    "--learned_embeds");
  TORCH_CHECK_VALUE(!layerwise,
                    "--save_as_full_pipeline: expected a plain word, since a text encoder "
                    "has one vector for each token, got --layerwise");
  TORCH_CHECK_VALUE(!fs::exists(folder) || !fs::equivalent(model, folder),
                    "--output_dir: expected ", "another folder than the model's own, got '", folder,
                    "'");
  const auto inside = fs::weakly_canonical(folder).lexically_relative(fs::weakly_canonical(model));
  TORCH_CHECK_VALUE(inside.empty() || *inside.begin() == "..", "--output_dir: expected a folder ",
                    "outside of the model's own, got '", folder, "'");
  Amount amount;
  for (const auto& part : kept_parts(model)) amount.add(fs::path(model) / part);
  for (const char* part : {"tokenizer", "tokenizer_2"}) {
    if (fs::is_directory(fs::path(model) / part)) amount.add(fs::path(model) / part);
  }
}

void save_full_pipeline(const sd::StableDiffusion& pipeline,
                        const lightlora::LearnedEmbedding& word, const std::string& folder) {
  check_full_pipeline(pipeline.folder(), !word.layers.empty(), folder);
  const fs::path from = pipeline.folder(), to = folder;
  for (const auto& part : kept_parts(from)) copy_part(from / part, to / part);
  for (size_t i = 0; i < pipeline.text_encoders(); ++i) {
    const std::string encoder = i == 0 ? "text_encoder" : "text_encoder_2";
    const std::string tokenizer = sd::ModelIndex::tokenizer_of(encoder);
    Ids ids;
    std::vector<int64_t> rows;
    for (int64_t k = 0; k < word.vectors.size(0); ++k) {
      const std::string token = k == 0 ? word.token : fmt::format("{}_{}", word.token, k);
      rows.push_back(pipeline.tokenizer(i).token_id(token).value());
      ids[token] = rows.back();
    }
    save_tokenizer(from / tokenizer, to / tokenizer, ids);
    save_text_encoder(pipeline, i, i == 0 ? word.vectors : word.vectors_2, rows, to / encoder);
  }
  copy_whole(from / "model_index.json", to / "model_index.json");  // last: now it is a model
}

}  // namespace training
