#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains every variant and compares them: writes docs/study/.   scripts/study.sh <folder of the programs> [more flags of compare_variants]
# Finished runs lie in study/; after an interruption the same command goes on from them.
# PROCESSES=4 shares the runs among so many processes of this machine; torchrun can start this script as well.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1
shift
launcher=()
if ((${PROCESSES:-1} > 1)); then
  torchrun=$(command -v torchrun || echo .deps/python/bin/torchrun)
  "$torchrun" --help >/dev/null 2>&1 || {
    echo "study: PROCESSES=$PROCESSES: expected a torchrun in PATH or .deps/python/bin that starts, got none; hint: scripts/bootstrap.sh --tests" >&2
    exit 1
  }
  launcher=("$torchrun" --no-python --standalone --nproc-per-node "$PROCESSES")
fi
# On a model this small a second thread gains nothing, and the same number everywhere gives the same sums.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "${launcher[@]}" "$bin/compare_variants" "$@"
