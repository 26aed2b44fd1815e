// SPDX-License-Identifier: Apache-2.0
#include "research/study/page.h"

#include <lightlora/file_io.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>

#include "research/study/pictures.h"
#include "support/cli/fmt.h"
#include "support/images/png.h"

namespace study {

namespace {

namespace fs = std::filesystem;

std::string kilobytes(int64_t bytes) { return rounded(static_cast<double>(bytes) / 1000, 1); }

// Cells of a table's line.
std::string cells(const std::vector<std::string>& texts) {
  return fmt::format("| {} |\n", fmt::join(texts, " | "));
}

std::string header(const std::vector<std::string>& texts) {
  return cells(texts) + cells(std::vector<std::string>(texts.size(), "---"));
}

std::string or_diverged(const Result& run, const std::string& text) {
  return run.diverged ? "diverged" : text;
}

std::vector<std::string> quality_cells(const Quality& quality) {
  return {rounded(quality.loss, 4), rounded(quality.cosine, 3),
          fmt::to_string(quality.median_rank + 1),
          fmt::format("{} of {}", quality.followed, quality.asked)};
}

void append(std::vector<std::string>& line, const std::vector<std::string>& more) {
  line.insert(line.end(), more.begin(), more.end());
}

std::string main_table(const Study& study) {
  std::string text =
      header({"variant", "trained values", "native file, kB", "exported file, kB", "own rate",
              "final loss", "likeness", "background as asked", "s per step"});
  for (const auto& row : study.rows) {
    const auto& run = row.own.front();
    std::vector<double> seconds;
    for (const auto& own : row.own) seconds.push_back(own.seconds_per_step);
    const bool lost = row.diverged();
    text += cells(
        {row.variant.name, fmt::to_string(run.trainable), kilobytes(run.native_bytes),
         run.exported_bytes == 0 ? "-" : kilobytes(run.exported_bytes), rounded(row.own_rate(), -1),
         lost ? "diverged" : with_spread(row.loss(), 4), lost ? "-" : with_spread(row.cosine(), 3),
         lost ? "-" : with_spread(followed_of(row.own), 2), with_spread(spread(seconds), 2)});
  }
  return text;
}

std::string described_table(const Study& study) {
  std::string text = header(
      {"variant", "rate", "loss", "likeness", "place among the emoji", "background as asked"});
  for (const auto& row : study.rows) {
    const auto& run = row.described();
    std::vector<std::string> line{row.variant.name, rounded(run.rate, -1)};
    append(line, run.diverged ? std::vector<std::string>{"diverged", "-", "-", "-"}
                              : quality_cells(run.quality));
    text += cells(line);
  }
  return text;
}

std::string rates_table(const Study& study) {
  std::string text = header({"variant", "final loss at each rate (likeness)"});
  for (const auto& row : study.rows) {
    auto runs = row.tried;
    std::sort(runs.begin(), runs.end(),
              [](const Result& a, const Result& b) { return a.rate < b.rate; });
    std::vector<std::string> all;
    for (const auto& run : runs) {
      const auto quality =
          fmt::format("{} ({})", rounded(run.quality.loss, 4), rounded(run.quality.cosine, 3));
      all.push_back(fmt::format("{}: {}", rounded(run.rate, -1), or_diverged(run, quality)));
    }
    text += cells({row.variant.name, fmt::format("{}", fmt::join(all, "; "))});
  }
  return text;
}

std::string split_table(const Study& study) {
  std::string text = header({"rank", "energy kept", "exported file, kB", "loss", "likeness",
                             "place among the emoji", "background as asked"});
  for (const auto& split : study.splits) {
    std::vector<std::string> line{fmt::to_string(split.rank), rounded(100 * split.energy, 1) + "%",
                                  kilobytes(split.exported_bytes)};
    append(line, quality_cells(split.quality));
    text += cells(line);
  }
  return text;
}

std::string nothing_cut(const std::vector<Split>& splits) {
  for (const auto& split : splits) {
    if (split.energy > 1 - 1e-9)
      return " At rank " + fmt::to_string(split.rank) + " nothing is cut.";
  }
  return "";
}

std::string sweep_table(const std::vector<Runs>& points, bool sizes) {
  std::string text = header(
      {sizes ? "a, b" : "rank", "trained values", "loss", "likeness", "background as asked"});
  for (const auto& runs : points) {
    const auto& run = runs.front();
    const bool lost = any_diverged(runs);
    text += cells({sizes ? fmt::to_string(run.aux_in) + ", " + fmt::to_string(run.aux_out)
                         : fmt::to_string(run.rank),
                   fmt::to_string(run.trainable), lost ? "diverged" : with_spread(loss_of(runs), 4),
                   lost ? "-" : with_spread(cosine_of(runs), 3),
                   lost ? "-" : with_spread(followed_of(runs), 2)});
  }
  return text;
}

std::string words_table(const Study& study) {
  std::string text = header({"learned", "values", "file, kB", "own rate", "loss at the start",
                             "final loss", "likeness", "background as asked"});
  for (const auto& row : study.words) {
    const auto& run = row.own.front();
    const bool lost = row.diverged();
    text += cells({row.variant.name, fmt::to_string(run.trainable), kilobytes(run.native_bytes),
                   rounded(row.own_rate(), -1), rounded(run.start_loss, 4),
                   lost ? "diverged" : with_spread(row.loss(), 4),
                   lost ? "-" : with_spread(row.cosine(), 3),
                   lost ? "-" : with_spread(followed_of(row.own), 2)});
  }
  return text;
}

std::string words_section(const Study& study) {
  return "\n## Words without adapters\nThe subject as a word and nothing else, " +
         fmt::to_string(study.settings.inversion_steps) +
         " steps: one vector, or one for each cross attention of the UNet (XTI, P+). Rates and "
         "seeds "
         "as above.\n\n" +
         words_table(study);
}

std::string sizes_section(const Study& study) {
  const auto kibibytes = [](int64_t bytes) {
    return rounded(static_cast<double>(bytes) / 1024, 1);
  };
  std::string text =
      "\n## Files for Stable Diffusion 1.5\nWritten for its shapes just now: the UNet's " +
      fmt::to_string(study.sd15_layers.size()) +
      " attention layers, and words of width 768. The described ones are torch's `.bin` files in "
      "fp32. In units of 1,024 bytes, as there.\n\n" +
      header({"file", "trained values", "described", "here, fp32", "here, fp16"});
  for (const auto& size : study.sizes) {
    text += cells({size.name, fmt::to_string(size.values),
                   size.described ? fmt::to_string(*size.described) : "-", kibibytes(size.fp32),
                   kibibytes(size.fp16)});
  }
  return text;
}

std::string introduction(const Study& study) {
  const auto& settings = study.settings;
  const auto seeds = study.rows.front().own.size();
  const auto threads = at::get_num_threads();
  const std::string deviation =
      seeds == 1 ? "- One seed: nothing here can be called better than another.\n"
                 : fmt::format(
                       "- **±**: standard deviation over {} seeds; a seed changes order, noise, "
                       "start and bases. Where there is none, it is one run. A difference counts "
                       "in the findings if it is larger than the two deviations together.\n",
                       seeds);
  return fmt::format(
      R"(# The variants compared

`make study` wrote this page. It learns a word for the subject by textual inversion (one vector, {} steps), then trains every variant from that word: {} steps of {} pictures, AdamW, constant rate, rank 4 and a = 100, b = 50 unless said otherwise, on the attention of `{}` ({}x{} pixels). The described experiment ran 500 steps at one rate on Stable Diffusion 1.5 and was judged by eye; a first step's size differs between variants by orders of magnitude, so each is shown at the described rate and at its own: every rate is tried with one seed, the two best with all, and the lower mean loss wins.

- **loss**: validation loss on the subject's pictures with noise and timesteps that are the same for all; the learned word alone has {}.
- **likeness**: mean cosine of what was drawn with the emoji "{}"; **place**: its median place among all emoji, 1 is best.
- **background as asked**: {} pictures a run ({} DDIM steps, guidance {}){}.
{}- **s per step**: median on {} thread{}, as busy as the machine was at that time; for speeds see [Benchmarks](../benchmarks.md).

Few steps, small pictures, few seeds: these numbers tell large effects from none, and no more.

)",
      settings.inversion_steps, settings.steps, settings.batch_size, settings.model,
      study.model.size, study.model.size, rounded(study.rows.front().described().start_loss, 4),
      settings.emoji, settings.backgrounds.size(), settings.picture_steps,
      rounded(settings.guidance_scale, -1),
      study.model.new_backgrounds ? ", each on a colour that no training picture has" : "",
      deviation, threads, threads == 1 ? "" : "s");
}

std::string page(const Study& study, bool has_ranks) {
  using namespace fmt::literals;
  return fmt::format(
      R"({introduction}## Findings
{findings}
## Each at its own rate
{own}
![Rows are variants, columns prompts](contact.png)

![Validation loss](curves.png)

The curve of the fused core is that of the whole core.

## All at the described rate
{described}
## How the own rates were found
{rates}
## A fused core cut to a rank
One core, trained once; its loss before cutting is {unsplit}.{nothing_cut}

{splits}
## Rank
{ranks}Light, at its own rate for rank 4:

{light}
Classic, likewise:

{classic}
## Directions of the bases
Light of rank 4 with bases of a inputs and b outputs.

{bases}{words}{sizes}
## Run it again
`make study` repeats all of it; what is finished lies in `study/` and is not done twice. One line more in `examples/stable_diffusion/research/study/variants.h` is one row more; `compare_variants --only NAME` studies any variant of the library by itself.
)",
      "introduction"_a = introduction(study), "findings"_a = findings(study),
      "own"_a = main_table(study), "described"_a = described_table(study),
      "rates"_a = rates_table(study), "unsplit"_a = rounded(study.unsplit_loss, 4),
      "nothing_cut"_a = nothing_cut(study.splits), "splits"_a = split_table(study),
      "ranks"_a = has_ranks ? "![Loss against rank](ranks.png)\n\n" : "",
      "light"_a = sweep_table(study.light_ranks, false),
      "classic"_a = sweep_table(study.classic_ranks, false),
      "bases"_a = sweep_table(study.basis_sizes, true), "words"_a = words_section(study),
      "sizes"_a = sizes_section(study));
}

}  // namespace

