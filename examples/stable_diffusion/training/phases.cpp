// SPDX-License-Identifier: Apache-2.0
#include "training/phases.h"

#include <utility>

namespace training {

namespace {

std::function<void(const std::string&)>& phase_watch() {
  static std::function<void(const std::string&)> watch;
  return watch;
}

}  // namespace

void begin_phase(const char* name) {
  if (phase_watch()) phase_watch()(name);
}

void watch_phases(std::function<void(const std::string& name)> watch) {
  phase_watch() = std::move(watch);
}

}  // namespace training
