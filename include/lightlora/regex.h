// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/targets.h>

#include <string>

namespace lightlora {

/// Every layer whose whole path matches an expression (ECMAScript's syntax):
/// `Targets{matches("down_blocks\\.[01]\\..*")}.exclude("head").rank(matches(".*to_[qk]"), 8)`.
/// PEFT's patterns may begin at any dot of a path: write those as `matches("(.*\\.)?(" + text +
/// ")")`.
/// Errors: c10::ValueError if the expression is malformed
Pattern matches(const std::string& expression);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/regex-inl.h>
#endif
