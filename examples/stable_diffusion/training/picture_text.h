// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pipeline/model_options.h"
#include "pipeline/pipeline.h"
#include "support/images/image.h"

namespace training {

/// What a PNG says of itself under "parameters", so that `text_to_image --from_png` draws it again,
/// given the adapters that it was drawn with. The prompt is read as it stands.
std::string picture_text(const sd::ModelOptions& model,
                         const std::vector<std::string>& learned_embeds,
                         const sd::SampleOptions& sample, const images::Image& picture,
                         uint64_t seed);

}  // namespace training
