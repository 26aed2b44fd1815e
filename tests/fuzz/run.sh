#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the fuzzers of the file readers. They need clang with libFuzzer (Debian: clang libclang-rt-14-dev);
# lora_file also needs LibTorch, the others do not.
#
#   tests/fuzz/run.sh [seconds for each target, default 60] [target ...]
#
# Targets are the files *_fuzz.cpp here: safetensors (validation of a whole file's header), json (reader and
# writer), torch_file (zip container and pickle), lora_keys (tensor names of every dialect) and lora_file
# (adapters and embeddings of every dialect, to the last tensor). Each starts from corpus/<target>, which
# make_corpus.py writes. Builds and new inputs go to build-fuzz/ in the source folder; a failing input is left
# there as crash-*, and the script exits with 1.
# To keep a failing or otherwise telling input, copy it to corpus/<target>: fuzz_corpus_test.cpp replays
# these files in every test run.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source_dir="$(cd "$here/../.." && pwd)"
build="$source_dir/build-fuzz"
seconds="${1:-60}"
targets=("${@:2}")
[[ ${#targets[@]} -gt 0 ]] || targets=(safetensors json torch_file lora_keys lora_file)

# Where LibTorch is: Torch_DIR as for the build, else the wheel that scripts/bootstrap.sh installs.
torch_flags() {
  local config="${Torch_DIR:-$(echo "$source_dir"/.deps/python/lib/python3*/site-packages/torch/share/cmake/Torch)}"
  local torch="${config%/share/cmake/Torch}"
  echo -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" -L"$torch/lib" \
    -Wl,-rpath,"$torch/lib" -ltorch_cpu -lc10
}

for target in "${targets[@]}"; do
  mkdir -p "$build/$target"
  libraries=()
  # A single allocation above this would be more than any input of 64 KiB may ask for; a list of names may
  # unfold into 16 MB.
  limit=8
  # LibTorch itself is built without sanitizers, and leaks what lives as long as the process.
  [[ $target != lora_file ]] || {
    read -ra libraries < <(torch_flags)
    limit=64
    export ASAN_OPTIONS=detect_leaks=0
  }
  "${CLANG:-clang++}" -std=c++17 -O1 -g -fno-omit-frame-pointer \
    -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
    -I"$source_dir/include" "$here/${target}_fuzz.cpp" -o "$build/${target}_fuzz" \
    "${libraries[@]}"
  "$build/${target}_fuzz" "$build/$target" "$here/corpus/$target" -dict="$here/$target.dict" \
    -max_total_time="$seconds" -max_len=65536 -malloc_limit_mb="$limit" -rss_limit_mb=2048 -timeout=10 \
    -artifact_prefix="$build/" -print_final_stats=1
done
