// SPDX-License-Identifier: Apache-2.0
#include "lora_files/diffusers_reader.h"

#include <algorithm>
#include <map>
#include <set>

#include "lora_files/layer_places.h"
#include "support/cli/fmt.h"

namespace lora_files {
namespace {

// How factors are spelled.
enum class Form { ab, down_up };

// What becomes of a tensor.
enum class Fate {
  lost,           // passed over
  read,           // used
  without_alpha,  // used, but at another strength than its alpha says
  error           // the whole file is refused
};

// Whose names a row is about; those that are the same on both sides are of either.
enum class Names { original, diffusers, any };

struct Row {
  const char* family;
  Naming naming;
  Names names;
  Form form;
  Fate fate, with_alphas;  // in files without an alpha and with one
};

using N = Naming;
constexpr Fate kLost = Fate::lost, kRead = Fate::read, kError = Fate::error;
constexpr Fate kWeak = Fate::without_alpha;
constexpr auto kOriginal = Names::original, kDiffusers = Names::diffusers, kAny = Names::any;
constexpr auto kAB = Form::ab, kDownUp = Form::down_up;

// diffusers 0.42.1, `lora_state_dict` of each pipeline in loaders/lora_pipeline.py. What no row has
// is lost.
constexpr Row kFateRows[] = {
    {"FLUX", N::kohya, kOriginal, kDownUp, kRead, kRead},
    {"FLUX", N::kohya, kDiffusers, kDownUp, kError, kError},
    {"FLUX", N::original, kOriginal, kDownUp, kRead, kRead},
    {"FLUX", N::original, kDiffusers, kDownUp, kError, kError},
    {"FLUX", N::diffusers, kAny, kAB, kRead, kRead},
    {"FLUX", N::diffusers, kAny, kDownUp, kRead, kWeak},
    {"SD 3", N::diffusers, kAny, kAB, kRead, kWeak},
    {"Wan", N::kohya, kOriginal, kDownUp, kError, kRead},
    {"Wan", N::kohya, kDiffusers, kDownUp, kError, kError},
    {"Wan", N::original, kOriginal, kAB, kRead, kRead},
    {"Wan", N::original, kOriginal, kDownUp, kRead, kRead},
    {"Wan", N::original, kDiffusers, kAB, kError, kError},
    {"Wan", N::original, kDiffusers, kDownUp, kError, kError},
    {"Wan", N::diffusers, kAny, kAB, kRead, kWeak},
    {"Qwen-Image", N::kohya, kAny, kDownUp, kRead, kRead},
    {"Qwen-Image", N::original, kAny, kAB, kRead, kRead},
    {"Qwen-Image", N::original, kAny, kDownUp, kRead, kRead},
    {"Qwen-Image", N::bare, kAny, kDownUp, kLost, kRead},
    {"Qwen-Image", N::bare, kAny, kAB, kLost, kRead},
    {"Qwen-Image", N::diffusers, kAny, kAB, kRead, kLost},
    {"Z-Image", N::kohya, kAny, kDownUp, kRead, kRead},
    {"Z-Image", N::original, kDiffusers, kAB, kRead, kRead},
    {"Z-Image", N::original, kOriginal, kAB, kLost, kError},
    {"Z-Image", N::original, kDiffusers, kDownUp, kRead, kRead},
    {"Z-Image", N::bare, kDiffusers, kDownUp, kLost, kRead},
    {"Z-Image", N::bare, kDiffusers, kAB, kLost, kRead},
    {"Z-Image", N::bare, kOriginal, kAB, kLost, kError},
    {"Z-Image", N::diffusers, kAny, kAB, kRead, kLost},
    {"LTX", N::original, kAny, kAB, kRead, kWeak},
    {"LTX", N::diffusers, kAny, kAB, kRead, kWeak},
    {"FLUX.2", N::kohya, kOriginal, kDownUp, kRead, kRead},
    {"FLUX.2", N::original, kOriginal, kAB, kRead, kError},
    {"FLUX.2", N::original, kDiffusers, kAB, kRead, kWeak},
    {"FLUX.2", N::peft, kAny, kAB, kRead, kError},
    {"FLUX.2", N::diffusers, kAny, kAB, kRead, kWeak},
    {"Anima", N::original, kAny, kAB, kRead, kWeak},
    {"Anima", N::diffusers, kAny, kAB, kRead, kWeak},
};

// Families of which some names are translated tensor by tensor, with an error for what is left.
bool is_strict(const std::string& family, Naming naming) {
  if (family == "Qwen-Image" || family == "Wan" || family == "Z-Image") {
    return naming == N::kohya || naming == N::original;
  }
  return family == "FLUX.2" && naming == N::original;
}

class DiffusersReader {
 public:
  explicit DiffusersReader(const Contents& contents)
      : contents_(contents), family_(contents.families.at(0)) {
    for (const auto& name : contents.names) {
      alphas_ |= name.part == "alpha";
      defaults_ |= name.ending.find(".default") != std::string::npos;
      down_up_ |= name.ending == ".lora_down.weight";
      low_rank_lokr_ |= name.part == "lokr_w1_a" || name.part == "lokr_w2_a";
    }
    for (size_t i = 0; i < families().size(); ++i) {
      const auto& known = families()[i].name;
      if (known == family_ || (known == "FLUX.1" && family_ == "FLUX"))
        index_ = static_cast<int>(i);
    }
  }

