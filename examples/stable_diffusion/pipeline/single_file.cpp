// SPDX-License-Identifier: Apache-2.0
#include "pipeline/single_file.h"

#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "models/clip.h"
#include "models/ldm_names.h"
#include "models/weights.h"
#include "pipeline/pipeline.h"
#include "pipeline/single_file_scheduler.h"
#include "support/files/json_file.h"

namespace sd {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

bool begins(const std::string& text, const std::string& start) { return text.rfind(start, 0) == 0; }

std::string config_file(const std::string& folder, const std::string& part) {
  const std::string name = part == "scheduler" ? "scheduler_config.json" : "config.json";
  return (fs::path(folder) / part / name).string();
}

bool is_config_folder(const fs::path& folder) {
  return fs::exists(folder / "tokenizer") || fs::exists(folder / "unet" / "config.json") ||
         fs::exists(folder / "scheduler" / "scheduler_config.json");
}

std::string absolute_parent(const std::string& path) {
  return fs::absolute(path).parent_path().string();
}

constexpr const char* kConfigKey = "lightlora.config";
constexpr const char* kTokenizerKey = "lightlora.tokenizer";
constexpr int64_t kClipVocabulary = 49408;
const char* const tokenizer_files[] = {
    "tokenizer.json",          "vocab.json",       "merges.txt", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json"};

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The texts of a tokenizer's files, by name.
json texts_of_tokenizer(const fs::path& folder) {
  json texts = json::object();
  for (const char* name : tokenizer_files) {
    if (fs::exists(folder / name)) texts[name] = read_text(folder / name);
  }
  return texts;
}

// A tokenizer reads files, so the texts become such for a moment.
std::unique_ptr<Tokenizer> tokenizer_of(const json& texts, int64_t default_length) {
  std::string folder = (fs::temp_directory_path() / "lightlora-tokenizer-XXXXXX").string();
  TORCH_CHECK(mkdtemp(folder.data()) != nullptr, "'", folder, "': expected a folder for a moment, ",
              "got none; hint: is the disk full?");
  const std::unique_ptr<const std::string, void (*)(const std::string*)> remover(
      &folder, [](const std::string* path) { fs::remove_all(*path); });
  for (const char* name : tokenizer_files) {
    const auto text = texts.find(name);
    if (text == texts.end() || !text->is_string()) continue;
    std::ofstream(fs::path(folder) / name, std::ios::binary) << text->get<std::string>();
  }
  return std::make_unique<Tokenizer>(folder, default_length);
}

}  // namespace

SingleFile::SingleFile(const std::string& path, const std::string& config_folder,
                       lightlora::SafetensorsOptions options)
    : path_(path),
      folder_(config_folder),
      options_(options),
      file_(lightlora::open_tensors(path, options)) {
  TORCH_CHECK(folder_.empty() || is_config_folder(folder_), "'", folder_,
              "': expected a folder in diffusers layout with configurations or a tokenizer, got ",
              fs::exists(folder_) ? "another one" : "nothing there");
  if (is_config_folder(absolute_parent(path))) parent_ = absolute_parent(path);
  // Trainers put the weights into a dictionary beside their own state.
  const bool wrapped =
      std::any_of(file_->tensors().begin(), file_->tensors().end(), [](const auto& tensor) {
        return begins(tensor.name, std::string("state_dict.") + kLdmUnet);
      });
  if (wrapped) wrapper_ = "state_dict.";
  check_kind();
}

const lightlora::TensorInfo* SingleFile::find(const std::string& name) const {
  const auto found =
      std::find_if(file_->tensors().begin(), file_->tensors().end(),
                   [&](const auto& tensor) { return tensor.name == wrapper_ + name; });
  return found == file_->tensors().end() ? nullptr : &*found;
}

int64_t SingleFile::size(const std::string& name, size_t dimension) const {
  const auto* tensor = find(name);
  TORCH_CHECK(tensor != nullptr && tensor->shape.size() > dimension, "'", path_,
              "': expected the tensor '", name, "' of Stable Diffusion 1.x, got ",
              tensor == nullptr ? "none" : "one of another shape",
              "; hint: is the file a whole model, and complete?");
  return tensor->shape[dimension];
}

void SingleFile::check_kind() const {
  const auto has = [&](const std::string& start) {
    return std::any_of(file_->tensors().begin(), file_->tensors().end(),
                       [&](const auto& tensor) { return begins(tensor.name, wrapper_ + start); });
  };
  const auto refuse = [&](const char* got) {
    TORCH_CHECK(false, "'", path_, "': expected a Stable Diffusion 1.x model, got ", got);
  };
  if (has("conditioner.")) refuse("one of SDXL");
  if (has("model.diffusion_model.double_blocks.") || has("double_blocks.")) refuse("one of FLUX");
  if (has("model.diffusion_model.joint_blocks.")) refuse("one of Stable Diffusion 3");
  if (has("cond_stage_model.model.")) {
    refuse(
        "one of Stable Diffusion 2.x, whose text encoder has other names in a single file; hint: "
        "use its folder in diffusers layout");
  }
  if (has("lora_unet_") || has("unet.")) refuse("a LoRA; hint: give it as --lora");
  if (!has(kLdmUnet)) {
    refuse(has("down_blocks.")
               ? "a part of a folder in diffusers layout; hint: name the folder that "
                 "holds model_index.json"
               : "a file of other tensors; hint: a whole model has tensors named "
                 "model.diffusion_model...");
  }
  if (!has(kLdmVae) || !has(kLdmTextEncoder)) {
    refuse("one without its autoencoder or text encoder; hint: use the complete file");
  }
}

// A JSON object in the metadata; empty if the file has none.
json SingleFile::embedded(const char* key) const {
  const auto found = file_->metadata().find(key);
  if (found == file_->metadata().end()) return json::object();
  json value = json::parse(found->second, /*cb=*/nullptr, /*allow_exceptions=*/false);
  TORCH_CHECK(value.is_object(), "'", path_, "': expected a JSON object as metadata '", key,
              "', got something else");
  return value;
}

json SingleFile::config(const std::string& part) const {
  const auto read = [&](const std::string& folder) {
    return !folder.empty() && fs::exists(config_file(folder, part))
               ? read_json_file(config_file(folder, part))
               : json();
  };
  if (auto given = read(folder_); !given.is_null()) return given;
  if (auto own = embedded(kConfigKey)[part]; own.is_object()) return own;
  if (auto beside = read(parent_); !beside.is_null()) return beside;
  if (part == "unet") return unet_config();
  if (part == "vae") return vae_config();
  return part == "scheduler" ? single_file_scheduler(*file_) : text_config();
}

std::unique_ptr<Tokenizer> SingleFile::tokenizer(int64_t default_length) const {
  if (has_own_tokenizer()) return tokenizer_of(embedded(kTokenizerKey), default_length);
  return std::make_unique<Tokenizer>(tokenizer_folder(), default_length);
}

json SingleFile::tokenizer_texts() const {
  return has_own_tokenizer() ? embedded(kTokenizerKey) : texts_of_tokenizer(tokenizer_folder());
}

bool SingleFile::has_own_tokenizer() const {
  const bool given = !folder_.empty() && fs::is_directory(fs::path(folder_) / "tokenizer");
  return !given && file_->metadata().count(kTokenizerKey) > 0;
}

std::string SingleFile::tokenizer_folder() const {
  for (const auto& folder : {folder_, parent_}) {
    const fs::path own = fs::path(folder) / "tokenizer";
    if (!folder.empty() && fs::is_directory(own)) return own.string();
  }
  const int64_t tokens = config("text_encoder").value("vocab_size", kClipVocabulary);
  TORCH_CHECK(
      tokens == kClipVocabulary, "'", path_, "': expected CLIP's vocabulary of ", kClipVocabulary,
      " tokens, got a text encoder for ", tokens,
      "; hint: name the model's folder in diffusers layout with --model_config, or put its ",
      "tokenizer/ beside the file");
  return SD_CLIP_TOKENIZER_DIR;
}

json SingleFile::unet_config() const {
  const std::string unet = kLdmUnet;
  // Each level ends with a downsampler, except the last.
  std::vector<int64_t> channels;
  std::vector<std::string> down_types, up_types;
  int64_t stride = 0, width = 0;
  for (int64_t block = 1;
       find(unet + "input_blocks." + std::to_string(block) + ".0.op.weight") ||
       find(unet + "input_blocks." + std::to_string(block) + ".0.in_layers.0.weight");
       ++block) {
    if (stride == 0 && find(unet + "input_blocks." + std::to_string(block) + ".0.op.weight")) {
      stride = block;
    }
  }
  TORCH_CHECK(stride > 1, "'", path_, "': expected the blocks of a UNet, got none that fit");
  for (int64_t level = 0;; ++level) {
    const std::string block = unet + "input_blocks." + std::to_string(1 + level * stride);
    if (!find(block + ".0.in_layers.0.weight")) break;
    const bool attends = find(block + ".1.proj_in.weight") != nullptr;
    channels.push_back(size(block + ".0.out_layers.3.weight", 0));
    down_types.emplace_back(attends ? "CrossAttnDownBlock2D" : "DownBlock2D");
    up_types.insert(up_types.begin(), attends ? "CrossAttnUpBlock2D" : "UpBlock2D");
    if (attends) width = size(block + ".1.transformer_blocks.0.attn2.to_k.weight", 1);
  }
  TORCH_CHECK(width != 1024, "'", path_,
              "': expected a Stable Diffusion 1.x model, got one of 2.x; ",
              "hint: use its folder in diffusers layout");
  return {{"_class_name", "UNet2DConditionModel"},
          {"sample_size", 64},
          {"in_channels", size(unet + "input_blocks.0.0.weight", 1)},
          {"out_channels", size(unet + "out.2.weight", 0)},
          {"block_out_channels", channels},
          {"down_block_types", down_types},
          {"up_block_types", up_types},
          {"layers_per_block", stride - 1},
          {"cross_attention_dim", width},
          {"attention_head_dim", 8}};
}

json SingleFile::vae_config() const {
  const std::string vae = kLdmVae;
  const auto down = [&](size_t level, int64_t block) {
    return vae + "encoder.down." + std::to_string(level) + ".block." + std::to_string(block) +
           ".conv2.weight";
  };
  std::vector<int64_t> channels;
  while (find(down(channels.size(), 0))) channels.push_back(size(down(channels.size(), 0), 0));
  int64_t layers = 0;
  while (find(down(0, layers))) ++layers;
  return {{"_class_name", "AutoencoderKL"},
          {"sample_size", 512},
          {"in_channels", size(vae + "encoder.conv_in.weight", 1)},
          {"out_channels", size(vae + "decoder.conv_out.weight", 0)},
          {"latent_channels", size(vae + "decoder.conv_in.weight", 1)},
          {"block_out_channels", channels},
          {"down_block_types", std::vector<std::string>(channels.size(), "DownEncoderBlock2D")},
          {"up_block_types", std::vector<std::string>(channels.size(), "UpDecoderBlock2D")},
          {"layers_per_block", layers},
          {"mid_block_add_attention", find(vae + "decoder.mid.attn_1.q.weight") != nullptr},
          {"norm_num_groups", 32},
          {"scaling_factor", 0.18215}};
}

json SingleFile::text_config() const {
  const std::string text = kLdmTextEncoder;
  const std::string model = find(text + "text_model.final_layer_norm.weight") ? "text_model." : "";
  const auto layer = [&](int64_t index) {
    return text + model + "encoder.layers." + std::to_string(index) + ".mlp.fc1.weight";
  };
  const std::string tokens = text + model + "embeddings.token_embedding.weight";
  int64_t layers = 0;
  while (find(layer(layers))) ++layers;
  const int64_t hidden = size(tokens, 1);
  return {
      {"vocab_size", size(tokens, 0)},
      {"hidden_size", hidden},
      {"intermediate_size", size(layer(0), 0)},
      {"num_hidden_layers", layers},
      {"num_attention_heads", std::max<int64_t>(hidden / 64, 1)},
      {"max_position_embeddings", size(text + model + "embeddings.position_embedding.weight", 0)},
      {"eos_token_id", size(tokens, 0) - 1}};
}

void SingleFile::load(torch::nn::Module& module, const std::string& prefix,
                      const std::function<std::string(const std::string&)>& original) const {
  std::map<std::string, std::string> ours;
  for (const auto& item : module.named_parameters()) ours[original(item.key())] = item.key();
  for (const auto& item : module.named_buffers()) ours[original(item.key())] = item.key();
  const auto rename = [&](const std::string& name) -> std::string {
    if (!begins(name, wrapper_ + prefix)) return "";  // of another part
    const auto known = ours.find(name.substr(wrapper_.size() + prefix.size()));
    return known == ours.end() ? name : known->second;
  };
  load_weights(module, path_, rename, options_);
}

void SingleFile::load_unet(torch::nn::Module& module,
                           const UNet2DConditionModelOptions& options) const {
  load(module, kLdmUnet, [&](const std::string& name) { return ldm_unet_name(name, options); });
}

void SingleFile::load_vae(torch::nn::Module& module, const AutoencoderKLOptions& options) const {
  load(module, kLdmVae, [&](const std::string& name) { return ldm_vae_name(name, options); });
}

void SingleFile::load_text_encoder(torch::nn::Module& module) const {
  const auto rename = [&](const std::string& name) -> std::string {
    const std::string prefix = wrapper_ + kLdmTextEncoder;
    const std::string rest = begins(name, prefix) ? name.substr(prefix.size()) : "";
    // Parts of CLIP's loss that some files keep.
    if (rest.empty() || rest == "text_projection.weight" || rest == "logit_scale") return "";
    return CLIPTextModelImpl::parameter_name(rest);
  };
  load_weights(module, path_, rename, options_);
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& model,
                                          const std::string& config_folder,
                                          lightlora::SafetensorsOptions options) {
  if (!fs::is_directory(model)) return SingleFile(model, config_folder, options).tokenizer();
  return std::make_unique<Tokenizer>((fs::path(model) / "tokenizer").string());
}

namespace {

// What a reader of the file cannot know from the weights alone.
lightlora::Metadata metadata_of(const StableDiffusion& pipeline) {
  const std::string& model = pipeline.folder();
  json configs, tokenizer;
  const auto put = [&](const auto& config) {
    for (const char* part : {"unet", "vae", "text_encoder", "scheduler"})
      configs[part] = config(part);
  };
  if (fs::is_directory(model)) {
    put([&](const char* part) { return read_json_file(config_file(model, part)); });
    tokenizer = texts_of_tokenizer(fs::path(model) / "tokenizer");
  } else {
    const auto& options = pipeline.options();
    const SingleFile file(
        model, options.model_config(),
        lightlora::SafetensorsOptions().allow_trailing_bytes(options.allow_trailing_bytes()));
    put([&](const char* part) { return file.config(part); });
    tokenizer = file.tokenizer_texts();
  }
  auto metadata = prediction_metadata(configs["scheduler"]);
  metadata["format"] = "pt";
  metadata[kConfigKey] = configs.dump();
  const bool is_clip =
      configs["text_encoder"].value("vocab_size", kClipVocabulary) == kClipVocabulary;
  if (!is_clip) metadata[kTokenizerKey] = tokenizer.dump();
  return metadata;
}

}  // namespace

void save_single_file(const StableDiffusion& pipeline, const std::string& path) {
  const auto dtype = pipeline.options().dtype();
  lightlora::TensorMap tensors;
  const auto add = [&](const torch::nn::Module& module, const std::string& prefix,
                       const std::function<std::string(const std::string&)>& original) {
    for (const auto& item : module.named_parameters()) {
      tensors[prefix + original(item.key())] = item.value().detach().to(dtype);
    }
  };
  const auto unet = pipeline.unet();
  const auto vae = pipeline.vae();
  add(*unet, kLdmUnet, [&](const auto& name) { return ldm_unet_name(name, unet->options); });
  add(*vae, kLdmVae, [&](const auto& name) { return ldm_vae_name(name, vae->options); });
  add(*pipeline.text_encoder(), kLdmTextEncoder, [](const auto& name) { return name; });
  for (auto& [name, tensor] : tensors) {
    const bool attention = begins(name, kLdmVae) && name.find(".attn_1.") != std::string::npos;
    if (attention && tensor.dim() == 2) tensor = tensor.unsqueeze(2).unsqueeze(3);
  }
  lightlora::save_safetensors(path, tensors, metadata_of(pipeline));
}

}  // namespace sd
