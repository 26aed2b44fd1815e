// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork_study/page.h"

#include <ATen/Parallel.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <filesystem>

#include "research/study/chart.h"
#include "research/study/page.h"
#include "support/cli/fmt.h"
#include "support/files/outputs.h"
#include "support/images/load.h"
#include "support/images/png.h"
#include "support/images/resize.h"
#include "support/images/sheet.h"

namespace hyperstudy {
namespace {

namespace fs = std::filesystem;
using AtPoint = Summary::AtPoint;
using study::rounded;
using study::with_spread;

std::string row_of(const std::vector<std::string>& texts) {
  return fmt::format("| {} |\n", fmt::join(texts, " | "));
}

std::string head_of(const std::vector<std::string>& texts) {
  return row_of(texts) + row_of(std::vector<std::string>(texts.size(), "---"));
}

const std::vector<std::string> kColumns{"",
                                        "likeness, pixels",
                                        "likeness, features",
                                        "recognised",
                                        "background as asked",
                                        "drift",
                                        "s",
                                        "kB"};

std::string quality(const std::string& title, const AtPoint& point, int64_t bytes) {
  return row_of({title, with_spread(point.likeness, 3), with_spread(point.features, 3),
                 with_spread(point.recognised, 2), with_spread(point.followed, 2),
                 with_spread(point.drift, 3), with_spread(point.seconds, 2),
                 bytes == 0 ? "-" : rounded(static_cast<double>(bytes) / 1000, 1)});
}

std::string after(const Study& study, const char* method) {
  const auto& summary = study.of(method);
  return quality(summary.method.title, summary.last(), summary.bytes);
}

// The method before any tuning; what it is called then.
std::string alone(const Study& study, const char* method, const std::string& title) {
  return quality(title, study.of(method).first(), 0);
}

std::string first_table(const Study& study) {
  return head_of(kColumns) + after(study, kRelaxed) + after(study, kDreamBooth) +
         after(study, kDreamBoothLong) + (study.has(kWord) ? after(study, kWord) : "") +
         alone(study, kZero, "no personalisation");
}

std::string parts_table(const Study& study) {
  std::string text =
      head_of(kColumns) + after(study, kRelaxed) + alone(study, kRelaxed, "hypernetwork only");
  if (study.has(kOnce)) text += after(study, kOnce) + alone(study, kOnce, "k = 1 only");
  return text + after(study, kContinued) + after(study, kZero);
}

std::string controls_table(const Study& study) {
  return head_of(kColumns) + after(study, kRelaxed) + after(study, kMean) + after(study, kNearest) +
         after(study, kShuffled) + alone(study, kRelaxed, "the prediction alone") +
         alone(study, kMean, "the mean adapter alone") +
         alone(study, kNearest,
               study.settings.by_things() ? "the prediction for the nearest identity alone"
                                          : "the nearest identity's adapter alone") +
         alone(study, kShuffled, "the prediction for another picture alone");
}

std::string networks_table(const Study& study) {
  std::string text =
      head_of({"network", "things", "values predicted", "million parameters", "file, MB", "minutes",
               "alone: pixels", "alone: features", "tuned: pixels", "tuned: features"});
  for (size_t i = 0; i < study.networks.size(); ++i) {
    const auto& name = study.networks[i].name;
    const auto& summary = study.of(name == kMain ? kRelaxed : name.c_str());
    std::vector<double> minutes;
    for (const auto& one : study.trained[i]) minutes.push_back(one.minutes);
    const auto& trained = study.trained[i].front();
    text += row_of(
        {study.networks[i].title, fmt::to_string(trained.identities),
         fmt::to_string(trained.values), rounded(static_cast<double>(trained.parameters) / 1e6, 2),
         rounded(static_cast<double>(trained.bytes) / 1e6, 2),
         study.settings.by_things() ? "-" : with_spread(study::spread(minutes), 1),
         with_spread(summary.first().likeness, 3), with_spread(summary.first().features, 3),
         with_spread(summary.last().likeness, 3), with_spread(summary.last().features, 3)});
  }
  return text;
}

std::string steps_table(const Study& study) {
  std::string text = head_of({"start", "likeness by pixels (by features) after so many steps"});
  for (const auto* name :
       {kRelaxed, kMean, kNearest, kShuffled, kZero, kDreamBooth, kDreamBoothLong}) {
    const auto& summary = study.of(name);
    std::string line;
    for (const auto& point : summary.points) {
      line += fmt::format("{}{}: {} ({})", line.empty() ? "" : "; ", point.steps,
                          with_spread(point.likeness, 3), with_spread(point.features, 3));
    }
    text += row_of({summary.method.title, line});
  }
  return text;
}

std::string rates_table(const Study& study) {
  const bool tries = study.settings.rate_factors().size() > 1;
  std::string text = head_of({"way", "mean of both likenesses at each rate", "taken"});
  for (size_t i = 0; i < study.summaries.size(); ++i) {
    std::string line;
    for (const auto& tried : study.tried[i]) {
      line += fmt::format("{}{}: {}", line.empty() ? "" : "; ", rounded(tried.rate, -1),
                          tries ? rounded(tried.score, 3) : "not measured");
    }
    const auto& summary = study.summaries[i];
    text += row_of({summary.method.title, line, rounded(summary.rate, -1)});
  }
  return text;
}

std::string seeds_said(const Study& study) {
  const auto seeds = study.settings.seeds;
  if (study.settings.by_things()) {
    return fmt::format(
        "- **±**: standard error over the things, {} seed{} each. A difference counts in the "
        "findings if the mean of the things' own differences is larger than twice its standard "
        "error. The network is one: another training of it might come to other numbers.\n",
        seeds, seeds == 1 ? "" : "s");
  }
  if (seeds == 1) return "- One seed: nothing here can be called better than another.\n";
  return fmt::format(
      "- **±**: standard deviation over {} seeds, each the mean over all things. A seed changes "
      "the "
      "networks' training and that of each personalisation; the adapters that networks learn from "
      "are the same. A difference counts in the findings if it is larger than the two deviations "
      "together.\n",
      seeds);
}

std::string rates_said(const Study& study) {
  const auto& s = study.settings;
  if (s.rate_factors().size() > 1) {
    return fmt::format(
        "Every way of tuning is tried at several rates on {} thing{} of the training side, and the "
        "best one taken: see below.",
        s.rate_identities, s.rate_identities == 1 ? "" : "s");
  }
  return fmt::format("Every way of tuning has {} times its usual rate; no other was tried.",
                     rounded(s.lowest_rate_factor, -1));
}

std::string made_by(const Study& study) {
  const auto& s = study.settings;
  if (!s.by_things()) return "`make hypernetwork_study` wrote this page.";
  return fmt::format(
      "`compare_hypernetwork --network_dir {}` wrote this page: a short study of that one network, "
      "without others to compare it with; `make hypernetwork_study` is the long one.",
      s.network_dir);
}

std::string introduction_of(const Study& study) {
  const auto& s = study.settings;
  return fmt::format(
      R"(# HyperDreamBooth measured

{} Hypernetworks learn from up to {} things of `{}`; {} of {} things of `{}`, none of which any network or the base has seen, are then personalised from one picture each, on `{}` ({}x{} pixels). Of emoji, as `make_dataset --identities` writes them, no subgroup of Unicode is on both sides, so that twins are not either. What is reproduced is the shape of the paper's tables in a small domain, not their numbers.

- **likeness**: of {} pictures on backgrounds that the picture shown does not have, with the thing's true pictures. **Pixels**: mean cosine of the cut-out thing, 24x24 with its mask. **Features**: mean cosine in a network that learned to tell the training side's things apart and shares nothing with the models measured; **recognised**: the share that it takes for this thing and none of the {} others.
- **background as asked**: does the prompt still count? **drift**: root mean square change of {} pictures that have nothing to do with the thing, of 1.
- **s**: from the picture to the adapters, on {} thread{}, as busy as the machine was, without loading the model. **kB**: the file in fp32.
{}- {} {} pictures a step.

)",
      made_by(study), study.learned, s.train.identities_dir, study.things.size(), study.held_out,
      s.train.validation_dir, s.train.model.path, study.resolution, study.resolution, s.pictures,
      study.held_out + s.rate_identities - 1, s.class_prompts.size(), at::get_num_threads(),
      at::get_num_threads() == 1 ? "" : "s", seeds_said(study), rates_said(study), s.batch_size);
}

std::string whole_page(const Study& study) {
  return introduction_of(study) + "## Findings\n" + findings(study) +
         "\n![The pictures shown, and what becomes of them](hypernetwork-pictures.png)\n" +
         "\n## Against other ways\n" + first_table(study) + "\n## Its parts\n" +
         parts_table(study) + "\n## Controls\n" + controls_table(study) +
         "\n## Steps of tuning\n![Likeness over the steps](hypernetwork-steps.png)\n\n" +
         steps_table(study) + "\n## Networks\n" + networks_table(study) +
         "\n## How the rates were found\n" + rates_table(study) +
         fmt::format(
             "\n## Run it again\n`make hypernetwork_study` repeats all of it; what is finished "
             "lies "
             "in `{}` and is not done twice. `PROCESSES=4` shares the work.\n",
             study.settings.work_dir);
}

}  // namespace

