// SPDX-License-Identifier: Apache-2.0
#include "training/own_flags.h"

#include <c10/util/Exception.h>

#include <cstdlib>

#include "support/cli/fmt.h"
#include "support/cli/format.h"

namespace training {

using Kind = lightlora::OwnOption::Kind;

void OwnFlags::add_to(cli::App& app, const std::vector<std::string>& variants) {
  std::map<std::string, std::string> takers;
  for (const auto& name : variants) {
    for (const auto& option : lightlora::find_variant(name).options) {
      auto& who = takers[option.name];
      who += (who.empty() ? "" : ", ") + name;
    }
  }
  for (const auto& name : variants) {
    for (const auto& option : lightlora::find_variant(name).options) {
      const auto [value, is_new] =
          values_.try_emplace(option.name, Value{option.kind, option.usual});
      if (!is_new) continue;
      bind(app, option, option.help + " (" + takers[option.name] + ")", value->second);
    }
  }
}

void OwnFlags::bind(cli::App& app, const lightlora::OwnOption& option, const std::string& help,
                    Value& value) {
  const std::string flag = "--" + option.name;
  switch (value.kind) {
    case Kind::toggle:
      value.toggle = option.usual == "1";
      app.add_flag(flag, value.toggle, help);
      return;
    case Kind::integer:
      value.integer = std::strtoll(option.usual.c_str(), nullptr, 10);
      app.add_option(flag, value.integer, help);
      return;
    case Kind::natural:
      value.natural = std::strtoull(option.usual.c_str(), nullptr, 10);
      app.add_option(flag, value.natural, help);
      return;
    case Kind::real:
      value.real = std::strtod(option.usual.c_str(), nullptr);
      value.usual = value.current();
      app.add_option(flag, value.real, help);
      return;
    case Kind::text:
    case Kind::list:
      value.text = option.usual;
      app.add_option(flag, value.text, help);
      return;
  }
}

std::string OwnFlags::Value::current() const {
  switch (kind) {
    case Kind::toggle:
      return toggle ? "1" : "0";
    case Kind::integer:
      return fmt::to_string(integer);
    case Kind::natural:
      return fmt::to_string(natural);
    case Kind::real:
      return cli::format_exact(real);
    case Kind::text:
    case Kind::list:
      return text;
  }
  return text;
}

std::vector<std::string> OwnFlags::given() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : values_) {
    if (value.current() != value.usual) names.push_back(name);
  }
  return names;
}

lightlora::OwnOptions OwnFlags::of(const std::string& variant) const {
  lightlora::OwnOptions own;
  for (const auto& [name, value] : values_) {
    if (value.current() != value.usual) own[name] = value.current();
  }
  const auto& entry = lightlora::find_variant(variant);
  for (const auto& item : own) {
    TORCH_CHECK_VALUE(entry.takes(item.first), "--", item.first,
                      " cannot be combined with --variant ", variant, ": it has no such option");
  }
  if (const auto start = own.find("init_lora_weights"); start != own.end()) {
    for (const char* from_data : {"eva", "corda", "lora_ga"}) {
      TORCH_CHECK_VALUE(
          start->second != from_data, "--init_lora_weights ", from_data,
          " cannot be combined with this program: it starts from batches that have ",
          "run before; hint: pissa, olora, mica or svd_down, or start_from_data in a ",
          "program of your own");
    }
  }
  TORCH_CHECK_VALUE(own.count("channel_scaling") == 0, "--channel_scaling cannot be combined with ",
                    "this program: the sizes come from batches that have run before; hint: ",
                    "start_from_data in a program of your own");
  return entry.canonical(own, "--variant " + variant);
}

}  // namespace training
