// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>

namespace cli {

/// Whether Ctrl-C (SIGINT) or SIGTERM has come: a loop asks after every step, saves and leaves.
///
/// The first call puts the signal handlers in place, so a program that never asks ends at once, as
/// usual. The first signal only sets the flag and says on standard output that the program is about
/// to stop; the second ends the program at once.
bool interrupted();

/// Says that the program ends early because it was asked to: `run` then returns 128 plus the
/// signal's number, as shells do, and writes `what` on standard error.
void stopped(const std::string& what);

/// What `stopped` was told, and the exit status; an empty text and 0 if it was not called.
std::pair<std::string, int> stop_status();

/// 128 plus the number of the signal that came, or `otherwise`: work that was broken off may end in
/// an error.
int interrupted_status(int otherwise);

/// Forgets a signal that came and restores the usual handling, for programs with several loops.
void reset_interrupted();

/// From now on a pipe or a terminal that is gone and a file that has become too large are errors of
/// the calls that meet them, and no end of the program.
void outlive_outputs();

}  // namespace cli