  Verdict verdict() {
    whole_blocks_ = family_ != "Wan" || has_whole_blocks();
    for (const auto& name : contents_.names) {
      if (name.part != "alpha") note(name, fate_of(name));
    }
    Verdict result;
    result.program = "diffusers";
    for (const auto& name : contents_.names) {
      const auto fate = name.part == "alpha" ? of_alpha(name) : fates_[name.name];
      if (fate == kRead || (fate == kWeak && name.part != "alpha")) ++result.loads;
      if (name.part == "alpha" && fate == kWeak) weak_ = true;
    }
    if (failed_) {
      result.loads = 0;
      result.fails = true;
    }
    const auto all = static_cast<int64_t>(contents_.names.size());
    if (result.loads == all) return result;
    result.mend = "diffusers";
    result.why = why();
    return result;
  }

 private:
  void note(const TensorName& name, Fate fate) {
    fates_[name.name] = fate;
    failed_ |= fate == kError;
    auto& layer = layers_.emplace(name.layer, fate).first->second;
    if (fate == kRead || fate == kWeak) layer = fate;
    if (fate == kRead || fate == kWeak) return;
    const bool plain = name.method == "LoRA";
    (plain ? namings_ : methods_).insert(plain ? spelling(name) : name.method);
  }

  // musubi-tuner's names of Wan are taken block by block, from the first one on and with all layers.
  bool has_whole_blocks() const {
    static const std::set<std::string> wanted{
        "self_attn_q",  "self_attn_k",  "self_attn_v",  "self_attn_o", "cross_attn_q",
        "cross_attn_k", "cross_attn_v", "cross_attn_o", "ffn_0",       "ffn_2"};
    const std::string start = "lora_unet_blocks_";
    std::map<std::string, std::set<std::string>> blocks;
    for (const auto& name : contents_.names) {
      const auto end = name.layer.find('_', start.size());
      if (name.layer.rfind(start, 0) != 0 || end == std::string::npos) return false;
      blocks[name.layer.substr(start.size(), end - start.size())].insert(
          name.layer.substr(end + 1));
    }
    for (size_t i = 0; i < blocks.size(); ++i) {
      const auto& layers = blocks[fmt::to_string(i)];
      if (!std::includes(layers.begin(), layers.end(), wanted.begin(), wanted.end())) return false;
    }
    return true;
  }

  static std::string spelling(const TensorName& name) {
    const bool ab = name.ending.rfind(".lora_A", 0) == 0 || name.ending.rfind(".lora_B", 0) == 0;
    return fmt::format("{} with {}", describe(name.naming), ab ? "lora_A" : "lora_down");
  }

  // That of its layer.
  Fate of_alpha(const TensorName& name) const {
    const auto layer = layers_.find(name.layer);
    return layer == layers_.end() ? kLost : layer->second;
  }

  std::string why() const {
    if (failed_ && !methods_.empty()) {
      return fmt::format("fails at {} under these names", fmt::join(methods_, ", "));
    }
    if (failed_ && !whole_blocks_) return "fails unless every layer of every block is adapted";
    if (failed_) return fmt::format("fails at the names of {}", fmt::join(namings_, ", "));
    if (!namings_.empty()) {
      return fmt::format("does not know the names of {}", fmt::join(namings_, ", "));
    }
    if (!methods_.empty()) {
      return fmt::format("does not know {} under these names", fmt::join(methods_, ", "));
    }
    return weak_ ? "passes over the alphas, so that the strength is another one"
                 : "does not know some of its tensors";
  }

  // Whether a layer has one side's name, which the other side spells differently.
  bool is_named_by(const TensorName& name, bool original) const {
    for (const auto& found : places_of(name.layer)) {
      if (found.family != index_) continue;
      const auto& kind = kind_at(families()[static_cast<size_t>(index_)], found.place);
      if (!kind.is_fused() && kind.original == kind.diffusers[0]) return false;
      return found.original == original;
    }
    return false;
  }

  // Prefixes of other trainers, which count as kohya's.
  std::optional<Fate> fate_of_prefix(const TensorName& name) const {
    const std::string& layer = name.layer;
    const auto starts = [&](const char* prefix) { return layer.rfind(prefix, 0) == 0; };
    if (starts("lycoris_")) return kLost;
    if (starts("lora_unet__")) {
      const bool fails = family_ == "FLUX" || family_ == "Wan" || family_ == "Qwen-Image";
      return fails ? kError : kLost;
    }
    if (!starts("lora_transformer_")) return std::nullopt;
    // OneTrainer's: of FLUX.1, with alphas, the attention and what is outside of blocks.
    if (family_ != "FLUX") return kLost;
    if (!alphas_ || is_named_by(name, /*original=*/true)) return kError;
    const bool in_block = layer.find("transformer_blocks_") != std::string::npos;
    return !in_block || layer.find("_attn_") != std::string::npos ? kRead : kLost;
  }

