#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains every variant and compares them: writes docs/study/.   scripts/study.sh <folder of the programs> [more flags of compare_variants]
# Finished runs lie in study/; after an interruption the same command goes on from them.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1
shift
# On a model this small a second thread gains nothing, and the same number everywhere gives the same sums.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$bin/compare_variants" "$@"
