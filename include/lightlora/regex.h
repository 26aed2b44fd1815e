// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/targets.h>

#include <string>

namespace lightlora {

/// Every layer whose whole path matches an expression:
/// `Targets{matches("down_blocks\\.[01]\\..*")}.exclude("head").rank(matches(".*to_[qk]"), 8)`.
/// Expressions are what ECMAScript and Python's `re` have in common: characters, `.`, `[...]`,
/// `\d \w \s`, groups, `|`, `* + ? {m,n}`, `^` and `$`. Looking ahead and repeating a group's text
/// are not among them, so that a match takes time in proportion to the path: leave layers out with
/// `exclude`.
/// PEFT's patterns may begin at any dot of a path: write those as `matches("(.*\\.)?(" + text +
/// ")")`.
/// Errors: c10::ValueError if the expression is malformed, or has anything else in it
Pattern matches(const std::string& expression);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/regex-inl.h>
#endif