  Fate fate_of(const TensorName& name) const {
    if (const auto fate = fate_of_prefix(name)) return *fate;
    // Their own names of blocks are taken for the original ones, and changed.
    const bool in_block = name.layer.find("blocks") != std::string::npos;
    if (family_ == "Anima" && name.naming == N::original && in_block && is_named_by(name, false)) {
      return kLost;
    }
    if (name.ending == ".dora_scale") {
      return family_ == "Wan" && name.naming == N::original ? kError : kLost;
    }
    if (name.method == "DoRA") return name.naming == N::diffusers ? kRead : kLost;
    if (name.method == "LoKr") return fate_of_lokr(name);
    if (name.method == "biases") return fate_of_bias(name);
    if (name.method == "LoRA") return fate_of_factor(name);
    const bool dropped = family_ == "Wan" && name.part == "diff";  // with a warning
    const bool converted = alphas_ && (family_ == "Qwen-Image" || family_ == "Z-Image");
    const bool strict = is_strict(family_, name.naming) &&
                        !(family_ == "FLUX.2" && is_named_by(name, /*original=*/false));
    return (converted || strict) && !dropped ? kError : kLost;
  }

  Fate fate_of_factor(const TensorName& name) const {
    const bool down = name.ending == ".lora_down.weight" || name.ending == ".lora_up.weight";
    const bool ab = name.ending.rfind(".lora_A", 0) == 0 || name.ending.rfind(".lora_B", 0) == 0;
    // Old names of attention's layers are brought up to date where the prefix is known.
    if (!down && !ab) {
      const bool xlabs = family_ == "FLUX" && name.layer.find(".processor.") != std::string::npos;
      return (xlabs && !down_up_) || name.naming == N::diffusers ? kRead : kLost;
    }
    if (ab && down_up_ && family_.rfind("FLUX", 0) == 0) return kLost;
    // Of FLUX.1's layers outside of blocks the model's name gets lost on the way.
    const bool outside = name.model == "unet" && name.layer.find("blocks") == std::string::npos;
    if (family_ == "FLUX" && outside && name.naming != N::diffusers) return kLost;
    if (family_ == "Wan" && name.naming == N::kohya && !whole_blocks_) return kError;
    const bool translated =
        alphas_ || (defaults_ && (family_ == "Qwen-Image" || family_ == "Z-Image"));
    for (const auto& row : kFateRows) {
      const bool here =
          family_ == row.family && name.naming == row.naming && (row.form == kDownUp) == down;
      if (!here) continue;
      if (row.names == kOriginal && is_named_by(name, /*original=*/false)) continue;
      if (row.names == kDiffusers && is_named_by(name, /*original=*/true)) continue;
      const Fate fate = translated ? row.with_alphas : row.fate;
      return fate == kError && row.fate == kLost && !alphas_ ? kLost : fate;
    }
    return kLost;
  }

  Fate fate_of_lokr(const TensorName& name) const {
    if (name.naming == N::diffusers) {
      if (family_ == "Qwen-Image") return alphas_ ? kError : kRead;
      if (family_ == "Z-Image") return alphas_ ? kLost : kRead;
      return family_ == "FLUX" ? kRead : of_full_lokr();
    }
    if (name.naming == N::original) {
      if (family_ == "LTX" || family_ == "Anima") return of_full_lokr();
      if (family_ == "Z-Image") return is_named_by(name, /*original=*/true) ? kLost : kRead;
      if (family_ == "FLUX.2") {
        if (is_named_by(name, /*original=*/false)) return kError;
        return name.layer.find("_attn.qkv") == std::string::npos ? kRead : kLost;
      }
    }
    return is_strict(family_, name.naming) && family_ != "Z-Image" ? kError : kLost;
  }

  // Of two whole factors alpha is no strength.
  Fate of_full_lokr() const { return alphas_ && low_rank_lokr_ ? kWeak : kRead; }

  Fate fate_of_bias(const TensorName& name) const {
    if (name.part == "bias") return name.naming == N::diffusers ? kRead : kLost;
    if (family_ == "Wan" && name.naming == N::original) return kRead;
    if (family_ == "FLUX" && name.naming == N::kohya) return kRead;
    return is_strict(family_, name.naming) ? kError : kLost;
  }

  const Contents& contents_;
  std::string family_;
  int index_ = -1;
  bool alphas_ = false, defaults_ = false, failed_ = false, weak_ = false;
  bool low_rank_lokr_ = false, whole_blocks_ = true;
  bool down_up_ = false;  // FLUX.1 and FLUX.2: then nothing but these endings is looked at
  std::map<std::string, Fate> fates_, layers_;
  std::set<std::string> namings_, methods_;
};

}  // namespace

std::optional<Verdict> diffusers_of_transformer(const Contents& contents) {
  if (contents.families.size() != 1) return std::nullopt;
  const bool known = std::any_of(std::begin(kFateRows), std::end(kFateRows), [&](const Row& row) {
    return contents.families[0] == row.family;
  });
  if (!known) return std::nullopt;
  return DiffusersReader(contents).verdict();
}

}  // namespace lora_files
