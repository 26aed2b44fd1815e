// SPDX-License-Identifier: Apache-2.0
#include "lora_files/readers.h"

#include <algorithm>
#include <functional>
#include <set>

#include "support/cli/fmt.h"

namespace lora_files {
namespace {

using Namings = std::set<Naming>;
using Methods = std::set<std::string>;

bool is_kohya(const TensorName& name) {
  return name.naming == Naming::kohya || name.naming == Naming::kohya_original;
}

bool is_for(const Contents& contents, const char* family) {
  return contents.families.size() == 1 && contents.families[0] == family;
}

bool any(const Contents& contents, const std::function<bool(const TensorName&)>& is) {
  return std::any_of(contents.names.begin(), contents.names.end(), is);
}

// Counts what is kept, and says of the rest in one sentence which methods or spellings it has.
void leave_out(Verdict& verdict, const Contents& contents,
               const std::function<bool(const TensorName&)>& reads, const std::string& because) {
  std::set<std::string> left;
  verdict.loads = 0;
  for (const auto& name : contents.names) {
    if (reads(name)) {
      ++verdict.loads;
    } else {
      left.insert(because == "method" ? name.method : describe(name.naming));
    }
  }
  if (left.empty()) return;
  verdict.why =
      fmt::format(because == "method" ? "does not know {}" : "does not know the names of {}",
                  fmt::join(left, ", "));
}

// A program that takes names and methods one by one, and passes over the others.
Verdict by_tables(const char* program, const Contents& contents, const Namings& namings,
                  const Methods& methods, const char* format) {
  Verdict verdict;
  verdict.program = program;
  leave_out(
      verdict, contents, [&](const TensorName& name) { return namings.count(name.naming) > 0; },
      "naming");
  if (verdict.why.empty()) {
    leave_out(
        verdict, contents,
        [&](const TensorName& name) {
          return name.method.empty() || methods.count(name.method) > 0;
        },
        "method");
  }
  if (!verdict.why.empty()) verdict.mend = format;
  return verdict;
}

Verdict fails(Verdict verdict, const std::string& why, const char* format = "diffusers") {
  verdict.loads = 0;
  verdict.fails = true;
  verdict.why = why;
  verdict.mend = format;
  return verdict;
}

Verdict diffusers_of_kohya(Verdict verdict, const Contents& contents) {
  const bool other = any(contents, [](const TensorName& name) {
    return !name.method.empty() && name.method != "LoRA" && name.method != "DoRA";
  });
  if (other) return fails(verdict, "reads plain LoRA alone in a file of kohya's names");
  if (contents.bundled) return fails(verdict, "does not read kohya's names beside an embedding");
  const bool original =
      any(contents, [](const TensorName& name) { return name.naming == Naming::kohya_original; });
  const bool translated = any(contents, [](const TensorName& name) {
    return name.naming == Naming::kohya && name.model == "unet";
  });
  if (original && !is_for(contents, "SDXL")) {
    return fails(verdict, "knows the original block names of SDXL alone");
  }
  leave_out(
      verdict, contents,
      [&](const TensorName& name) {
        return name.method != "DoRA" &&
               !(original && translated && name.naming == Naming::kohya_original);
      },
      original && translated ? "naming" : "method");
  if (!verdict.why.empty()) verdict.mend = "diffusers";
  return verdict;
}

// Whose names of transformer models diffusers 0.42.1 has converters for; see its
// loaders/lora_pipeline.py, `lora_state_dict` of each model.
struct TransformerNames {
  const char* family;
  bool kohya, original;
};

constexpr TransformerNames kTransformerNames[] = {
    {"FLUX", true, true},   {"FLUX.2", true, true},  {"Qwen-Image", true, true},
    {"Wan", true, true},    {"Z-Image", true, true}, {"LTX", false, true},
    {"SD 3", false, false}, {"Anima", false, true}};

const TransformerNames* transformer_names(const Contents& contents) {
  for (const auto& names : kTransformerNames) {
    if (is_for(contents, names.family)) return &names;
  }
  return nullptr;
}

Verdict diffusers_of_transformer(Verdict verdict, const Contents& contents,
                                 const TransformerNames& names) {
  const bool flux = is_for(contents, "FLUX");
  leave_out(
      verdict, contents,
      [&](const TensorName& name) {
        if (name.ending == ".dora_scale") return false;
        const bool peft =
            name.ending.rfind(".lora_A", 0) == 0 || name.ending.rfind(".lora_B", 0) == 0;
        // FLUX.1's converter goes by kohya's endings, Z-Image's cuts layers that have them alone.
        const bool fused = name.layer.rfind(".attention.qkv") != std::string::npos;
        const bool original = names.original && !(peft && (flux || fused));
        return name.naming == Naming::diffusers || (is_kohya(name) && names.kohya) ||
               (name.naming == Naming::original && original);
      },
      "naming");
  if (!verdict.why.empty()) verdict.mend = "diffusers";
  return verdict;
}

// In sorted order the first name decides how all are read.
bool drops_old_spelling(const Contents& contents) {
  std::string first;
  bool old = false;
  for (const auto& name : contents.names) {
    if (name.model != "unet") continue;
    if (first.empty() || name.name < first) first = name.name;
    old = old || name.ending.rfind(".lora.", 0) == 0;
  }
  return old && first.find("lora_A") != std::string::npos;
}

Verdict diffusers(const Contents& contents) {
  Verdict verdict;
  verdict.program = "diffusers";
  if (const auto* names = transformer_names(contents)) {
    return diffusers_of_transformer(verdict, contents, *names);
  }
  const auto all_kohya = std::all_of(contents.names.begin(), contents.names.end(), is_kohya);
  if (all_kohya) return diffusers_of_kohya(verdict, contents);
  const bool without_lora = any(contents, [](const TensorName& name) {
    return name.name.find("lora") == std::string::npos && name.part != "magnitude";
  });
  if (without_lora)
    return fails(verdict, "refuses files with a name in which there is no \"lora\"");
  if (any(contents, [](const TensorName& n) { return n.naming == Naming::diffusers_doubled; })) {
    return fails(verdict, "finds no layer below unet.unet.");
  }
  const bool drops = drops_old_spelling(contents);
  const auto reads = [&](const TensorName& name) {
    const bool old = name.model == "unet" && name.ending.rfind(".lora.", 0) == 0;
    return name.naming == Naming::diffusers && !(drops && old) && name.method != "DoRA";
  };
  leave_out(verdict, contents, reads, "naming");
  if (drops && verdict.loads < static_cast<int64_t>(contents.names.size())) {
    verdict.why = "passes over .lora.down and .lora.up where the first name is a lora_A";
  }
  if (verdict.loads == 0) verdict.why += ", and says so in a warning alone";
  if (!verdict.why.empty()) verdict.mend = "diffusers";
  return verdict;
}

Verdict peft(const Contents& contents) {
  Verdict verdict = by_tables("PEFT", contents, {Naming::peft}, {"LoRA", "DoRA"}, "peft");
  if (verdict.loads > 0 && !contents.configured) {
    return fails(verdict, "wants an adapter_config.json beside the file", "peft");
  }
  if (verdict.loads == 0) verdict.why += "; it loads nothing, with a warning alone";
  return verdict;
}

const Methods kOfComfyUI{"LoRA",
                         "LoRA with Tucker cores",
                         "DoRA",
                         "LoHa",
                         "LoKr",
                         "GLoRA",
                         "OFT",
                         "BOFT",
                         "biases",
                         "norms",
                         "whole differences",
                         "whole weights"};

Verdict comfyui(const Contents& contents) {
  return by_tables(
      "ComfyUI", contents,
      {Naming::kohya, Naming::kohya_original, Naming::diffusers, Naming::bare, Naming::original},
      kOfComfyUI, "kohya");
}

const Methods kOfA1111{
    "LoRA",   "LoRA with Tucker cores", "DoRA", "LoHa", "LoKr", "GLoRA", "OFT", "(IA)3", "norms",
    "biases", "whole differences"};

Verdict a1111(const Contents& contents) {
  Verdict verdict =
      by_tables("A1111", contents, {Naming::kohya, Naming::kohya_original}, kOfA1111, "kohya");
  const bool of_unet = std::all_of(
      contents.families.begin(), contents.families.end(), [](const std::string& family) {
        return family.rfind("SD 1", 0) == 0 || family == "SD 2.x" || family == "SDXL";
      });
  if (!of_unet) return fails(verdict, "has no models of this family", "");
  return verdict;
}

Verdict sd_scripts(const Contents& contents) {
  Verdict verdict = by_tables("sd-scripts", contents, {Naming::kohya, Naming::kohya_original},
                              {"LoRA", "DoRA"}, "kohya");
  const bool foreign = is_for(contents, "SDXL") && any(contents, [](const TensorName& name) {
                         return name.model == "unet" && name.naming == Naming::kohya;
                       });
  if (verdict.why.empty() && foreign) {
    leave_out(
        verdict, contents,
        [](const TensorName& name) {
          return name.model != "unet" || name.naming == Naming::kohya_original;
        },
        "naming");
    verdict.why = "names the blocks of SDXL's UNet as the original does";
  }
  return verdict;
}

}  // namespace

std::vector<Verdict> verdicts(const Contents& contents) {
  return {diffusers(contents), peft(contents), comfyui(contents), a1111(contents),
          sd_scripts(contents)};
}

}  // namespace lora_files
