// SPDX-License-Identifier: Apache-2.0
// The half of doctor.h that prints.
#include <nlohmann/json.hpp>

#include "lora_files/doctor.h"
#include "support/cli/fmt.h"
#include "support/cli/message.h"

namespace lora_files {

void print_diagnosis(const std::string& path, const Diagnosis& d) {
  const auto row = [](const char* name, const std::string& value) {
    fmt::print("{:<9} {}\n", name, cli::printable(value));
  };
  const auto list = [](const std::vector<std::string>& values, const char* none) {
    return values.empty() ? none : fmt::format("{}", fmt::join(values, ", "));
  };
  row("file", path);
  row("for", d.families.size() > 1 ? fmt::format("{}; its names alone do not tell which",
                                                 fmt::join(d.families, " or "))
                                   : list(d.families, "unknown"));
  row("trainer", d.trainer.empty() ? "not said" : d.trainer);
  row("method", list(d.methods, "none"));
  row("names", list(d.namings, "none"));
  row("layers",
      fmt::format("{} in {} tensors, rank {}, alpha {}", d.layers, d.tensors, d.ranks, d.alphas));
  fmt::print("\n{}\n", d.findings.empty() ? "Nothing is wrong with it." : "What is wrong with it");
  for (const auto& finding : d.findings) {
    const auto mend = finding.mend.empty() ? "" : "; hint: " + finding.mend;
    fmt::print("- {}\n", cli::printable(finding.what + mend));
  }
  if (d.verdicts.empty()) return;
  fmt::print("\n{:<11} {:<16} {}\n", "program", "loads", "why not all, and what mends it");
  for (const auto& verdict : d.verdicts) {
    const bool whole = verdict.loads == d.tensors;
    const std::string loads = whole           ? "all"
                              : verdict.fails ? "nothing, error"
                              : verdict.loads ? fmt::format("{} of {}", verdict.loads, d.tensors)
                                              : "nothing";
    const std::string mend =
        verdict.mend.empty() ? "" : fmt::format("; convert_lora --to {}", verdict.mend);
    const std::string line =
        fmt::format("{:<11} {:<16} {}{}", verdict.program, loads, verdict.why, mend);
    fmt::print("{}\n", cli::printable(line.substr(0, line.find_last_not_of(' ') + 1)));
  }
}

void print_diagnosis_json(const std::string& path, const Diagnosis& d) {
  nlohmann::ordered_json json{
      {"file", path},         {"families", d.families}, {"trainer", d.trainer},
      {"methods", d.methods}, {"names", d.namings},     {"layers", d.layers},
      {"tensors", d.tensors}, {"ranks", d.ranks},       {"alphas", d.alphas}};
  json["findings"] = nlohmann::ordered_json::array();
  for (const auto& finding : d.findings) {
    json["findings"].push_back({{"what", finding.what}, {"hint", finding.mend}});
  }
  json["programs"] = nlohmann::ordered_json::array();
  for (const auto& v : d.verdicts) {
    json["programs"].push_back({{"program", v.program},
                                {"loads", v.loads},
                                {"fails", v.fails},
                                {"why", v.why},
                                {"to", v.mend}});
  }
  fmt::print("{}\n",
             json.dump(2, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace));
}

}  // namespace lora_files
