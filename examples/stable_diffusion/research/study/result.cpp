// SPDX-License-Identifier: Apache-2.0
#include "research/study/result.h"

#include <algorithm>

#include <lightlora/file_io.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/distributed/fingerprint.h"
#include "support/files/json_file.h"

namespace study {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Quality, loss, cosine, median_rank, followed, asked, pictures)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Result, settings, rate, rank, aux_in, aux_out, trainable,
                                   native_bytes, exported_bytes, start_loss, moved,
                                   seconds_per_step, diverged, quality, curve)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Split, rank, energy, exported_bytes, quality)

namespace {

using nlohmann::json;

// What cannot be read counts as missing: the run is then done again.
template <typename Value, typename Read>
std::optional<Value> read_as(const std::string& path, const std::string& settings,
                             const Read& read) {
  try {
    const json value = sd::read_json_file(path);
    if (value.value("settings", json()) != json(settings)) return std::nullopt;
    return read(value).template get<Value>();
  } catch (const c10::Error&) {
    return std::nullopt;
  } catch (const json::exception&) {
    return std::nullopt;
  }
}

void write_json(const std::string& path, const json& value) {
  lightlora::AtomicFile file(path);
  file.write(value.dump(1) + "\n");
  file.commit();
}

}  // namespace

std::string weights_fingerprint(const std::string& model) {
  namespace fs = std::filesystem;
  std::vector<fs::path> files;
  if (fs::is_directory(model)) {
    for (const auto& entry : fs::recursive_directory_iterator(model)) {
      const bool weights = entry.path().extension() == ".safetensors";
      if (weights && entry.is_regular_file()) files.push_back(entry.path());  // no pipe or device
    }
    std::sort(files.begin(), files.end());
  } else {
    TORCH_CHECK(fs::is_regular_file(model), "'", model,
                "': expected a model, a folder or a file, got ",
                fs::exists(model) ? "a device or a pipe" : "nothing there");
    files.push_back(model);
  }
  distributed::Fingerprint print;
  std::vector<char> buffer(1 << 20);
  for (const auto& file : files) {
    std::ifstream stream(file, std::ios::binary);
    do {
      stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
      print.add(buffer.data(), static_cast<size_t>(stream.gcount()));
    } while (stream);
  }
  return print.hexadecimal();
}

std::optional<Result> load_result(const std::string& path, const std::string& settings) {
  return read_as<Result>(path, settings, [](const json& value) { return value; });
}

std::optional<std::vector<Split>> load_splits(const std::string& path,
                                              const std::string& settings) {
  return read_as<std::vector<Split>>(path, settings,
                                     [](const json& value) { return value.at("splits"); });
}

void save_result(const std::string& path, const Result& result) { write_json(path, result); }

void save_splits(const std::string& path, const std::vector<Split>& splits,
                 const std::string& settings) {
  write_json(path, {{"settings", settings}, {"splits", splits}});
}

Spread spread(const std::vector<double>& values) {
  Spread result;
  result.count = static_cast<int64_t>(values.size());
  const auto count = static_cast<double>(values.size());
  for (const double value : values) result.mean += value / count;
  for (const double value : values) result.deviation += std::pow(value - result.mean, 2);
  result.deviation = count > 1 ? std::sqrt(result.deviation / (count - 1)) : 0;
  return result;
}

namespace {

template <typename Value>
Spread spread_of(const Runs& runs, const Value& value) {
  std::vector<double> values;
  for (const auto& run : runs) values.push_back(value(run.quality));
  return spread(values);
}

}  // namespace

bool any_diverged(const Runs& runs) {
  return std::any_of(runs.begin(), runs.end(), [](const Result& run) { return run.diverged; });
}

Spread loss_of(const Runs& runs) {
  return spread_of(runs, [](const Quality& q) { return q.loss; });
}

Spread cosine_of(const Runs& runs) {
  return spread_of(runs, [](const Quality& q) { return q.cosine; });
}

Spread followed_of(const Runs& runs) {
  return spread_of(runs, [](const Quality& q) {
    return q.asked == 0 ? 0.0 : static_cast<double>(q.followed) / static_cast<double>(q.asked);
  });
}

}  // namespace study