images::Image contact_sheet(const Study& study) {
  constexpr size_t most = 10;
  images::Sheet sheet;
  const size_t count = std::min(most, study.things.size());
  sheet.title = "One picture, a prediction, and a few steps; first seed, same noise";
  sheet.row_labels = {"shown",
                      "no personalisation",
                      "prediction",
                      study.of(kRelaxed).method.title,
                      study.of(kDreamBooth).method.title,
                      study.of(kDreamBoothLong).method.title};
  const auto column = [&](const std::vector<std::string>& files) {
    std::vector<images::Image> pictures;
    for (size_t i = 0; i < count; ++i) pictures.push_back(images::load_image(files.at(i)));
    return pictures;
  };
  std::vector<images::Image> shown;
  const auto side = study.resolution;
  for (size_t i = 0; i < count; ++i) {
    sheet.column_labels.push_back(study.things[i].name);
    shown.push_back(images::resize(images::load_image(study.things[i].shown().path), side, side,
                                   images::Filter::kLanczos));
  }
  sheet.rows = {shown,
                column(study.of(kZero).first().pictures),
                column(study.of(kRelaxed).first().pictures),
                column(study.of(kRelaxed).last().pictures),
                column(study.of(kDreamBooth).last().pictures),
                column(study.of(kDreamBoothLong).last().pictures)};
  return images::draw_sheet(sheet);
}

