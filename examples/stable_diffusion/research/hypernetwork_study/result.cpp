// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork_study/result.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "support/files/json_file.h"

namespace hyperstudy {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Scores, likeness, features, recognised, followed, drift)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Point, steps, seconds, scores, pictures)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Run, settings, bytes, trained, rate, points)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Trained, settings, minutes, values, parameters, bytes,
                                   identities)

namespace {

// What cannot be read counts as missing: it is then done again.
template <typename Value>
std::optional<Value> read_as(const std::string& path, const std::string& settings) {
  try {
    const auto value = sd::read_json_file(path).get<Value>();
    if (value.settings != settings) return std::nullopt;
    return value;
  } catch (const c10::Error&) {
    return std::nullopt;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

void write_as(const std::string& path, const nlohmann::json& value) {
  lightlora::AtomicFile file(path);
  file.write(value.dump(1) + "\n");
  file.commit();
}

using OfPoint = std::function<double(const Point&)>;

// Of each seed the mean over the things.
study::Spread over_seeds(const std::vector<std::vector<Run>>& runs, size_t point,
                         const OfPoint& value) {
  std::vector<double> means;
  for (const auto& things : runs) {
    double sum = 0;
    for (const auto& run : things) sum += value(run.points.at(point));
    means.push_back(sum / static_cast<double>(things.size()));
  }
  return study::spread(means);
}

}  // namespace

std::optional<Run> load_run(const std::string& path, const std::string& settings) {
  return read_as<Run>(path, settings);
}

void save_run(const std::string& path, const Run& run) { write_as(path, run); }

std::optional<Trained> load_trained(const std::string& path, const std::string& settings) {
  return read_as<Trained>(path, settings);
}

void save_trained(const std::string& path, const Trained& trained) { write_as(path, trained); }

Summary summarise(const Method& method, const std::vector<std::vector<Run>>& runs) {
  Summary summary;
  summary.method = method;
  const Run& first = runs.at(0).at(0);
  summary.rate = first.rate;
  summary.bytes = first.bytes;
  summary.trained = first.trained;
  for (size_t i = 0; i < method.points.size(); ++i) {
    const auto of = [&](const OfPoint& value) { return over_seeds(runs, i, value); };
    Summary::AtPoint point;
    point.steps = method.points[i];
    point.seconds = of([](const Point& p) { return p.seconds; });
    point.likeness = of([](const Point& p) { return p.scores.likeness; });
    point.features = of([](const Point& p) { return p.scores.features; });
    point.recognised = of([](const Point& p) { return p.scores.recognised; });
    point.followed = of([](const Point& p) { return p.scores.followed; });
    point.drift = of([](const Point& p) { return p.scores.drift; });
    for (const auto& run : runs[0]) point.pictures.push_back(run.points.at(i).pictures.at(0));
    summary.points.push_back(std::move(point));
  }
  return summary;
}

int compare(const study::Spread& a, const study::Spread& b) {
  const double difference = a.mean - b.mean;
  if (std::min(a.count, b.count) < 2) return 0;
  if (std::abs(difference) <= a.deviation + b.deviation) return 0;
  return difference < 0 ? -1 : 1;
}

}  // namespace hyperstudy
