// SPDX-License-Identifier: Apache-2.0
#include "lora_files/readers.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "lora_files/diffusers_reader.h"
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
  if (auto of_transformer = diffusers_of_transformer(contents)) return *of_transformer;
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

// What PEFT takes for the method of its configuration; a folder has one.
const Methods& methods_of(const std::string& peft_type) {
  static const std::map<std::string, Methods> all{{"LORA", {"LoRA", "DoRA", "biases"}},
                                                  {"ADALORA", {"LoRA", "AdaLoRA"}},
                                                  {"LOHA", {"LoHa"}},
                                                  {"LOKR", {"LoKr"}},
                                                  {"IA3", {"(IA)3"}},
                                                  {"VERA", {"VeRA"}},
                                                  {"OFT", {"OFT v2"}},
                                                  {"BOFT", {"BOFT"}},
                                                  {"HIRA", {"HiRA"}},
                                                  {"MISS", {"MiSS"}},
                                                  {"GRALORA", {"GraLoRA"}},
                                                  {"SHIRA", {"SHiRA"}},
                                                  {"RANDLORA", {"RandLoRA"}},
                                                  {"HRA", {"HRA"}},
                                                  {"DELORA", {"DeLoRA"}}};
  const auto found = all.find(peft_type);
  return found == all.end() ? all.at("LORA") : found->second;
}

Verdict peft(const Contents& contents) {
  Verdict verdict =
      by_tables("PEFT", contents, {Naming::peft}, methods_of(contents.peft_type), "peft");
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

// Parts of methods whose delta depends on the model's weights, so that no other method can hold it.
const std::set<std::string> kOfModel{"oft_R", "boft_R",   "hira_A",     "miss_block",  "oft_blocks",
                                     "a1",    "q_layer",  "on_input",   "ia3_l",       "vera_A",
                                     "hra_u", "delora_A", "randlora_A", "shira_weight"};

// Whether the file can be written in a format without the model.
bool can_be_in(const Contents& contents, const std::string& format) {
  return !any(contents, [&](const TensorName& name) {
    if (kOfModel.count(name.part) == 0) return false;
    const bool of_lycoris =
        name.part == "oft_blocks" || name.part == "a1" || name.part == "on_input";
    return format == "peft" ? name.naming != Naming::peft : format != "kohya" || !of_lycoris;
  });
}

}  // namespace

std::vector<Verdict> verdicts(const Contents& contents) {
  std::vector<Verdict> all{diffusers(contents), peft(contents), comfyui(contents), a1111(contents),
                           sd_scripts(contents)};
  for (auto& verdict : all) {
    if (!can_be_in(contents, verdict.mend)) verdict.mend.clear();
  }
  return all;
}

}  // namespace lora_files