images::Image steps_chart(const Study& study) {
  study::Chart chart{"Likeness by pixels, from each start", "steps", "likeness", {}, 1, 0};
  for (const auto* name : {kRelaxed, kMean, kNearest, kShuffled, kZero, kDreamBooth}) {
    const auto& summary = study.of(name);
    study::Line line{name, {}};
    for (const auto& point : summary.points) {
      line.points.emplace_back(point.steps, point.likeness.mean);
      chart.bottom = std::min(chart.bottom, point.likeness.mean);
      chart.top = std::max(chart.top, point.likeness.mean);
    }
    chart.lines.push_back(std::move(line));
  }
  const double margin = std::max(0.02, 0.05 * (chart.top - chart.bottom));
  chart.bottom -= margin;
  chart.top += margin;
  return study::draw_chart(chart);
}

void write_page(const Study& study, const std::string& folder) {
  sd::make_folder(folder);
  const auto in = [&](const char* name) { return (fs::path(folder) / name).string(); };
  images::save_png(in("hypernetwork-pictures.png"), contact_sheet(study));
  images::save_png(in("hypernetwork-steps.png"), steps_chart(study));
  lightlora::AtomicFile file(in("hypernetwork.md"));
  file.write(whole_page(study));
  file.commit();
}

}  // namespace hyperstudy
