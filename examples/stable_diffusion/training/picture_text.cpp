// SPDX-License-Identifier: Apache-2.0
#include "training/picture_text.h"

#include "generation/parameters.h"

namespace training {

std::string picture_text(const sd::ModelOptions& model,
                         const std::vector<std::string>& learned_embeds,
                         const sd::SampleOptions& sample, const images::Image& picture,
                         uint64_t seed) {
  generation::GenerationOptions options;
  options.model = model;
  options.learned_embeds = learned_embeds;
  options.sample = sample;
  options.prompt_syntax = sd::PromptSyntax::plain;
  generation::DrawnPicture drawn;
  drawn.width = picture.width;
  drawn.height = picture.height;
  drawn.seed = seed;
  return generation::describe(options, {}, drawn).text();
}

}  // namespace training
