// SPDX-License-Identifier: Apache-2.0
#include "models/open_clip.h"

#include <ATen/ATen.h>

#include <array>
#include <cstdlib>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace sd {
namespace {

// Where one of our tensors lies in such a file.
struct Place {
  std::string name;
  int64_t third = -1;  // of the rows of a fused matrix; -1: all of them
  bool transposed = false;
};

const std::map<std::string, std::string> outer{
    {"text_model.embeddings.token_embedding.weight", "token_embedding.weight"},
    {"text_model.embeddings.position_embedding.weight", "positional_embedding"},
    {"text_model.final_layer_norm.weight", "ln_final.weight"},
    {"text_model.final_layer_norm.bias", "ln_final.bias"}};

const std::array<std::pair<const char*, const char*>, 5> inner{
    {{"layer_norm1.", "ln_1."},
     {"layer_norm2.", "ln_2."},
     {"mlp.fc1.", "mlp.c_fc."},
     {"mlp.fc2.", "mlp.c_proj."},
     {"self_attn.out_proj.", "attn.out_proj."}}};

const std::string layers = "text_model.encoder.layers.";
const std::string blocks = "transformer.resblocks.";

bool begins(const std::string& text, const std::string& start) { return text.rfind(start, 0) == 0; }

Place place_of(const std::string& name) {
  if (name == "text_projection.weight") return {"text_projection", -1, true};
  if (const auto found = outer.find(name); found != outer.end()) return {found->second};
  const auto dot = name.find('.', layers.size());
  TORCH_CHECK(begins(name, layers) && dot != std::string::npos, "'", name,
              "': expected a tensor of a CLIP text encoder, got another one");
  const std::string block = blocks + name.substr(layers.size(), dot + 1 - layers.size());
  const std::string leaf = name.substr(dot + 1);
  for (const auto& [ours, original] : inner) {
    if (begins(leaf, ours)) return {block + original + leaf.substr(std::string(ours).size())};
  }
  const std::array<const char*, 3> projections{
      {"self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."}};
  for (size_t i = 0; i < projections.size(); ++i) {
    if (!begins(leaf, projections[i])) continue;
    const auto kind = leaf.substr(std::string(projections[i]).size());
    return {block + "attn.in_proj_" + kind, static_cast<int64_t>(i)};
  }
  TORCH_CHECK(false, "'", name, "': expected a tensor of a CLIP text encoder, got another one");
}

// What a module without it does not read: a constant, CLIP's temperature, a projection, and layers
// at the end.
bool is_spare(const std::string& name, const CLIPTextModelOptions& options) {
  if (name == "logit_scale" || name == "attn_mask" || name == "text_projection") return true;
  if (!begins(name, blocks)) return false;
  const auto number = std::strtoll(name.c_str() + blocks.size(), nullptr, 10);
  return number >= options.num_hidden_layers();
}

void check_names(const std::set<std::string>& wanted, const lightlora::TensorFile& file,
                 const std::string& prefix, const CLIPTextModelOptions& options) {
  for (const auto& info : file.tensors()) {
    if (!begins(info.name, prefix)) continue;
    const auto name = info.name.substr(prefix.size());
    TORCH_CHECK(wanted.count(name) > 0 || is_spare(name, options), "'", file.path(), "': tensor '",
                info.name, "': expected the names of OpenCLIP's text encoder, got another one");
  }
}

at::Tensor part_of(const at::Tensor& stored, const Place& place) {
  if (place.transposed) return stored.t();
  if (place.third < 0) return stored;
  const int64_t rows = stored.size(0) / 3;
  return stored.narrow(0, place.third * rows, rows);
}

}  // namespace

void load_open_clip(CLIPTextModelImpl& module, const lightlora::TensorFile& file,
                    const std::string& prefix) {
  const at::NoGradGuard no_grad;
  std::set<std::string> wanted;
  std::map<std::string, std::vector<std::pair<Place, at::Tensor>>> targets;
  for (const auto& item : module.named_parameters()) {
    const auto place = place_of(item.key());
    wanted.insert(place.name);
    targets[place.name].emplace_back(place, item.value());
  }
  check_names(wanted, file, prefix, module.options);
  for (const auto& [name, parts] : targets) {
    const std::string full = prefix + name;
    TORCH_CHECK(file.contains(full), "'", file.path(), "': expected the tensor '", full,
                "', got none; hint: is the file complete?");
    const auto stored = file.load(full);
    for (const auto& [place, target] : parts) {
      const auto part = part_of(stored, place);
      TORCH_CHECK(part.sizes() == target.sizes() && part.is_floating_point(), "'", file.path(),
                  "': tensor '", full, "': expected one that holds ", target.sizes(), ", got ",
                  stored.scalar_type(), " ", stored.sizes());
      at::Tensor(target).copy_(part);
    }
  }
}

lightlora::TensorMap to_open_clip(const CLIPTextModelImpl& module, const std::string& prefix,
                                  at::ScalarType dtype) {
  lightlora::TensorMap tensors;
  std::map<std::string, std::array<at::Tensor, 3>> fused;
  for (const auto& item : module.named_parameters()) {
    const auto place = place_of(item.key());
    const auto value = item.value().detach().to(dtype);
    if (place.third >= 0) {
      fused[place.name][static_cast<size_t>(place.third)] = value;
    } else {
      tensors[prefix + place.name] = place.transposed ? value.t().contiguous() : value;
    }
  }
  for (const auto& [name, thirds] : fused) tensors[prefix + name] = at::cat(thirds);
  return tensors;
}

}  // namespace sd
