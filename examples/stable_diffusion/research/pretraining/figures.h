// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace pretraining {

/// What measure_model() found, as the table of the model's card (Markdown).
std::string card_of(const nlohmann::json& figures);

}  // namespace pretraining
