// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "support/cli/app.h"

namespace cli {

/// A program's main: reads the flags, runs the body, and turns every way to end into an exit
/// status.
///
/// - 0: success, `--help` or `--version` (both on standard output).
/// - 2: bad usage: flags that do not parse, or a c10::ValueError from the body, which is what
/// options
///   and arguments with impossible values throw.
/// - 1: any other exception.
///
/// On 1 and 2 standard error has exactly one line, "<program>: error: <message>"; LibTorch's
/// warnings go to standard output as "<program>: notice: <message>".
int run(int argc, const char* const* argv, App& app, const std::function<void()>& body);

}  // namespace cli
