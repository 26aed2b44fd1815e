// SPDX-License-Identifier: Apache-2.0
// The described experiment judged its pictures by eye; here numbers decide. A difference counts
// only if it is larger than what the seeds make, and without several seeds nothing is larger than
// that.
#include <algorithm>
#include <cmath>
#include <functional>

#include "research/study/page.h"
#include "support/cli/fmt.h"

namespace study {

namespace {

const char* const kYes = "reproduces";
const char* const kNo = "does not reproduce";

// -1: a is smaller beyond the spread; 1: larger; 0: within it, or one seed only. An exact value
// counts as any number of runs.
int compare(const Spread& a, const Spread& b) {
  const double difference = a.mean - b.mean;
  if (std::min(a.count, b.count) < 2) return 0;
  if (std::abs(difference) <= a.deviation + b.deviation) return 0;
  return difference < 0 ? -1 : 1;
}

Spread exactly(double value) { return {2, value, 0}; }

std::string undecided(int64_t runs) {
  return runs < 2 ? "undecided: one run" : "undecided: within the spread";
}

std::string line(const std::string& described, const std::string& here,
                 const std::string& verdict) {
  return fmt::format("| {} | {} | **{}** |\n", described, here, verdict);
}

// A loss against the one at the start: does it fall?
std::string falls(const Spread& loss, double start) {
  const int difference = compare(loss, exactly(start));
  if (difference == 0 && loss.count > 1 && loss.mean == start && loss.deviation == 0) return kNo;
  return difference < 0 ? kYes : difference > 0 ? kNo : undecided(loss.count);
}

std::string learns(const Row* row, const std::string& described) {
  if (!row) return "";
  const double start = row->described().start_loss;
  if (row->diverged()) return line(described, "no finite loss at any rate", kNo);
  return line(described,
              fmt::format("loss from {} to {} at rate {}, likeness {}", rounded(start, 4),
                          with_spread(row->loss(), 4), rounded(row->own_rate(), -1),
                          with_spread(row->cosine(), 3)),
              falls(row->loss(), start));
}

// The row's loss is that of the cut core; its curves are of the whole one.
std::string fused_learns(const Row* row) {
  const std::string described = "4 (fused core) learns, and survives being cut to rank 4";
  if (!row || row->diverged()) return learns(row, described);
  std::vector<double> whole;
  for (const auto& run : row->own) whole.push_back(run.curve.back().second);
  const double start = row->described().start_loss;
  const std::string of_whole = falls(spread(whole), start), of_cut = falls(row->loss(), start);
  return line(
      described,
      fmt::format("loss from {} to {}, after cutting {}, at rate {}; likeness {}",
                  rounded(start, 4), with_spread(spread(whole), 4), with_spread(row->loss(), 4),
                  rounded(row->own_rate(), -1), with_spread(row->cosine(), 3)),
      of_whole == kYes ? of_cut : of_whole);
}

std::string never_moves(const Row* row) {
  if (!row) return "";
  double moved = 0;
  for (const auto& run : row->own) moved = std::max(moved, run.moved);
  const bool still = moved == 0 && !row->diverged();
  return line(
      "3 (both zero) does not learn; the author did not know why",
      fmt::format(
          "the largest change of any value in {} {} is {}{}", row->own.size(),
          row->own.size() == 1 ? "run" : "runs", rounded(moved, -1),
          still ? ": each factor's gradient is a product with the other, which is zero" : ""),
      still ? "reproduces, and is explained" : kNo);
}

// Those with pictures, best likeness first.
std::vector<const Row*> by_likeness(const Study& study) {
  std::vector<const Row*> rows;
  for (const auto& row : study.rows) {
    if (!row.diverged()) rows.push_back(&row);
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row* a, const Row* b) { return a->cosine().mean > b->cosine().mean; });
  return rows;
}

// A place counts if the row is apart from those before and behind it; another one, if it is apart
// from the row that has the described place.
std::string place(const Study& study, const Row* row, size_t expected,
                  const std::string& described) {
  const auto order = by_likeness(study);
  if (!row || row->diverged() || order.size() < 2 || order.size() <= expected) return "";
  const auto found =
      static_cast<size_t>(std::find(order.begin(), order.end(), row) - order.begin());
  std::vector<const Row*> others;
  if (found != expected) {
    others = {order[expected]};
  } else {
    if (found > 0) others.push_back(order[found - 1]);
    if (found + 1 < order.size()) others.push_back(order[found + 1]);
  }
  std::string here = fmt::format("number {} of {} by mean likeness ({}", found + 1, order.size(),
                                 with_spread(row->cosine(), 3));
  bool apart = true;
  for (const Row* other : others) {
    here += fmt::format("; {}: {}", other->variant.name, with_spread(other->cosine(), 3));
    apart = apart && compare(row->cosine(), other->cosine()) != 0;
  }
  return line(described, here + ")",
              !apart              ? undecided(row->cosine().count)
              : found == expected ? kYes
                                  : kNo);
}

Spread loss_at(const Row& row, double rate) { return loss_of(row.at(rate)); }

bool diverged_at(const Row& row, double rate) { return any_diverged(row.at(rate)); }

std::string gaussian(const Row* row, const Row* orthonormal) {
  if (!row) return "";
  const auto& run = row->described();
  const bool lost = diverged_at(*row, run.rate);
  const Spread stuck_loss = loss_at(*row, run.rate);
  // One run settles what happened in it, so this one line says how many there were.
  const bool stuck = lost || stuck_loss.mean - stuck_loss.deviation >= run.start_loss;
  const std::string runs =
      stuck_loss.count == 1 ? "one run" : fmt::format("{} runs", stuck_loss.count);
  const bool fell = !stuck && falls(stuck_loss, run.start_loss) == kYes;
  std::string text =
      line("5 (N(0,1) bases): the loss does not fall",
           fmt::format("at the described rate from {} to {} in {}", rounded(run.start_loss, 4),
                       lost ? "no finite value" : with_spread(stuck_loss, 4), runs),
           stuck  ? kYes
           : fell ? kNo
                  : undecided(stuck_loss.count));
  if (!stuck || row->diverged() || !orthonormal || orthonormal->diverged()) return text;
  const std::string learned = falls(row->loss(), run.start_loss);
  const bool worse = compare(row->loss(), orthonormal->loss()) > 0 ||
                     compare(row->cosine(), orthonormal->cosine()) < 0;
  return text +
         line("so orthogonal initialisation matters (the author's conclusion)",
              fmt::format(
                  "at rate {} the same bases reach {} (orthonormal ones {}), likeness {} ({})",
                  rounded(row->own_rate(), -1), with_spread(row->loss(), 4),
                  with_spread(orthonormal->loss(), 4), with_spread(row->cosine(), 3),
                  with_spread(orthonormal->cosine(), 3)),
              learned == kNo    ? kYes
              : learned != kYes ? learned
              : worse           ? "in part: at another rate it learns, but less"
                                : "does not reproduce: at another rate it learns");
}

// Of two rows by loss and likeness, with words for "the first is better" and "the second is".
std::string better_of(const Row& first, const Row& second, const std::string& first_word,
                      const std::string& second_word) {
  const int by_loss = compare(first.loss(), second.loss());
  const int by_likeness = -compare(first.cosine(), second.cosine());
  if (by_loss * by_likeness < 0) return "the two measures disagree";
  if (by_loss == 0 && by_likeness == 0) {
    return first.loss().count < 2 ? undecided(1) : "no difference beyond the spread";
  }
  return by_loss + by_likeness < 0 ? first_word : second_word;
}

std::string against(const Row& first, const Row& second) {
  return fmt::format("loss {} against {}, likeness {} against {}", with_spread(first.loss(), 4),
                     with_spread(second.loss(), 4), with_spread(first.cosine(), 3),
                     with_spread(second.cosine(), 3));
}

std::string open_question(const Row* orthonormal, const Row* scaled) {
  if (!orthonormal || !scaled || scaled->diverged() || orthonormal->diverged()) return "";
  return line("open question: do Gaussian bases of the right scale learn as well?",
              against(*scaled, *orthonormal),
              better_of(*scaled, *orthonormal, "Gaussian bases are better here",
                        "orthonormal bases are better here"));
}

// By how much more Classic's delta moves in a first step of Adam at the same rate, over layers:
// sqrt(in out / rank), with one factor N(0, 1/rank), against sqrt(b rank).
std::string first_step_ratio(const Shapes& layers, const Row& classic, const Row& light) {
  double least = 0, most = 0;
  for (const auto& [in, out] : layers) {
    const double product =
        static_cast<double>(in * out) / static_cast<double>(classic.variant.rank);
    const double ratio =
        std::sqrt(product / static_cast<double>(light.variant.aux_out * light.variant.rank));
    least = least == 0 ? ratio : std::min(least, ratio);
    most = std::max(most, ratio);
  }
  return fmt::format("{} to {}", rounded(least, least < 10 ? 1 : 0),
                     rounded(most, most < 10 ? 1 : 0));
}

std::string rates(const Study& study, const Row* classic, const Row* light) {
  if (!classic || !light || classic->diverged() || light->diverged()) return "";
  const double ratio = light->own_rate() / classic->own_rate();
  std::string here = fmt::format("{} against {}, of those that were tried",
                                 rounded(light->own_rate(), -1), rounded(classic->own_rate(), -1));
  std::string verdict = undecided(light->loss().count);
  const auto same = light->at(classic->own_rate());
  if (ratio > 1 && !same.empty() && !diverged_at(*light, classic->own_rate())) {
    const Spread there = loss_at(*light, classic->own_rate());
    here +=
        fmt::format("; at {} Light's loss is {} instead of {}", rounded(classic->own_rate(), -1),
                    with_spread(there, 4), with_spread(light->loss(), 4));
    if (compare(there, light->loss()) > 0) verdict = kYes;
    if (there.count < 2) verdict = undecided(there.count);
  }
  return line(
      fmt::format("Light wants a higher rate than Classic: for a first step of equal size {} times "
                  "the rate on Stable Diffusion 1.5, {} times on this model",
                  first_step_ratio(study.sd15_layers, *classic, *light),
                  first_step_ratio(study.model.layers, *classic, *light)),
      here, verdict);
}

const FileSize* size_of(const Study& study, const std::string& name) {
  for (const auto& size : study.sizes) {
    if (size.name == name) return &size;
  }
  return nullptr;
}

std::string values(const Study& study, const Row* classic, const Row* light) {
  const auto* large = size_of(study, "classic, rank 4");
  const auto* small = size_of(study, "light, rank 4");
  if (!large || !small || !classic || !light) return "";
  const auto percent = [](int64_t part, int64_t whole) {
    return rounded(100 * static_cast<double>(part) / static_cast<double>(whole), 1) + "%";
  };
  int64_t widest = 0;
  for (const auto& [in, out] : study.model.layers) widest = std::max({widest, in, out});
  return line(
      "Light trains under a tenth of Classic's values",
      fmt::format("{} for Stable Diffusion 1.5's shapes ({} of {}); {} on this model, whose layers "
                  "are at most {} wide",
                  percent(small->values, large->values), small->values, large->values,
                  percent(light->described().trainable, classic->described().trainable), widest),
      small->values * 10 < large->values ? kYes : kNo);
}

std::string files(const Study& study) {
  int64_t all = 0, smaller = 0;
  for (const auto& size : study.sizes) {
    if (!size.described) continue;
    ++all;
    if (size.fp32 < *size.described * 1024) ++smaller;
  }
  if (all == 0) return "";
  const auto count = fmt::format("{} of {}", smaller, all);
  return line(
      "the sizes of the files (Stable Diffusion 1.5)",
      count + " are smaller here, in fp32 and with all that is needed to read them; see below",
      smaller == all ? "reproduced, and smaller" : count + " are smaller");
}

std::string words(const Study& study) {
  const Row *plain = nullptr, *layerwise = nullptr;
  for (const auto& row : study.words)
    (row.variant.variant == kLayerwise ? layerwise : plain) = &row;
  if (!plain || !layerwise || plain->diverged() || layerwise->diverged()) return "";
  return line(
      "not described: does a layer-wise word say more than a plain one, without any adapter?",
      against(*layerwise, *plain),
      better_of(*layerwise, *plain, "the layer-wise word is better here",
                "the plain word is better here"));
}

// The two ends of a sweep.
std::string more_of(const std::vector<Runs>& points, const std::string& question,
                    const std::function<std::string(const Result&)>& setting) {
  if (points.size() < 2 || any_diverged(points.front()) || any_diverged(points.back())) return "";
  const Spread least = loss_of(points.front()), most = loss_of(points.back());
  const int difference = compare(most, least);
  return line("not described: " + question,
              fmt::format("loss {} with {}, {} with {}", with_spread(least, 4),
                          setting(points.front().front()), with_spread(most, 4),
                          setting(points.back().front())),
              difference < 0    ? "yes, here"
              : difference > 0  ? "no, here it hurts"
              : least.count < 2 ? undecided(1)
                                : "no difference beyond the spread");
}

std::string sweeps(const Study& study) {
  const auto rank = [](const Result& run) { return fmt::format("rank {}", run.rank); };
  const auto bases = [](const Result& run) {
    return fmt::format("a, b = {}, {}", run.aux_in, run.aux_out);
  };
  return more_of(study.classic_ranks,
                 "does Classic learn better with more rank, at an unchanged rate?", rank) +
         more_of(study.light_ranks, "does Light learn better with more rank, at an unchanged rate?",
                 rank) +
         more_of(study.basis_sizes,
                 "does Light learn better with larger bases, at an unchanged rate?", bases);
}

}  // namespace

std::string findings(const Study& study) {
  const Row* classic = study.find("classic");
  const Row* light = study.find("light");
  const Row* fused = study.find("fused");
  const std::vector<std::string> lines{
      "| described | here | verdict |\n|---|---|---|\n",
      place(study, classic, 0, "0 (Classic) has the best likeness"),
      learns(light, "1 (Light, up zero) learns"),
      learns(study.find("light", "down_zero"), "2 (Light, down zero) learns"),
      never_moves(study.find("light", "both_zero")),
      fused_learns(fused),
      place(study, fused, 1, "4, cut to rank 4, is second best"),
      gaussian(study.find("light", "up_zero", "normal"), light),
      open_question(light, study.find("light", "up_zero", "normal_scaled")),
      rates(study, classic, light),
      values(study, classic, light),
      files(study),
      sweeps(study),
      words(study)};
  return fmt::format("{}", fmt::join(lines, ""));
}

}  // namespace study
