#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds, tests and measures on a machine with an NVIDIA GPU, with or without a network, and leaves one folder of
# results and one table to paste into an issue.
#
#   scripts/gpu_check.sh [phase...]      env build tests parity nccl speed memory determinism sanitizer (default: all)
#
#   OUT=gpu_check       the folder of results
#   BUILD=build-gpu     the folder to build in; what is there is kept
#   PYTHON=python3      one with torch and, for `speed`, diffusers and PEFT
#   GPU_CHECK_FAKE=1    rehearsal without a GPU: what is in BUILD runs on the simulated device, on the bundled model
#
# A phase that fails does not stop the next. Without a network, scripts/gpu_kit.sh packs what the build needs
# beforehand; a kit in .gpu-kit is unpacked by itself.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

readonly fake=${GPU_CHECK_FAKE:-}
out=$(realpath -m "${OUT:-gpu_check}")
build=$(realpath -m "${BUILD:-build-gpu}")
readonly out build
readonly kit=$PWD/.gpu-kit deps=$build/deps
readonly assets=examples/stable_diffusion/assets
readonly all=(env build tests parity nccl speed memory determinism sanitizer)
readonly python=${PYTHON:-python3}
mkdir -p "$out" "$build"

export LIGHTLORA_BIN=$build/bin LIGHTLORA_SOURCE_DIR=$PWD
if [[ -d $deps ]]; then
  export LD_LIBRARY_PATH=$deps/usr/lib/x86_64-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export PYTHONPATH=$deps/python${PYTHONPATH:+:$PYTHONPATH}
fi

# on_gpu <program> <arguments...>: with the simulated device in a rehearsal.
on_gpu() {
  if [[ $fake ]]; then
    LD_PRELOAD=$build/lib/libfake_cuda.so "$@"
  else
    "$@"
  fi
}

torch_folder() {
  if [[ -n ${Torch_DIR:-} ]]; then
    realpath "$Torch_DIR/../../.."
  else
    "$python" -c 'import importlib.util, os; print(os.path.dirname(importlib.util.find_spec("torch").origin))'
  fi
}

# What the results were made with.
phase_env() {
  git log -1 --format='%H %s' 2>/dev/null
  uname -a
  nproc
  if [[ $fake ]]; then
    echo "SIMULATED: no GPU was used"
  else
    nvidia-smi || return 1
    nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader
  fi
  local torch
  torch=$(torch_folder) && echo "LibTorch in $torch" && cat "$torch/version.py"
}

