// SPDX-License-Identifier: Apache-2.0
#include "pipeline/single_file.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <utility>
#include <vector>

#include "models/clip.h"
#include "models/ldm_names.h"
#include "models/open_clip.h"
#include "models/weights.h"
#include "pipeline/single_file_parts.h"
#include "pipeline/single_file_scheduler.h"
#include "support/cli/process.h"
#include "support/files/disk.h"
#include "support/files/json_file.h"
#include "support/files/limits.h"
#include "text/tokenizer.h"

namespace sd {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

using single_file::begins;
using single_file::config_file;

bool is_config_folder(const fs::path& folder) {
  return fs::exists(folder / "tokenizer") || fs::exists(folder / "unet" / "config.json") ||
         fs::exists(folder / "scheduler" / "scheduler_config.json");
}

std::string absolute_parent(const std::string& path) {
  return fs::absolute(path).parent_path().string();
}

// A tokenizer reads files, so the texts become such for a moment.
std::unique_ptr<Tokenizer> tokenizer_of(const json& texts, int64_t default_length) {
  const TemporaryFolder folder("tokenizer");
  for (const char* name : single_file::tokenizer_files) {
    const auto text = texts.find(name);
    if (text == texts.end() || !text->is_string()) continue;
    std::ofstream(fs::path(folder.path()) / name, std::ios::binary) << text->get<std::string>();
  }
  return std::make_unique<Tokenizer>(folder.path(), default_length);
}

}  // namespace

SingleFile::SingleFile(const std::string& path, const std::string& config_folder,
                       lightlora::SafetensorsOptions options)
    : path_(path),
      folder_(config_folder),
      options_(options),
      file_(lightlora::open_tensors(path, options)) {
  TORCH_CHECK(file_->tensors().size() <= limits::kModelTensors, "'", path,
              "': expected a model of at most ", limits::kModelTensors, " tensors, got ",
              file_->tensors().size());
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
  const std::string full = wrapper_ + name;
  if (!file_->contains(full)) return nullptr;
  return &*std::find_if(file_->tensors().begin(), file_->tensors().end(),
                        [&](const auto& tensor) { return tensor.name == full; });
}

int64_t SingleFile::size(const std::string& name, size_t dimension) const {
  const auto* tensor = find(name);
  TORCH_CHECK(tensor != nullptr && tensor->shape.size() > dimension, "'", path_,
              "': expected the tensor '", name, "' of Stable Diffusion, got ",
              tensor == nullptr ? "none" : "one of another shape",
              "; hint: is the file a whole model, and complete?");
  return tensor->shape[dimension];
}

bool SingleFile::has(const std::string& start) const {
  return std::any_of(file_->tensors().begin(), file_->tensors().end(),
                     [&](const auto& tensor) { return begins(tensor.name, wrapper_ + start); });
}

void SingleFile::check_kind() const {
  const auto refuse = [&](const char* got) {
    TORCH_CHECK(false, "'", path_, "': expected a Stable Diffusion 1.x, 2.x or XL model, got ",
                got);
  };
  if (has("model.diffusion_model.double_blocks.") || has("double_blocks.")) refuse("one of FLUX");
  if (has("model.diffusion_model.joint_blocks.")) refuse("one of Stable Diffusion 3");
  if (has("conditioner.embedders.0.model.")) {
    refuse(
        "an SDXL refiner, which only finishes the pictures of a base model and is not "
        "supported; hint: the base model draws without it");
  }
  // stable-diffusion.cpp gives OpenCLIP's encoders the names, and partly the layout, of CLIP's.
  const auto* tokens =
      find(std::string(kLdmTextEncoder) + "text_model.embeddings.token_embedding.weight");
  const bool wide = tokens != nullptr && tokens->shape.size() == 2 && tokens->shape[1] == 1024;
  if (has("cond_stage_model.1.") || wide) {
    refuse(
        "one whose text encoders another program has renamed; hint: give it as --unet, with the "
        "folder of a model of its kind");
  }
  if (has("lora_unet_") || has("unet.")) refuse("a LoRA; hint: give it as --lora");
  if (!has(kLdmUnet)) {
    if (has("input_blocks.0.0.")) {
      refuse("a UNet alone; hint: give it as --unet, with the folder of a model of its kind");
    }
    refuse(has("down_blocks.")
               ? "a part of a folder in diffusers layout; hint: name the folder that "
                 "holds model_index.json"
               : "a file of other tensors; hint: a whole model has tensors named "
                 "model.diffusion_model...");
  }
  const bool texts =
      two_text_encoders() ? has(kSgmOpenClip) : has(kLdmTextEncoder) || has(kLdmOpenClip);
  if (!has(kLdmVae) || !texts) {
    refuse("one without its autoencoder or text encoder; hint: use the complete file");
  }
}

