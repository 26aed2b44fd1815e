// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace cli {

/// Whether Ctrl-C (SIGINT) or SIGTERM has come: a loop asks after every step, saves and leaves.
///
/// The first call puts the signal handlers in place, so a program that never asks ends at once, as
/// usual. The first signal only sets the flag and says on standard output that the program is about
/// to stop; the second ends the program at once.
bool interrupted();

/// Forgets a signal that came and restores the usual handling, for programs with several loops.
void reset_interrupted();

}  // namespace cli
