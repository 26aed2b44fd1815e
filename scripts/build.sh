#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Configures and builds.  scripts/build.sh <preset of CMakePresets.json> [targets...]
set -euo pipefail
cd "$(dirname "$0")/.."

preset=$1
shift
folder=build
[[ $preset == dev ]] || folder=build-$preset

# CMake remembers the LibTorch of its first run; the caller's current choice overrules that.
torch=-UTorch_DIR
[[ -z ${Torch_DIR:-} ]] || torch=-DTorch_DIR=$Torch_DIR

# A file that includes LibTorch takes about 1.2 GB to compile: on a machine with many cores and little
# memory the memory decides.
cores=$(nproc)
jobs=$(awk -v cores="$cores" '/^MemAvailable/ {n = int($2 / 1.5e6); print n < 1 ? 1 : n < cores ? n : cores}' /proc/meminfo)

mkdir -p "$folder"
cmake --preset "$preset" "$torch" >"$folder/configure.log" 2>&1 || {
  cat "$folder/configure.log" >&2
  exit 1
}
cmake --build "$folder" --parallel "${JOBS:-$jobs}" ${@:+--target "$@"}
