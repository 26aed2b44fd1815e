// SPDX-License-Identifier: Apache-2.0
#include "training/captions.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "support/cli/fmt.h"
#include "training/data.h"

namespace training {

void PromptStates::prepare(const std::vector<std::string>& texts) {
  if (trains()) return;
  const torch::NoGradGuard no_grad;
  for (const auto& text : texts) {
    auto& kept = kept_[text];
    if (kept.states.defined()) continue;
    TORCH_CHECK(encode_, "expected only prompts that were encoded before, got '", text, "'");
    kept = encode_({text});
  }
}

std::string fixed_caption(std::string caption, const CaptionOptions& options) {
  if (!options.prefix.empty()) caption = options.prefix + " " + caption;
  if (!options.suffix.empty()) caption += " " + options.suffix;
  return caption;
}

std::string process_caption(std::string caption, const CaptionOptions& options,
                            at::Generator& generator, int64_t epoch) {
  const auto chance = [&](double rate) {
    return rate > 0 && at::rand({1}, generator, torch::kDouble).item<double>() < rate;
  };
  const int64_t every = options.dropout_every_n_epochs;
  if (chance(options.dropout_rate) || (every > 0 && epoch % every == 0)) return "";
  caption = fixed_caption(std::move(caption), options);
  if (!options.varies()) return caption;
  std::vector<std::string> tags;
  for (std::size_t at = 0, end = 0; at <= caption.size(); at = end + 1) {
    end = std::min(caption.find(',', at), caption.size());
    const auto tag = caption.substr(at, end - at);
    const auto begin = tag.find_first_not_of(' ');
    tags.push_back(
        begin == std::string::npos ? "" : tag.substr(begin, tag.find_last_not_of(' ') + 1 - begin));
  }
  const auto kept = std::min(static_cast<std::size_t>(options.keep_tokens), tags.size());
  std::vector<std::string> result(tags.begin(), tags.begin() + static_cast<std::ptrdiff_t>(kept));
  const auto rest = static_cast<int64_t>(tags.size() - kept);
  const auto order = options.shuffle ? at::randperm(rest, generator) : at::arange(rest);
  for (int64_t i = 0; i < rest; ++i) {
    if (chance(options.tag_dropout_rate)) continue;
    result.push_back(tags[kept + static_cast<std::size_t>(order[i].item<int64_t>())]);
  }
  return fmt::format("{}", fmt::join(result, ", "));
}

sd::PromptEmbeds PromptStates::states(const std::vector<std::string>& texts) {
  if (trains()) return encode_(texts);
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> states, pooled;
  for (const auto& text : texts) {
    const auto found = kept_.find(text);
    TORCH_CHECK(encode_ || found != kept_.end(),
                "expected only prompts that were encoded before, got '", text, "'");
    const auto row = found != kept_.end() ? found->second : encode_({text});
    states.push_back(row.states);
    if (row.pooled.defined()) pooled.push_back(row.pooled);
  }
  return {at::cat(states), pooled.empty() ? torch::Tensor() : at::cat(pooled)};
}

namespace {

// %: where the word goes.
const char* const kObjectTemplates[] = {
    "a photo of %",           "a photo of a %",        "a photo of the %",
    "a photo of one %",       "a photo of my %",       "a picture of %",
    "a picture of a %",       "a close-up photo of %", "a close-up photo of a %",
    "a cropped photo of a %", "a bright photo of a %", "a dark photo of the %",
    "a good photo of %",      "a clear photo of a %",  "a photo of a clean %",
    "a photo of a small %",   "a photo of a large %",  "a photo of a nice %",
    "a rendering of a %",     "a depiction of %",      "a snapshot of a %",
};

const char* const kStyleTemplates[] = {
    "a painting in the style of %",          "a picture in the style of %",
    "a rendering in the style of %",         "a drawing in the style of %",
    "a small painting in the style of %",    "a large painting in the style of %",
    "a bright painting in the style of %",   "a dark painting in the style of %",
    "a clean painting in the style of %",    "a cropped painting in the style of %",
    "a close-up painting in the style of %", "a fine picture in the style of %",
};

}  // namespace

std::vector<std::string> caption_templates(Property property, const std::string& word) {
  std::vector<std::string> captions;
  const auto add = [&](std::string text) {
    captions.push_back(text.replace(text.find('%'), 1, word));
  };
  if (property == Property::object) {
    for (const auto* text : kObjectTemplates) add(text);
  } else {
    for (const auto* text : kStyleTemplates) add(text);
  }
  return captions;
}

}  // namespace training