ModelIndex SingleFile::index() const {
  ModelIndex index;
  index.two_text_encoders = two_text_encoders();
  const auto own = config("model_index");
  const auto zeros = own.find("force_zeros_for_empty_prompt");
  if (zeros != own.end() && zeros->is_boolean()) {
    index.force_zeros_for_empty_prompt = zeros->get<bool>();
  }
  return index;
}

SingleFile::TextPlace SingleFile::text_place(const std::string& text_encoder) const {
  if (text_encoder == "text_encoder_2") return {kSgmOpenClip, true};
  if (two_text_encoders()) return {kSgmTextEncoder, false};
  return has(kLdmOpenClip) ? TextPlace{kLdmOpenClip, true} : TextPlace{kLdmTextEncoder, false};
}

// A JSON object in the metadata; empty if the file has none.
json SingleFile::embedded(const std::string& key) const {
  const auto found = file_->metadata().find(key);
  if (found == file_->metadata().end()) return json::object();
  json value = parse_json(found->second, "'" + path_ + "': metadata '" + key + "'");
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
  if (auto own = embedded(single_file::kConfigKey)[part]; own.is_object()) return own;
  if (auto beside = read(parent_); !beside.is_null()) return beside;
  return guessed(part);
}

json SingleFile::guessed(const std::string& part) const {
  if (part == "unet") return unet_config();
  if (part == "vae") return vae_config();
  if (part == "scheduler") return single_file_scheduler(*file_, family());
  return part == "model_index" ? json::object() : text_config(part);
}

namespace {

// CLIP's vocabulary: beside the program where it is part of a release, else where it was built.
const std::string& clip_tokenizer_folder() {
  static const std::string folder = [] {
    std::error_code error;
    const auto beside = cli::program_path().parent_path() / "../share/lightlora/clip_tokenizer";
    return fs::is_directory(beside, error) ? beside.lexically_normal().string()
                                           : std::string(SD_CLIP_TOKENIZER_DIR);
  }();
  return folder;
}

}  // namespace

std::unique_ptr<Tokenizer> SingleFile::tokenizer(int64_t default_length,
                                                 const std::string& name) const {
  if (has_own_tokenizer(name)) {
    return tokenizer_of(embedded(single_file::tokenizer_key(name)), default_length);
  }
  const auto folder = tokenizer_folder(name);
  auto tokenizer = std::make_unique<Tokenizer>(folder, default_length);
  const bool open = text_place(name == "tokenizer_2" ? "text_encoder_2" : "text_encoder").open_clip;
  if (open && folder == clip_tokenizer_folder()) tokenizer->pad_with("!");
  return tokenizer;
}

json SingleFile::tokenizer_texts(const std::string& name) const {
  return has_own_tokenizer(name) ? embedded(single_file::tokenizer_key(name))
                                 : single_file::texts_of_tokenizer(tokenizer_folder(name));
}

bool SingleFile::has_own_tokenizer(const std::string& name) const {
  const bool given = !folder_.empty() && fs::is_directory(fs::path(folder_) / name);
  return !given && file_->metadata().count(single_file::tokenizer_key(name)) > 0;
}

std::string SingleFile::tokenizer_folder(const std::string& name) const {
  for (const auto& folder : {folder_, parent_}) {
    const fs::path own = fs::path(folder) / name;
    if (!folder.empty() && fs::is_directory(own)) return own.string();
  }
  const auto encoder = name == "tokenizer_2" ? "text_encoder_2" : "text_encoder";
  const int64_t tokens = config(encoder).value("vocab_size", single_file::kClipVocabulary);
  TORCH_CHECK(
      tokens == single_file::kClipVocabulary, "'", path_, "': expected CLIP's vocabulary of ",
      single_file::kClipVocabulary, " tokens, got a text encoder for ", tokens,
      "; hint: name the model's folder in diffusers layout with --model_config, or put its ", name,
      "/ beside the file");
  return clip_tokenizer_folder();
}

