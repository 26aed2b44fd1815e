// SPDX-License-Identifier: Apache-2.0
#include "support/cli/config.h"

#include <lightlora/file_io.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>

#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/cli/message.h"
#include "support/cli/toml_text.h"

namespace cli {

namespace {

[[noreturn]] void fail(const std::string& path, const toml::source_region& where,
                       const std::string& message) {
  throw std::invalid_argument(fmt::format("'{}' line {}: {}", path, where.begin.line, message));
}

// Each dot of a key makes a table in a table, without end as far as the parser is concerned. A key
// stands on one line, so this needs no parser.
void check_depth(const std::string& path, const std::string& text) {
  constexpr int kMostDots = 1000;
  int dots = 0;
  for (const char c : text) {
    dots = c == '\n' ? 0 : dots + (c == '.' ? 1 : 0);
    if (dots > kMostDots) {
      throw std::invalid_argument(
          fmt::format("'{}': expected lines of at most {} dots, got more", path, kMostDots));
    }
  }
}

}  // namespace

std::string read_toml(const std::string& path) {
  constexpr uint64_t kMostBytes = 1'000'000;
  if (!std::filesystem::exists(path)) {
    throw std::invalid_argument("'" + path + "': expected a TOML file, got none that can be read");
  }
  std::string text = lightlora::read_file(path, kMostBytes);
  check_depth(path, text);
  return text;
}

toml::table parse_toml(const std::string& path) {
  try {
    return toml::parse(read_toml(path), path);
  } catch (const toml::parse_error& error) {
    TORCH_CHECK(false, "'", path, "' line ", error.source().begin.line,
                ": expected TOML, got: ", std::string(error.description()));
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK(false, error.what());
  }
}

namespace {

constexpr const char* kBytes = "bytes";

// The bytes of a text that TOML cannot hold, from a table that `bytes_of` wrote; null for another
// node.
const toml::value<std::string>* bytes_in(const toml::node& node) {
  const auto* table = node.as_table();
  return table && table->size() == 1 ? table->get_as<std::string>(kBytes) : nullptr;
}

// Each character is one byte, U+0000 to U+00FF.
std::string text_of_bytes(const std::string& path, const toml::value<std::string>& characters) {
  std::string result;
  const std::string& text = characters.get();
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      result += text[i];
    } else if (lead <= 0xC3) {
      result +=
          static_cast<char>((lead & 3U) << 6 | (static_cast<unsigned char>(text[++i]) & 0x3FU));
    } else {
      fail(path, characters.source(),
           "expected characters up to U+00FF, one for each byte, got others");
    }
  }
  return result;
}

// A value as the command line would spell it.
std::string value_text(const std::string& path, const toml::node& node) {
  if (const auto* bytes = bytes_in(node)) return text_of_bytes(path, *bytes);
  // Exact: toml++ turns one kind into another before it looks, 1e97 into a whole number too.
  if (const auto text = node.value_exact<std::string>()) return *text;
  if (const auto flag = node.value_exact<bool>()) return *flag ? "true" : "false";
  if (const auto number = node.value_exact<int64_t>()) return fmt::to_string(*number);
  if (const auto number = node.value_exact<double>()) return format_exact(*number);
  fail(path, node.source(),
       "expected text, a number, true, false or a list of these, got another value");
}

void collect(const std::string& path, const toml::table& table, std::vector<Setting>& settings) {
  for (const auto& [key, node] : table) {
    if (const auto* inner = node.as_table(); inner && !bytes_in(node)) {
      collect(path, *inner, settings);
      continue;
    }
    Setting setting{std::string(key.str()), ValueKind::text, {}};
    if (const auto* list = node.as_array()) {
      setting.kind = ValueKind::list;
      for (const auto& item : *list) setting.values.push_back(value_text(path, item));
    } else {
      setting.values.push_back(value_text(path, node));
    }
    settings.push_back(std::move(setting));
  }
}

// Names of files may be any bytes. These stand as a table of one text, in which each character is
// one byte.
std::string bytes_of(const std::string& text) {
  std::string result;
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (code < 0x20 || code >= 0x7F || c == '"' || c == '\\') {
      result += fmt::format("\\u{:04X}", code);
    } else {
      result += c;
    }
  }
  return fmt::format("{{ {} = \"{}\" }}", kBytes, result);
}

// A basic string: everything but quotes, backslashes and control characters stands for itself.
std::string quoted(const std::string& text) {
  if (!is_utf8(text)) return bytes_of(text);
  std::string result = "\"";
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (code < 0x20 || code == 0x7F) {
      result += fmt::format("\\u{:04X}", code);
    } else {
      if (c == '"' || c == '\\') result += '\\';
      result += c;
    }
  }
  return result + '"';
}

bool fits_toml(const std::string& integer) {
  errno = 0;
  std::strtoll(integer.c_str(), nullptr, 10);
  return errno == 0;
}

std::string toml_value(const Setting& setting) {
  if (setting.kind == ValueKind::text) return quoted(setting.values.at(0));
  // TOML's integers end at 2^63 - 1; a text is read back as the number that it is.
  if (setting.kind == ValueKind::integer && !fits_toml(setting.values.at(0))) {
    return quoted(setting.values.at(0));
  }
  if (setting.kind != ValueKind::list) return setting.values.at(0);
  std::vector<std::string> values;
  for (const auto& value : setting.values) values.push_back(quoted(value));
  return fmt::format("[{}]", fmt::join(values, ", "));
}

}  // namespace

std::string Setting::text() const { return fmt::format("{}", fmt::join(values, ", ")); }

std::vector<Setting> read_config(const std::string& path) {
  std::vector<Setting> settings;
  const std::string text = read_toml(path);
  try {
    collect(path, toml::parse(text, path), settings);
  } catch (const toml::parse_error& error) {
    fail(path, error.source(),
         "expected TOML, such as max_train_steps = 500, got: " + std::string(error.description()));
  }
  return settings;
}

std::string config_text(const std::vector<Setting>& settings) {
  std::string text;
  for (const auto& setting : settings) {
    text += fmt::format("{} = {}\n", setting.name, toml_value(setting));
  }
  return text;
}

void write_config(const std::string& path, const std::string& program,
                  const std::vector<Setting>& settings) {
  lightlora::AtomicFile file(path);
  file.write(fmt::format("# Repeats the run: {} --config config.toml\n{}", program,
                         config_text(settings)));
  file.commit();
}

}  // namespace cli
