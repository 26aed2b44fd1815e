// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "research/hypernetwork_study/runner.h"
#include "support/images/image.h"

namespace hyperstudy {

/// What can be said of the numbers: a table in Markdown. Something is called better or worse only
/// where the difference is larger than what the seeds make.
std::string findings(const Study& study);

/// Rows: the pictures shown, predictions, relaxed, and what DreamBooth makes of them.
images::Image contact_sheet(const Study& study);
/// Likeness over the steps of tuning, from each start.
images::Image steps_chart(const Study& study);

/// Writes hypernetwork.md and its pictures, whose names begin with hypernetwork-, into a folder.
void write_page(const Study& study, const std::string& folder);

}  // namespace hyperstudy
