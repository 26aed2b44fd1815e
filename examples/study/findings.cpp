// SPDX-License-Identifier: Apache-2.0
// The described experiment judged its pictures by eye; here numbers decide, and a difference counts
// only if it is larger than what the seeds make.
#include <algorithm>
#include <cmath>
#include <sstream>

#include "study/page.h"

namespace study {

namespace {

// Negative: a is clearly smaller; positive: clearly larger; zero: within the spread, or one seed
// only.
int compare(const Spread& a, const Spread& b) {
  const double difference = a.mean - b.mean;
  if (std::min(a.count, b.count) < 2) return 0;
  if (std::abs(difference) <= a.deviation + b.deviation) return 0;
  return difference < 0 ? -1 : 1;
}

std::string line(const std::string& described, const std::string& here,
                 const std::string& verdict) {
  return "| " + described + " | " + here + " | **" + verdict + "** |\n";
}

std::string learns(const Row* row, const std::string& described) {
  if (!row) return "";
  const double start = row->described().start_loss;
  const bool falls = !row->diverged() && row->loss().mean + row->loss().deviation < start;
  return line(described,
              "loss from " + rounded(start, 4) + " to " + with_spread(row->loss(), 4) +
                  " at rate " + rounded(row->own_rate(), -1) + ", likeness " +
                  with_spread(row->cosine(), 3),
              falls ? "reproduces" : "does not reproduce");
}

std::string never_moves(const Row* row) {
  if (!row) return "";
  double moved = 0;
  for (const auto& run : row->own) moved = std::max(moved, run.moved);
  return line("3 (both zero) does not learn; the author did not know why",
              "the largest change of any value in " + std::to_string(row->own.size()) +
                  " runs is " + rounded(moved, -1) + ": every gradient is exactly zero there",
              moved == 0 ? "reproduces, and is explained" : "does not reproduce");
}

// The rows that learn, best likeness first.
std::vector<const Row*> by_likeness(const Study& study) {
  std::vector<const Row*> rows;
  for (const auto& row : study.rows) {
    if (!row.diverged()) rows.push_back(&row);
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row* a, const Row* b) { return a->cosine().mean > b->cosine().mean; });
  return rows;
}

std::string place(const Study& study, const Row* row, size_t expected,
                  const std::string& described) {
  if (!row || row->diverged()) return "";
  const auto order = by_likeness(study);
  const auto found =
      static_cast<size_t>(std::find(order.begin(), order.end(), row) - order.begin());
  const Row* other = order[found == expected ? std::min(expected + 1, order.size() - 1) : expected];
  const bool apart = compare(row->cosine(), other->cosine()) != 0;
  const std::string here = "number " + std::to_string(found + 1) + " of " +
                           std::to_string(order.size()) + " by mean likeness (" +
                           with_spread(row->cosine(), 3) + "; " + other->variant.name + ": " +
                           with_spread(other->cosine(), 3) + ")";
  if (found == expected)
    return line(described, here, apart ? "reproduces" : "undecided: within the spread");
  return line(described, here, apart ? "does not reproduce" : "undecided: within the spread");
}

std::string gaussian(const Row* row, const Row* orthonormal) {
  if (!row) return "";
  const auto& run = row->described();
  const bool stuck = run.diverged || run.quality.loss >= run.start_loss;
  std::string text = line("5 (N(0,1) bases): the loss does not fall",
                          "at the described rate from " + rounded(run.start_loss, 4) + " to " +
                              (run.diverged ? "no finite value" : rounded(run.quality.loss, 4)),
                          stuck ? "reproduces" : "does not reproduce");
  if (row->diverged() || !orthonormal || orthonormal->diverged()) return text;
  const bool falls = row->loss().mean + row->loss().deviation < run.start_loss;
  const bool worse = compare(row->loss(), orthonormal->loss()) > 0;
  return text + line("so orthogonal initialisation matters (the author's conclusion)",
                     "at rate " + rounded(row->own_rate(), -1) + " the same bases reach " +
                         with_spread(row->loss(), 4) + " (orthonormal ones " +
                         with_spread(orthonormal->loss(), 4) + "), likeness " +
                         with_spread(row->cosine(), 3) + " (" +
                         with_spread(orthonormal->cosine(), 3) + ")",
                     !falls  ? "reproduces"
                     : worse ? "in part: at a small rate it learns, but less"
                             : "does not reproduce: it was the rate");
}

std::string open_question(const Row* orthonormal, const Row* scaled) {
  if (!orthonormal || !scaled || scaled->diverged()) return "";
  const int by_loss = compare(scaled->loss(), orthonormal->loss());
  const int by_likeness = compare(scaled->cosine(), orthonormal->cosine());
  const std::string here = "loss " + with_spread(scaled->loss(), 4) + " against " +
                           with_spread(orthonormal->loss(), 4) + ", likeness " +
                           with_spread(scaled->cosine(), 3) + " against " +
                           with_spread(orthonormal->cosine(), 3);
  std::string verdict = "no difference beyond the spread";
  if (by_loss < 0 || by_likeness > 0) verdict = "Gaussian bases are better here";
  if (by_loss > 0 || by_likeness < 0) verdict = "orthonormal bases are better here";
  if (by_loss * by_likeness > 0) verdict = "the two measures disagree";
  return line("open question: do Gaussian bases of the right scale learn as well?", here, verdict);
}

std::string rates(const Row* classic, const Row* light) {
  if (!classic || !light || classic->diverged() || light->diverged()) return "";
  const double ratio = light->own_rate() / classic->own_rate();
  return line(
      "Light wants a higher rate than Classic (a first step of equal size: 11 to 45 times "
      "on Stable Diffusion 1.5; 4.5 to 5.7 by the same count on this model's layers)",
      rounded(light->own_rate(), -1) + " against " + rounded(classic->own_rate(), -1) + ": " +
          rounded(ratio, -1) + " times, on a grid of factors of about 3",
      ratio > 1 ? "reproduces" : "does not reproduce");
}

std::string sizes(const Row* classic, const Row* light) {
  if (!classic || !light) return "";
  const double share = static_cast<double>(light->described().trainable) /
                       static_cast<double>(classic->described().trainable);
  return line("Light trains under a tenth of Classic's values (Stable Diffusion 1.5)",
              rounded(100 * share, 0) +
                  "% here, where the layers are at most 160 wide: Light's "
                  "number does not grow with the layers",
              share < 0.1 ? "reproduces" : "depends on the model's width");
}

}  // namespace

std::string findings(const Study& study) {
  const Row* classic = study.find("classic");
  const Row* light = study.find("light");
  const Row* fused = study.find("fused");
  std::ostringstream text;
  text << "| described | here | verdict |\n|---|---|---|\n"
       << place(study, classic, 0, "0 (Classic) has the best likeness")
       << learns(light, "1 (Light, up zero) learns")
       << learns(study.find("light", "down_zero"), "2 (Light, down zero) learns")
       << never_moves(study.find("light", "both_zero"))
       << learns(fused, "4 (fused core) learns, and survives being cut to rank 4")
       << place(study, fused, 1, "4, cut to rank 4, is second best")
       << gaussian(study.find("light", "up_zero", "normal"), light)
       << open_question(light, study.find("light", "up_zero", "normal_scaled"))
       << rates(classic, light) << sizes(classic, light);
  return text.str();
}

}  // namespace study
