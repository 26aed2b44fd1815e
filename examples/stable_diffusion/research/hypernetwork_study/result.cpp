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

// Of each thing the mean over the seeds.
std::vector<double> of_things(const std::vector<std::vector<Run>>& runs, size_t point,
                              const OfPoint& value) {
  std::vector<double> means(runs.at(0).size(), 0.0);
  for (const auto& things : runs) {
    for (size_t i = 0; i < means.size(); ++i) {
      means[i] += value(things.at(i).points.at(point)) / static_cast<double>(runs.size());
    }
  }
  return means;
}

// With the standard error of the mean.
study::Spread over_things(const std::vector<double>& of_things) {
  auto spread = study::spread(of_things);
  spread.deviation /= std::sqrt(static_cast<double>(of_things.size()));
  return spread;
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

Summary summarise(const Method& method, const std::vector<std::vector<Run>>& runs, bool by_things) {
  Summary summary;
  summary.method = method;
  const Run& first = runs.at(0).at(0);
  summary.rate = first.rate;
  summary.bytes = first.bytes;
  summary.trained = first.trained;
  for (size_t i = 0; i < method.points.size(); ++i) {
    const auto of = [&](const OfPoint& value) {
      return by_things ? over_things(of_things(runs, i, value)) : over_seeds(runs, i, value);
    };
    Summary::AtPoint point;
    if (by_things) {
      point.likeness_of = of_things(runs, i, [](const Point& p) { return p.scores.likeness; });
      point.features_of = of_things(runs, i, [](const Point& p) { return p.scores.features; });
    }
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

int compare_by_thing(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> differences;
  for (size_t i = 0; i < a.size(); ++i) differences.push_back(a[i] - b.at(i));
  const auto spread = over_things(differences);
  if (spread.count < 2 || std::abs(spread.mean) <= 2 * spread.deviation) return 0;
  return spread.mean < 0 ? -1 : 1;
}

}  // namespace hyperstudy
