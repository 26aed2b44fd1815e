#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the benchmarks and writes tables and plots.   scripts/bench.sh <folder of the programs> [more flags of layer_benchmark]
# What needs diffusers and PEFT runs where scripts/bootstrap.sh --tests has put them, and is left out
# with a notice elsewhere. BENCH_RESULTS names another folder than bench-results/. All of it takes most of an hour;
# QUICK=1 takes few rounds of few cases, minutes in all, and its figures tell only large differences from none.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1
shift
results=${BENCH_RESULTS:-bench-results}
mkdir -p "$results"
layers=() attention=() peers=() rows=() programs=()
if [[ ${QUICK:-0} != 0 ]]; then
  layers=(--quick)
  attention=(--rounds 2)
  peers=(--seconds 0.2 --dtypes fp32)
  rows=(--rounds 4)
  programs=(--seconds 2 --most_rounds 3 --cases "bundled fp32" "bundled bf16")
fi

"$bin/layer_benchmark" --json "$results/layer.json" "${layers[@]}" "$@"
"$bin/attention_benchmark" --json "$results/attention.json" "${attention[@]}"

python=.deps/python/bin/python3
if [[ -x $python ]] && "$python" -c 'import peft, diffusers' 2>/dev/null; then
  "$python" benchmarks/layer_vs_peft.py --bin "$bin" --json "$results/layer_vs_peft.json" "${peers[@]}"
  "$python" benchmarks/rows_vs_peft.py --bin "$bin" --json "$results/rows_vs_peft.json" "${rows[@]}"
  for what in train generate; do
    "$python" benchmarks/program_vs_diffusers.py "$what" --bin "$bin" --json "$results/$what.json" "${programs[@]}"
  done
  "$python" benchmarks/report.py "$results"
else
  echo "notice: PEFT and diffusers are missing, so nothing is compared with them; hint: scripts/bootstrap.sh --tests"
fi
