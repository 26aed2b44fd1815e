// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace training {

/// Captions around a learned word, so that it means the thing alone and not its surroundings:
/// "a photo of <cat>", "a close-up of a <cat>", or for a style "a painting in the style of <cat>".
/// `property` is object or style. Paper: Gal et al. 2022, arXiv:2208.01618, appendix C
/// Errors: c10::ValueError for another property
std::vector<std::string> caption_templates(const std::string& property, const std::string& word);

}  // namespace training