unpack_kit() {
  [[ -d $kit && ! -d $deps ]] || return 0
  mkdir -p "$deps/python"
  local package link target
  for package in "$kit"/*.deb; do dpkg -x "$package" "$deps" || return 1; done
  # Links that were made for the root folder, such as libz.so.
  while read -r link; do
    target=$(readlink "$link")
    [[ $target == /* && -e $deps$target ]] && ln -sfn "$deps$target" "$link"
  done < <(find "$deps" -type l)
  "$python" -m pip install --quiet --no-index --no-deps --target "$deps/python" "$kit"/*.whl || return 1
  export LD_LIBRARY_PATH=$deps/usr/lib/x86_64-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export PYTHONPATH=$deps/python${PYTHONPATH:+:$PYTHONPATH}
}

phase_build() {
  if [[ $fake ]]; then
    test -x "$build/bin/train_dreambooth_lora" && test -e "$build/lib/libfake_cuda.so"
    return
  fi
  unpack_kit || return 1
  local config
  config=$(torch_folder)/share/cmake/Torch
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLIGHTLORA_CUDA=ON -DLIGHTLORA_TORCH=DIRECT \
    -DTorch_DIR="$config" -DCMAKE_PREFIX_PATH="$deps/usr" -DCMAKE_LIBRARY_ARCHITECTURE=x86_64-linux-gnu || return 1
  cmake --build "$build" --target programs library_tests stable_diffusion_tests benchmarks || return 1
  readelf -d "$build/bin/train_dreambooth_lora" "$build/lib/liblightlora_cuda.so" | grep NEEDED
}

phase_tests() {
  export LIGHTLORA_TEST_DEVICE=cuda:0
  on_gpu "$build/tests/library_tests" "[cuda]" || return 1
  [[ $fake ]] || "$build/tests/library_tests" --filenames-as-tags "[#properties_test]"
}

# The programs' results on the GPU beside those on the CPU: training of every kind, recorded and not, resumed across
# devices, textual inversion, pictures; and the waits of a step.
phase_parity() {
  if [[ $fake ]]; then
    "$python" tests/programs/simulated_cuda_test.py a_word
  else
    LIGHTLORA_REAL_GPU=1 "$python" tests/programs/simulated_cuda_test.py
  fi
}

phase_nccl() {
  if [[ $fake ]]; then
    echo "not simulated"
  else
    "$build/tests/stable_diffusion_tests" "[nccl]"
  fi
}

phase_speed() {
  if [[ $fake ]]; then
    echo "not simulated"
    return
  fi
  "$build/bin/layer_benchmark" --device cuda --quick || return 1
  local what
  for what in train generate; do
    "$python" benchmarks/program_vs_diffusers.py $what --bin "$build/bin" --device cuda --seconds 20 \
      --json "$out/speed_$what.json" --cases "sd15 512x512 bf16" "sd15 512x512 bf16 batch 4" || return 1
  done
}

# What a run takes beside what the dry run says that it takes.
phase_memory() {
  local model=$assets/base more
  [[ $fake ]] || model=$build/sd15
  [[ -d $model ]] || "$python" tests/full_size/make_model.py "$model" || return 1
  for more in "--train_batch_size 1" "--train_batch_size 1 --cuda_graph off" \
    "--train_batch_size 1 --gradient_checkpointing" "--train_batch_size 4"; do
    local flags=(--pretrained_model_name_or_path "$model" --instance_data_dir "$assets/teddy_bear"
      --instance_prompt "a sks bear" --mixed_precision bf16 --cache_latents --device cuda)
    # shellcheck disable=SC2206 # the words of one line
    flags+=($more)
    local said took
    said=$(env -u LD_PRELOAD "$build/bin/train_dreambooth_lora" --dry_run "${flags[@]}" | sed -n 's/^  Memory = //p')
    took=$(on_gpu "$build/bin/train_dreambooth_lora" "${flags[@]}" --max_train_steps 6 --output_dir "$build/memory" \
      --overwrite_output_dir | sed -n 's/^peak memory: *//p') || return 1
    echo "memory | $more | the dry run says $said | LibTorch took $took"
    [[ $said && $took ]] || return 1
  done
}

phase_determinism() {
  local run
  for run in first second; do
    on_gpu "$build/bin/train_dreambooth_lora" --pretrained_model_name_or_path "$assets/base" --instance_data_dir \
      "$assets/teddy_bear" --instance_prompt "a sks bear" --device cuda --deterministic --max_train_steps 20 \
      --output_dir "$build/$run" --overwrite_output_dir >/dev/null || return 1
  done
  cmp "$build/first/lightlora.safetensors" "$build/second/lightlora.safetensors" && echo "two runs: equal bytes"
}

phase_sanitizer() {
  if [[ $fake ]] || ! command -v compute-sanitizer >/dev/null; then
    echo "no compute-sanitizer here"
    return
  fi
  compute-sanitizer --tool memcheck --error-exitcode 1 "$build/bin/train_dreambooth_lora" \
    --pretrained_model_name_or_path "$assets/base" --instance_data_dir "$assets/teddy_bear" --instance_prompt \
    "a sks bear" --device cuda --max_train_steps 4 --output_dir "$build/sanitizer" --overwrite_output_dir | tail -20
}

main() {
  local phases=("$@") phase start result failed=0
  ((${#phases[@]})) || phases=("${all[@]}")
  : >"$out/log.txt"
  printf '| phase | result | seconds |\n|---|---|---|\n' >"$out/summary.md"
  for phase in "${phases[@]}"; do
    [[ " ${all[*]} " == *" $phase "* ]] || {
      echo "gpu_check: '$phase': expected one of ${all[*]}" >&2
      exit 2
    }
    start=$SECONDS
    echo "== $phase" | tee -a "$out/log.txt"
    if "phase_$phase" >>"$out/log.txt" 2>&1; then result=passed; else result=FAILED failed=1; fi
    echo "| $phase | $result | $((SECONDS - start)) |" >>"$out/summary.md"
  done
  grep '^memory | ' "$out/log.txt" >>"$out/summary.md"
  [[ $fake ]] && echo "Simulated: no GPU was used." >>"$out/summary.md"
  cat "$out/summary.md"
  return $failed
}

main "$@"