std::string rounded(double value, int digits) {
  return digits < 0 ? fmt::format("{:.3g}", value) : fmt::format("{:.{}f}", value, digits);
}

std::string with_spread(const Spread& value, int digits) {
  if (value.count < 2) return rounded(value.mean, digits);
  return rounded(value.mean, digits) + " ± " + rounded(value.deviation, digits);
}

Runs Row::at(double rate) const {
  for (const auto* runs : {&own, &second}) {
    if (!runs->empty() && runs->front().rate == rate) return *runs;
  }
  Runs found;
  std::copy_if(tried.begin(), tried.end(), std::back_inserter(found),
               [&](const Result& run) { return run.rate == rate; });
  return found;
}

const Row* Study::find(const std::string& variant, const std::string& init,
                       const std::string& aux_init) const {
  for (const auto& row : rows) {
    const auto& v = row.variant;
    if (v.variant == variant && v.init == init && v.aux_init == aux_init) return &row;
  }
  return nullptr;
}

void write_page(const Study& study, const std::string& folder) {
  fs::create_directories(folder);
  const auto in = [&](const char* name) { return (fs::path(folder) / name).string(); };
  images::save_png(in("contact.png"), contact_sheet(study));
  images::save_png(in("curves.png"), curves_chart(study));
  const auto ranks = ranks_chart(study);
  if (ranks) images::save_png(in("ranks.png"), *ranks);
  lightlora::AtomicFile file(in("index.md"));
  file.write(page(study, ranks.has_value()));
  file.commit();
}

}  // namespace study
