// SPDX-License-Identifier: Apache-2.0
#include "research/study/pictures.h"

#include <algorithm>
#include <utility>

#include "research/study/chart.h"
#include "support/images/load.h"
#include "support/images/resize.h"
#include "support/images/sheet.h"

namespace study {

namespace {

// The mean of the seeds' curves.
Line curve_of(const Row& row) {
  Line line{row.variant.name, {}};
  const auto count = static_cast<double>(row.own.size());
  for (size_t i = 0; i < row.own.front().curve.size(); ++i) {
    double sum = 0;
    for (const auto& run : row.own) sum += run.curve.at(i).second;
    line.points.emplace_back(row.own.front().curve[i].first, sum / count);
  }
  return line;
}

}  // namespace

images::Image contact_sheet(const Study& study) {
  images::Sheet sheet;
  sheet.title = "Each at its own rate, same noise; the variants from one learned word";
  sheet.column_labels = study.settings.prompts();
  std::vector<images::Image> photos;
  for (const auto& path : images::list_images(study.settings.subject).images) {
    if (photos.size() == sheet.column_labels.size()) break;
    photos.push_back(images::resize(images::load_image(path), 64, 64, images::Filter::kLanczos));
  }
  sheet.row_labels.push_back("trained on");
  sheet.rows.push_back(std::move(photos));
  for (const auto* rows : {&study.words, &study.rows}) {
    for (const auto& row : *rows) {
      std::vector<images::Image> pictures;
      for (const auto& file : row.own.front().quality.pictures) {
        pictures.push_back(images::load_image(file));
      }
      sheet.row_labels.push_back(row.variant.name);
      sheet.rows.push_back(std::move(pictures));
    }
  }
  return images::draw_sheet(sheet);
}

images::Image curves_chart(const Study& study) {
  Chart chart{"Validation loss, each at its own rate", "steps", "loss", {}, 1, 0};
  const double start = study.rows.front().described().start_loss;
  for (const auto& row : study.rows) {
    if (row.diverged()) continue;
    chart.lines.push_back(curve_of(row));
    for (const auto& point : chart.lines.back().points) {
      chart.bottom = std::min(chart.bottom, point.second);
    }
  }
  chart.bottom *= 0.95;
  chart.top = start * 1.1;
  return draw_chart(chart);
}

std::optional<images::Image> ranks_chart(const Study& study) {
  Chart chart{"Loss against rank", "rank", "loss", {}, 1, 0};
  const auto add = [&](const std::string& name, const std::vector<Runs>& points) {
    Line line{name, {}};
    for (const auto& runs : points) {
      if (!any_diverged(runs)) line.points.emplace_back(runs.front().rank, loss_of(runs).mean);
    }
    if (!line.points.empty()) chart.lines.push_back(std::move(line));
  };
  add("Classic", study.classic_ranks);
  add("Light", study.light_ranks);
  Line cut{"Fused, cut", {}};
  for (const auto& split : study.splits) cut.points.emplace_back(split.rank, split.quality.loss);
  if (!cut.points.empty()) chart.lines.push_back(std::move(cut));
  chart.top = 0;
  for (const auto& line : chart.lines) {
    for (const auto& point : line.points) {
      chart.bottom = std::min(chart.bottom, point.second);
      chart.top = std::max(chart.top, point.second);
    }
  }
  if (chart.lines.empty()) return std::nullopt;
  chart.bottom *= 0.98;
  chart.top *= 1.02;
  return draw_chart(chart);
}

}  // namespace study
