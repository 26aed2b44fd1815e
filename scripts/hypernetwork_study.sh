#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains hypernetworks and compares what they predict with other ways to personalise: writes
# docs/study/hypernetwork.md.   scripts/hypernetwork_study.sh <folder of the programs> [more flags of compare_hypernetwork]
# What is finished lies in hypernetwork-study/; after an interruption the same command goes on from it.
# PROCESSES=4 shares the work among so many processes of this machine; torchrun can start this script as well.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1
shift
research=examples/stable_diffusion/research/pretraining
data=hypernetwork-study/data
# Eight pictures of each emoji outside the base's vocabulary; no subgroup of Unicode is on both sides.
if [[ ${RANK:-0} == 0 && ! -e $data/held_out ]]; then
  "$bin/make_dataset" --config "$research/base.json" --output_dir "$data.new" --identities 8
  mv "$data.new" "$data"
fi
launcher=()
if ((${PROCESSES:-1} > 1)); then
  torchrun=$(command -v torchrun || echo .deps/python/bin/torchrun)
  "$torchrun" --help >/dev/null 2>&1 || {
    echo "hypernetwork_study: PROCESSES=$PROCESSES: expected a torchrun in PATH or .deps/python/bin that starts, got none; hint: scripts/bootstrap.sh --tests" >&2
    exit 1
  }
  launcher=("$torchrun" --no-python --standalone --nproc-per-node "$PROCESSES")
fi
# On a model this small a second thread gains nothing, and the same number everywhere gives the same sums.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "${launcher[@]}" "$bin/compare_hypernetwork" --pretrained_model_name_or_path examples/stable_diffusion/assets/base \
  --identities_dir "$data/identities" --validation_dir "$data/held_out" "$@"
