#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the fuzzers of the file readers. They need clang with libFuzzer (Debian: clang libclang-rt-14-dev)
# and no LibTorch.
#
#   tests/fuzz/run.sh [seconds for each target, default 60] [target ...]
#
# Targets are the files *_fuzz.cpp here: safetensors (validation of a whole file's header), json (reader and
# writer), torch_file (zip container and pickle) and lora_keys (tensor names of every dialect). Each starts from corpus/<target>, which make_corpus.py writes. Builds and new inputs go to
# build-fuzz/ in the source folder; a failing input is left there as crash-*, and the script exits with 1.
# To keep a failing or otherwise telling input, copy it to corpus/<target>: fuzz_corpus_test.cpp replays
# these files in every test run.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source_dir="$(cd "$here/../.." && pwd)"
build="$source_dir/build-fuzz"
seconds="${1:-60}"
targets=("${@:2}")
[[ ${#targets[@]} -gt 0 ]] || targets=(safetensors json torch_file lora_keys)

for target in "${targets[@]}"; do
  mkdir -p "$build/$target"
  "${CLANG:-clang++}" -std=c++17 -O1 -g -fno-omit-frame-pointer \
    -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
    -I"$source_dir/include" "$here/${target}_fuzz.cpp" -o "$build/${target}_fuzz"
  # A single allocation above 8 MB would be more than any input of 64 KiB may ask for.
  "$build/${target}_fuzz" "$build/$target" "$here/corpus/$target" -dict="$here/$target.dict" \
    -max_total_time="$seconds" -max_len=65536 -malloc_limit_mb=8 -rss_limit_mb=2048 -timeout=10 \
    -artifact_prefix="$build/" -print_final_stats=1
done
