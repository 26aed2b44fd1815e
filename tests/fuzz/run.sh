#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the fuzzers of the file readers. They need clang with libFuzzer (Debian: clang libclang-rt-14-dev);
# lora_file, quantized and the application's also need LibTorch and the packages of the build.
#
#   tests/fuzz/run.sh [seconds for each target, default 60] [target ...]
#
# Of the library: safetensors (validation of a whole file's header), gguf (the same), json (reader and
# writer), torch_file (zip container and pickle), regex (PEFT's patterns), lora_keys (tensor names of every
# dialect), lora_file (adapters and embeddings of every dialect, pickles among them, to the last tensor) and
# quantized (weights of bitsandbytes and of GGUF, to the last number). Of the application: tokenizer,
# model_config, picture (also a PNG's texts), settings (TOML), data_folder (captions and metadata.jsonl),
# emoji_list, training_lists (prompts to sample), parameters (A1111's settings), doctor (LoRA files of every
# family, also as --inspect shows them) and transformer_lora (those that are translated by name). Each starts
# from corpus/<target>, which make_corpus.py and make_application_corpus.py write. Builds and new inputs go to
# build-fuzz/ in the source folder; a failing input is left there as crash-*, and the script exits with 1.
# To keep a failing or otherwise telling input, copy it to corpus/<target>: fuzz_corpus_test.cpp replays
# these files in every test run.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source_dir="$(cd "$here/../.." && pwd)"
build="$source_dir/build-fuzz"
seconds="${1:-60}"
targets=("${@:2}")
[[ ${#targets[@]} -gt 0 ]] || targets=(safetensors gguf json torch_file regex lora_keys lora_file quantized
  tokenizer model_config picture settings data_folder emoji_list training_lists parameters doctor transformer_lora)

# Where LibTorch is: Torch_DIR as for the build, else the wheel that scripts/bootstrap.sh installs.
torch_flags() {
  local config="${Torch_DIR:-$(echo "$source_dir"/.deps/python/lib/python3*/site-packages/torch/share/cmake/Torch)}"
  local torch="${config%/share/cmake/Torch}"
  echo -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" -L"$torch/lib" \
    -Wl,-rpath,"$torch/lib" -ltorch_cpu -lc10
}

# sources_of <target>: what an application's reader is made of; empty for the library's.
sources_of() {
  local files="support/files/json_file support/files/gzip_file support/cli/message" images
  images="support/images/file support/images/load support/images/image support/images/png support/images/png_memory"
  images+=" support/images/decode_jpeg support/images/decode_png support/images/decode_webp support/images/decode_other"
  local translator="$files lora_files/key_names lora_files/families lora_files/layer_places lora_files/layer_values"
  translator+=" lora_files/split_and_join lora_files/choose_family lora_files/peft_scales lora_files/spellings"
  translator+=" lora_files/read_transformer lora_files/fuse_layers lora_files/write_transformer"
  case $1 in
    tokenizer) echo "$files text/prompt text/token_names text/tokenizer text/tokenizer_bpe text/tokenizer_text" ;;
    model_config) echo "$files models/config models/unet_options models/vae_options" ;;
    picture) echo "support/cli/message $images" ;;
    settings) echo "support/cli/message support/cli/config support/cli/format" ;;
    data_folder) echo "$files $images training/data_folder" ;;
    emoji_list) echo "support/cli/message research/pretraining/emoji" ;;
    training_lists) echo "$files support/cli/format support/cli/config $images training/data_folder training/sample_prompts" ;;
    parameters) echo "support/cli/message support/cli/format support/cli/app support/cli/flag support/cli/config generation/lora_tags generation/parameters" ;;
    doctor) echo "$translator support/cli/format lora_files/doctor lora_files/doctor_print lora_files/readers lora_files/diffusers_reader lora_files/inspect" ;;
    transformer_lora) echo "$translator" ;;
  esac
}

# The objects of an application's target, compiled once.
compile_sources() {
  local source object
  for source in $(sources_of "$1"); do
    object="$build/objects/${source//\//-}.o"
    mkdir -p "$build/objects"
    if [[ ! $object -nt $source_dir/examples/stable_diffusion/$source.cpp ]]; then
      "${compiler[@]}" -fsanitize=fuzzer-no-link "${includes[@]}" -c \
        "$source_dir/examples/stable_diffusion/$source.cpp" -o "$object"
    fi
    objects+=("$object")
  done
}

compiler=("${CLANG:-clang++}" -std=c++17 -O1 -g -fno-omit-frame-pointer
  "-fsanitize=address,undefined" -fno-sanitize-recover=undefined)
for target in "${targets[@]}"; do
  mkdir -p "$build/$target"
  libraries=() objects=() includes=(-I"$source_dir/include")
  # A single allocation above this would be more than any input of 64 KiB may ask for; a list of names may
  # unfold into 16 MB.
  limit=8
  # What the doctor prints is no news here.
  silent=0
  [[ $target != doctor ]] || silent=1
  # LibTorch itself is built without sanitizers, and leaks what lives as long as the process.
  if [[ $target == lora_file || $target == quantized || -n $(sources_of "$target") ]]; then
    read -ra libraries < <(torch_flags)
    limit=64
    export ASAN_OPTIONS=detect_leaks=0
  fi
  if [[ -n $(sources_of "$target") ]]; then
    includes+=(-I"$source_dir/examples/stable_diffusion" -I/usr/include/freetype2 "${libraries[@]:0:4}")
    # toml++ as the build has it, from its library: as headers it would be searched for faults too, and
    # marks as unreachable what a letter such as U+01E4 outside of quotes reaches, before it is refused.
    includes+=(-DTOML_HEADER_ONLY=0 -DTOML_SHARED_LIB=1)
    # An 8-bit picture of the largest size that an input of 64 KiB may have.
    limit=600
    compile_sources "$target"
    libraries+=(-lpng -ljpeg -lwebp -lexif -lfreetype -lutf8proc -ltomlplusplus -lz)
  fi
  "${compiler[@]}" -fsanitize=fuzzer "${includes[@]}" "$here/${target}_fuzz.cpp" "${objects[@]}" \
    -o "$build/${target}_fuzz" "${libraries[@]}"
  "$build/${target}_fuzz" "$build/$target" "$here/corpus/$target" -dict="$here/$target.dict" \
    -max_total_time="$seconds" -max_len=65536 -malloc_limit_mb="$limit" -rss_limit_mb=2048 -timeout=10 \
    -artifact_prefix="$build/" -print_final_stats=1 -close_fd_mask="$silent"
done
