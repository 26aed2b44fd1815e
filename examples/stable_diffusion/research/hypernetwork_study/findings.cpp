// SPDX-License-Identifier: Apache-2.0
// What the paper, the controls and the goals ask, answered by numbers alone.
#include <algorithm>

#include "research/hypernetwork_study/page.h"
#include "research/study/page.h"
#include "support/cli/fmt.h"

namespace hyperstudy {
namespace {

using AtPoint = Summary::AtPoint;
using study::rounded;
using study::with_spread;

struct Words {
  std::string better, worse;
  std::string same = "no difference beyond the spread";
};

// Of two by both likenesses: 1, -1, 0, or 2 if the two measures disagree.
int by_likeness(const AtPoint& a, const AtPoint& b) {
  const bool by_thing = !a.likeness_of.empty() && !b.likeness_of.empty();
  const int first =
      by_thing ? compare_by_thing(a.likeness_of, b.likeness_of) : compare(a.likeness, b.likeness);
  const int second =
      by_thing ? compare_by_thing(a.features_of, b.features_of) : compare(a.features, b.features);
  if (first * second < 0) return 2;
  const int sum = first + second;
  return sum > 0 ? 1 : sum < 0 ? -1 : 0;
}

std::string verdict(const AtPoint& a, const AtPoint& b, const Words& words) {
  if (std::min(a.likeness.count, b.likeness.count) < 2) {
    return a.likeness_of.empty() ? "undecided: one seed" : "undecided: one thing";
  }
  const int side = by_likeness(a, b);
  if (side == 2) return "the two likenesses disagree";
  return side > 0 ? words.better : side < 0 ? words.worse : words.same;
}

std::string both(const AtPoint& point) {
  return fmt::format("{} and {}", with_spread(point.likeness, 3), with_spread(point.features, 3));
}

std::string line(const std::string& question, const std::string& here, const std::string& verdict) {
  return fmt::format("| {} | {} | **{}** |\n", question, here, verdict);
}

std::string against(const std::string& question, const AtPoint& a, const AtPoint& b,
                    const Words& words) {
  return line(question, fmt::format("{} against {}", both(a), both(b)), verdict(a, b, words));
}

// Where the goal is "at least": not below by more than the spread.
std::string as_good_as_long(const Study& study) {
  const auto& tuned = study.of(kRelaxed);
  const auto& other = study.of(kDreamBoothLong);
  return against(
      fmt::format("{}: at least the likeness of {}", tuned.method.title, other.method.title),
      tuned.last(), other.last(),
      {"more alike", "less alike: the goal is missed", "as alike, within the spread"});
}

std::string in_a_tenth(const Study& study) {
  const auto& ours = study.of(kRelaxed).last().seconds;
  const auto& theirs = study.of(kDreamBoothLong).last().seconds;
  const double times = ours.mean > 0 ? theirs.mean / ours.mean : 0;
  return line("in at most a tenth of its time (paper: 25 times as fast), and at most 10 s",
              fmt::format("{} s against {} s: {} times as fast", with_spread(ours, 2),
                          with_spread(theirs, 2), rounded(times, 1)),
              times >= 10 && ours.mean <= 10 ? "reached" : "missed");
}

std::string prediction_alone(const Study& study) {
  return against(
      "the prediction alone is more alike than no personalisation", study.of(kRelaxed).first(),
      study.of(kZero).first(),
      {"reached", "missed: it is less alike", "missed: no difference beyond the spread"});
}

std::string controls(const Study& study) {
  std::string text;
  const auto& ours = study.of(kRelaxed);
  const std::pair<const char*, const char*> all[] = {
      {kMean, "the mean adapter"},
      {kNearest, study.settings.by_things() ? "the prediction for the nearest identity"
                                            : "the nearest identity's adapter"},
      {kShuffled, "the prediction for another picture"}};
  const Words words{"beats it", "it is beaten", "does not beat it beyond the spread"};
  for (const auto& [name, title] : all) {
    const auto& control = study.of(name);
    text += against(fmt::format("the prediction beats {}, both alone", title), ours.first(),
                    control.first(), words);
    text += against(fmt::format("the same after {} steps", ours.last().steps), ours.last(),
                    control.last(), words);
  }
  return text;
}

std::string paper(const Study& study) {
  const auto& ours = study.of(kRelaxed);
  const Words reproduces{"reproduces", "does not reproduce: the opposite",
                         "does not reproduce beyond the spread"};
  std::string text;
  for (const auto* name : {kDreamBooth, kZero, kContinued, kWord}) {
    if (!study.has(name)) continue;
    const auto& other = study.of(name);
    text += against(fmt::format("{} is more alike than: {}", ours.method.title, other.method.title),
                    ours.last(), other.last(), reproduces);
  }
  text += against(fmt::format("{} steps improve the prediction", ours.last().steps), ours.last(),
                  ours.first(), reproduces);
  if (!study.has(kOnce)) return text;
  return text + against("refining a prediction more than once helps (k = 1 is worse)", ours.last(),
                        study.of(kOnce).last(), reproduces);
}

std::string ablations(const Study& study) {
  std::string text;
  const auto& ours = study.of(kRelaxed);
  for (const auto& network : study.networks) {
    if (network.name == kMain || network.name == kOnce) continue;
    const auto& other = study.of(network.name);
    text += against(
        fmt::format("open question: {}, or {}? Alone", study.networks.front().title, network.title),
        ours.first(), other.first(), {"the first", "the second"});
    text += against(fmt::format("the same after {} steps", ours.last().steps), ours.last(),
                    other.last(), {"the first", "the second"});
  }
  return text;
}

// Does the prompt still count, and is the rest of the model as it was?
std::string side_effects(const Study& study) {
  const auto &ours = study.of(kRelaxed).last(), &long_run = study.of(kDreamBoothLong).last();
  const int obeys = compare(ours.followed, long_run.followed);
  const int drifts = compare(ours.drift, long_run.drift);
  const bool one = ours.followed.count < 2;
  const auto say = [&](int side, const char* more, const char* less) -> std::string {
    if (one) return "undecided: one seed";
    return side > 0 ? more : side < 0 ? less : "no difference beyond the spread";
  };
  const std::string title = study.of(kDreamBoothLong).method.title;
  return line("prompts are obeyed as by " + title,
              fmt::format("{} against {}", with_spread(ours.followed, 2),
                          with_spread(long_run.followed, 2)),
              say(obeys, "better", "worse")) +
         line("other pictures change less than by " + title,
              fmt::format("{} against {}", with_spread(ours.drift, 3),
                          with_spread(long_run.drift, 3)),
              say(drifts, "they change more", "they change less"));
}

}  // namespace

std::string findings(const Study& study) {
  return "| asked | here: likeness by pixels, and by features | verdict |\n|---|---|---|\n" +
         as_good_as_long(study) + in_a_tenth(study) + prediction_alone(study) + controls(study) +
         paper(study) + side_effects(study) + ablations(study);
}

}  // namespace hyperstudy
