// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "research/study/page.h"
#include "support/images/image.h"

namespace study {

/// What each row draws for the same prompts and noise, under the pictures that it was trained on.
images::Image contact_sheet(const Study& study);
/// Validation loss over the steps of each row, the mean over its seeds.
images::Image curves_chart(const Study& study);
/// Loss against rank: of Classic and Light trained with it, of the fused core cut to it. Nothing
/// in a study without these variants.
std::optional<images::Image> ranks_chart(const Study& study);

}  // namespace study