namespace {

// What trainers leave among the weights: losses, discriminators, running averages, counters.
bool is_leftover(const std::string& name) {
  for (const char* start : {"loss.", "discriminator.", "ema.", "model_ema."}) {
    if (begins(name, start)) return true;
  }
  for (const char* part : {"num_updates", "num_batches_tracked", "global_step", "ema_decay"}) {
    if (name.find(part) != std::string::npos) return true;
  }
  return false;
}

// What a schedule is made of, which configurations say, and marks of what a model predicts: every
// checkpoint has some.
bool is_of_schedule(const std::string& name) {
  for (const char* start :
       {"betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "lvlb_weights",
        "logvar", "scale_factor", "sigmas", "denoiser.", "v_pred", "ztsnr"}) {
    if (begins(name, start)) return true;
  }
  return false;
}

}  // namespace

// Averages, counters and the state of optimisers stand beside the parts of a model.
void SingleFile::name_others() const {
  std::vector<std::string> parts{kLdmUnet, kLdmVae};
  for (const auto& encoder : index().text_encoders()) {
    parts.push_back(text_place(encoder).prefix);
  }
  std::vector<std::string> others;
  for (const auto& tensor : file_->tensors()) {
    const auto own = begins(tensor.name, wrapper_) ? tensor.name.substr(wrapper_.size()) : "";
    const bool known = is_of_schedule(own) ||
                       std::any_of(parts.begin(), parts.end(),
                                   [&](const std::string& part) { return begins(own, part); });
    if (!known) others.push_back(tensor.name);
  }
  if (others.empty()) return;
  TORCH_WARN("'", path_, "': ", others.size(), " tensors beside the model's parts are not used, ",
             "the first is '", others.front(), "'");
}

void SingleFile::load(torch::nn::Module& module, const std::string& prefix,
                      const std::function<std::string(const std::string&)>& original,
                      const BeforeFilling& before_filling) const {
  std::map<std::string, std::string> ours;
  for (const auto& item : module.named_parameters()) ours[original(item.key())] = item.key();
  for (const auto& item : module.named_buffers()) ours[original(item.key())] = item.key();
  std::vector<std::string> leftovers;
  const auto rename = [&](const std::string& name) -> std::string {
    if (!begins(name, wrapper_ + prefix)) return "";  // of another part
    const std::string rest = name.substr(wrapper_.size() + prefix.size());
    const auto known = ours.find(rest);
    if (known != ours.end()) return known->second;
    if (!is_leftover(rest)) return name;
    leftovers.push_back(name);
    return "";
  };
  load_weights(module, path_, rename, options_, before_filling);
  if (leftovers.empty()) return;
  TORCH_WARN("'", path_, "': ", leftovers.size(),
             " tensors of its training are not used, the first ", "is '", leftovers.front(), "'");
}

void SingleFile::load_unet(torch::nn::Module& module, const UNet2DConditionModelOptions& options,
                           const BeforeFilling& before_filling) const {
  name_others();
  load(
      module, kLdmUnet, [&](const std::string& name) { return ldm_unet_name(name, options); },
      before_filling);
}

void SingleFile::load_vae(torch::nn::Module& module, const AutoencoderKLOptions& options) const {
  load(module, kLdmVae, [&](const std::string& name) { return ldm_vae_name(name, options); });
}

void SingleFile::load_text_encoder(CLIPTextModelImpl& module,
                                   const std::string& text_encoder) const {
  const auto place = text_place(text_encoder);
  const std::string prefix = wrapper_ + place.prefix;
  if (place.open_clip) return load_open_clip(module, *file_, prefix);
  const auto rename = [&](const std::string& name) -> std::string {
    const std::string rest = begins(name, prefix) ? name.substr(prefix.size()) : "";
    // Parts of CLIP's loss that some files keep.
    if (rest.empty() || rest == "text_projection.weight" || rest == "logit_scale") return "";
    return CLIPTextModelImpl::parameter_name(rest);
  };
  load_weights(module, path_, rename, options_);
}

std::vector<std::unique_ptr<Tokenizer>> load_tokenizers(const std::string& model,
                                                        const std::string& config_folder,
                                                        lightlora::SafetensorsOptions options) {
  std::vector<std::unique_ptr<Tokenizer>> tokenizers;
  const auto add = [&](const ModelIndex& index, const auto& load) {
    for (const auto& encoder : index.text_encoders()) {
      tokenizers.push_back(load(ModelIndex::tokenizer_of(encoder)));
    }
  };
  if (fs::is_directory(model)) {
    add(read_model_index(model), [&](const std::string& name) {
      return std::make_unique<Tokenizer>((fs::path(model) / name).string());
    });
  } else {
    const SingleFile file(model, config_folder, options);
    add(file.index(), [&](const std::string& name) { return file.tokenizer(77, name); });
  }
  return tokenizers;
}

}  // namespace sd
