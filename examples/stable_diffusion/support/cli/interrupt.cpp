// SPDX-License-Identifier: Apache-2.0
#include "support/cli/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <array>

namespace cli {

namespace {

constexpr std::array<int, 2> kSignals = {SIGINT, SIGTERM};
volatile sig_atomic_t signal_came = 0;  // its number
bool handlers_installed = false;

std::string& stop_message() {
  static std::string message;
  return message;
}

void handle(int number) {
  signal_came = number;
  // SA_RESETHAND has already restored the default for this signal; the other one follows here.
  for (const int signal_number : kSignals) signal(signal_number, SIG_DFL);
  const char text[] = "\nstopping after this step; Ctrl-C again ends at once\n";
  if (write(STDOUT_FILENO, text, sizeof(text) - 1) < 0) return;  // nothing else can be done here
}

}  // namespace

bool interrupted() {
  if (!handlers_installed) {
    struct sigaction action = {};
    action.sa_handler = handle;
    // A write that is under way goes on.
    action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (const int signal_number : kSignals) sigaction(signal_number, &action, nullptr);
    handlers_installed = true;
  }
  return signal_came != 0;
}

// A rank that others asked to stop has had no signal itself.
void stopped(const std::string& what) { stop_message() = what; }

std::pair<std::string, int> stop_status() {
  if (stop_message().empty()) return {"", 0};
  return {stop_message(), 128 + (signal_came != 0 ? static_cast<int>(signal_came) : SIGTERM)};
}

int interrupted_status(int otherwise) {
  return signal_came != 0 ? 128 + static_cast<int>(signal_came) : otherwise;
}

void reset_interrupted() {
  stop_message().clear();
  for (const int signal_number : kSignals) signal(signal_number, SIG_DFL);
  handlers_installed = false;
  signal_came = 0;
}

void outlive_outputs() {
  for (const int number : {SIGPIPE, SIGHUP, SIGXFSZ}) signal(number, SIG_IGN);
}

}  // namespace cli
