#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds, tests and measures on a machine with an NVIDIA GPU, with or without a network, and leaves one folder of
# results and one table to paste into an issue.
#
#   scripts/gpu_check.sh [phase...]      default: all of them
#
#     env          what the results were made with
#     build        programs, tests and benchmarks
#     tests        the library's cases and properties on the GPU
#     precision    layers and models against fp64, with each of LibTorch's kernels for attention
#     parity       the programs against the CPU: training of each kind, recorded steps, resuming, pictures
#     waits        waits for the GPU in a step, counted through LibTorch's synchronisation debug mode
#     nccl         NCCL with one process
#     speed        layer, training step and denoising step beside diffusers and PEFT, alternating in one run
#     attention    time of a step with each of LibTorch's kernels for attention
#     choices      time of what was chosen on a CPU, or not at all: cuDNN's search, channels last, ranks, routes
#     memory       what a run takes beside what the dry run says, and what it takes of an 8 GB card
#     determinism  equal bytes with --deterministic
#     sanitizer    compute-sanitizer over a few steps
#
#   OUT=gpu_check       the folder of results
#   BUILD=build-gpu     the folder to build in; what is there is kept
#   PYTHON=python3      one with torch and, for `speed`, diffusers and PEFT
#   LIMIT=600           seconds that a phase may take
#   GPU_CHECK_FAKE=1    rehearsal without a GPU: on the simulated device and the bundled model
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
readonly all=(env build tests precision parity waits nccl speed attention choices memory determinism sanitizer)
readonly python=${PYTHON:-python3}
readonly training=("$build/bin/train_dreambooth_lora" --pretrained_model_name_or_path "$assets/base"
  --instance_data_dir "$assets/teddy_bear" --instance_prompt "a sks bear" --overwrite_output_dir)

use_kit() {
  local architecture=x86_64-linux-gnu
  # jconfig.h and the like lie where only the compiler of a whole Debian looks.
  export CPLUS_INCLUDE_PATH=$deps/usr/include/$architecture${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH}
  export LD_LIBRARY_PATH=$deps/usr/lib/$architecture${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export PYTHONPATH=$deps/python${PYTHONPATH:+:$PYTHONPATH}
}

# on_gpu <program> <arguments...>: with the simulated device in a rehearsal.
on_gpu() {
  if [[ $fake ]]; then
    LD_PRELOAD=$build/lib/libfake_cuda.so "$@"
  else
    "$@"
  fi
}

# result <what> <figure>: a line of the table.
result() {
  echo "RESULT | $1 | $2"
}

torch_folder() {
  if [[ -n ${Torch_DIR:-} ]]; then
    realpath "$Torch_DIR/../../.."
  else
    "$python" -c 'import importlib.util, os; print(os.path.dirname(importlib.util.find_spec("torch").origin))'
  fi
}

phase_env() {
  git log -1 --format='%H %s' 2>/dev/null
  uname -a
  nproc
  if [[ $fake ]]; then
    result "GPU" "none: simulated"
  else
    nvidia-smi || return 1
    result "GPU" "$(nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader | head -1)"
  fi
  local torch
  torch=$(torch_folder) && echo "LibTorch in $torch" && cat "$torch/version.py" || return 1
  result "LibTorch" "$(sed -n "s/^__version__ = '\(.*\)'/\1/p" "$torch/version.py")"
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
  "$python" -m pip install --quiet --no-index --find-links "$kit" --no-deps --target "$deps/python" \
    diffusers importlib_metadata pillow || return 1
  use_kit
}

phase_build() {
  local cuda=ON targets=(train_dreambooth_lora textual_inversion text_to_image library_tests stable_diffusion_tests
    existing_model layer_benchmark step_benchmark generate_benchmark)
  if [[ $fake ]]; then
    [[ -x $build/bin/train_dreambooth_lora && ! -d $deps ]] && return  # what `make` built
    cuda=OFF targets+=(fake_cuda)
  else
    targets+=(lightlora_cuda count_waits)
  fi
  unpack_kit || return 1
  local config
  config=$(torch_folder)/share/cmake/Torch
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLIGHTLORA_CUDA=$cuda -DLIGHTLORA_TORCH=DIRECT \
    -DTorch_DIR="$config" -DCMAKE_PREFIX_PATH="$deps/usr" -DCMAKE_LIBRARY_ARCHITECTURE=x86_64-linux-gnu || return 1
  cmake --build "$build" --target "${targets[@]}" || return 1
  readelf -d "$build/bin/train_dreambooth_lora" "$build"/lib/*.so | grep NEEDED
}

phase_tests() {
  export LIGHTLORA_TEST_DEVICE=cuda:0
  on_gpu "$build/tests/library_tests" "[cuda]~[precision]" || return 1
  [[ $fake ]] || "$build/tests/library_tests" --filenames-as-tags "[#properties_test]"
}

phase_precision() {
  export LIGHTLORA_TEST_DEVICE=cuda:0 NVIDIA_TF32_OVERRIDE=0 LIGHTLORA_EACH_KERNEL=1
  local failed=0
  on_gpu "$build/tests/library_tests" "[precision]" || failed=1
  on_gpu "$build/tests/stable_diffusion_tests" "[precision]" || failed=1
  return $failed
}

# programs <test...>: of tests/programs/simulated_cuda_test.py, or another $file, with what it found as lines of the table.
programs() {
  [[ $fake ]] || export LIGHTLORA_REAL_GPU=1
  "$python" "tests/programs/${file:-simulated_cuda}_test.py" "$@" | sed 's/^  \([^:]*\): \(.*\)$/RESULT | \1 | \2/'
}

phase_parity() {
  if [[ $fake ]]; then
    programs a_word
  else
    programs training_has the_recorded dropout a_run a_word pictures recorded_steps || return 1
    file=simulated_cuda_variants programs || return 1
    file=simulated_cuda_sdxl programs || return 1
    file=simulated_cuda_encoding programs
  fi
}

phase_waits() {
  if [[ $fake ]]; then
    programs denoising
  else
    programs a_training_step denoising
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
  local what peers=(--device cuda --seconds 20 --cases "sd15 512x512 bf16" "sd15 512x512 bf16 batch 4")
  if [[ $fake ]]; then
    echo "77 64 32 fp32 classic 4 auto 2" |
      on_gpu "$build/bin/layer_benchmark" --device cuda --serve || return 1
    # PyTorch would bring a CUDA of its own.
    peers=(--device cpu --seconds 0 --most_rounds 1 --cases "bundled bf16")
  else
    "$build/bin/layer_benchmark" --device cuda --quick || return 1
  fi
  for what in train generate; do
    [[ $fake && $what == generate ]] && break
    "$python" benchmarks/program_vs_diffusers.py $what --bin "$build/bin" --json "$out/speed_$what.json" \
      "${peers[@]}" | sed 's/^\(train\|generate\)  *\(.*[^ ]\)  *ours  *\(.*\)$/RESULT | \1, \2 | ours \3/' || return 1
  done
}

# timed <name> <benchmark> <flags...>: the median time of a step, of SD 1.5 at 512x512 in bf16.
timed() {
  local name=$1 program=$2 seconds
  local unet=(--unet_config benchmarks/sd15_unet.json --size 64 --steps 20)
  [[ $fake ]] && unet=(--unet_config "$assets"/base/unet/config.json --size 8 --steps 1)
  seconds=$(on_gpu "$build/bin/$program" --device cuda --dtype bf16 "${unet[@]}" "${@:3}" |
    sed -n 's/^median of [0-9]* steps: \([^ ]*\) s .*/\1/p')
  result "${program%_benchmark}, $name" "${seconds:-failed}${seconds:+ s}"
  [[ $seconds ]]
}

phase_attention() {
  local program kernels others=(flash efficient math cudnn)
  [[ $fake ]] && others=(flash math) # a CPU has these
  for program in step_benchmark generate_benchmark; do
    timed "attention usual" $program || return 1
    # One that cannot be used for these sizes is a result, too.
    for kernels in "${others[@]}"; do timed "attention $kernels" $program --attention "$kernels"; done
  done
  return 0
}

phase_choices() {
  local program failed=0
  for program in step_benchmark generate_benchmark; do
    timed "as it is" $program || failed=1
    timed "--cuda_graph off" $program --cuda_graph off || failed=1
    timed "--cudnn_benchmark" $program --cudnn_benchmark || failed=1
    timed "--channels_last" $program --channels_last || failed=1
  done
  # cuBLAS wants rows of 16 bytes, which are 8 ranks in half precision.
  timed "classic, rank 4" step_benchmark --rank 4 --cuda_graph off || failed=1
  timed "classic, rank 8" step_benchmark --rank 8 --cuda_graph off || failed=1
  timed "bypass" step_benchmark --route bypass --batch 4 || failed=1
  timed "merged" step_benchmark --route merged --batch 4 || failed=1
  # LoRA-XS decomposes each layer's weight in fp64, which consumer GPUs are slow in.
  local devices=(cpu cuda) device
  [[ $fake ]] && devices=(cpu)
  for device in "${devices[@]}"; do
    result "SVD of 1280x1280 in fp64 on $device" "$("$python" -c "
import time, torch
x = torch.randn(1280, 1280, dtype=torch.float64, device='$device')
for size in [64, 64 if '$fake' else 1280]:
    start = time.monotonic()
    torch.linalg.svd(x[:size, :size])[1].sum().item()
print(f'{time.monotonic() - start:.3f} s')")" || failed=1
  done
  return $failed
}

# take <flags...>: the memory that a short training of these flags says it took.
take() {
  on_gpu "$build/bin/train_dreambooth_lora" "$@" --max_train_steps 6 --output_dir "$build/memory" \
    --overwrite_output_dir | sed -n 's/^peak memory: *//p'
}

phase_memory() {
  local model=$assets/base more said took share failed=0
  [[ $fake ]] || model=$build/sd15
  [[ -d $model ]] || "$python" tests/full_size/make_model.py "$model" || return 1
  local flags=(--pretrained_model_name_or_path "$model" --instance_data_dir "$assets/teddy_bear"
    --instance_prompt "a sks bear" --mixed_precision bf16 --cache_latents --device cuda)
  local kinds=("--train_batch_size 1" "--train_batch_size 1 --cuda_graph off"
    "--train_batch_size 1 --gradient_checkpointing" "--train_batch_size 4")
  [[ $fake ]] && kinds=("${kinds[@]:0:2}")
  for more in "${kinds[@]}"; do
    # shellcheck disable=SC2086 # the words of one line
    said=$("$build/bin/train_dreambooth_lora" --dry_run "${flags[@]}" $more | sed -n 's/^  Memory = //p')
    # shellcheck disable=SC2086
    took=$(take "${flags[@]}" $more) || failed=1
    result "memory, $more" "the dry run says $said; LibTorch took $took"
    [[ $said && $took ]] || failed=1
  done
  [[ $fake ]] && return $failed
  share=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | awk 'NR == 1 {print (8000 - 600) / $1}')
  for more in "${kinds[@]}"; do
    # shellcheck disable=SC2086
    took=$(PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:$share take "${flags[@]}" $more)
    result "8 GB card, $more" "${took:-does not fit}"
  done
  return $failed
}

phase_determinism() {
  local run
  for run in first second; do
    on_gpu "${training[@]}" --device cuda --deterministic --max_train_steps 20 --output_dir "$build/$run" >/dev/null ||
      return 1
  done
  cmp "$build/first/lightlora.safetensors" "$build/second/lightlora.safetensors" || return 1
  result "two runs with --deterministic" "equal bytes"
}

phase_sanitizer() {
  if [[ $fake ]] || ! command -v compute-sanitizer >/dev/null; then
    echo "no compute-sanitizer here"
    return
  fi
  compute-sanitizer --tool memcheck --error-exitcode 1 "${training[@]}" --device cuda --max_train_steps 4 \
    --output_dir "$build/sanitizer" | tail -20
}

# A phase in a process of its own, which has a limit of time: its exports end with it.
run_phase() {
  [[ ! -d $deps ]] || use_kit
  "phase_$1"
}

main() {
  local phases=("$@") phase start verdict failed=0
  ((${#phases[@]})) || phases=("${all[@]}")
  for phase in "${phases[@]}"; do
    [[ " ${all[*]} " == *" $phase "* ]] || {
      echo "gpu_check: '$phase': expected one of ${all[*]}" >&2
      exit 2
    }
  done
  mkdir -p "$out" "$build"
  : >"$out/log.txt"
  printf '| phase | result | seconds |\n|---|---|---|\n' >"$out/summary.md"
  for phase in "${phases[@]}"; do
    start=$SECONDS
    echo "== $phase" >>"$out/log.txt"
    GPU_CHECK_PHASE=$phase timeout "${LIMIT:-600}" scripts/gpu_check.sh >"$out/phase.txt" 2>&1
    case $? in
      0) verdict=passed ;;
      124) verdict="FAILED after ${LIMIT:-600} s, its limit" failed=1 ;;
      *) verdict=FAILED failed=1 ;;
    esac
    echo "| $phase | $verdict | $((SECONDS - start)) |" >>"$out/summary.md"
    sed -n "s/^RESULT | \(.*\)/| $phase: \1 | |/p" "$out/phase.txt" >>"$out/summary.md"
    cat "$out/phase.txt" >>"$out/log.txt"
  done
  rm "$out/phase.txt"
  [[ $fake ]] && printf '\nSimulated: no GPU was used.\n' >>"$out/summary.md"
  cat "$out/summary.md"
  return $failed
}

export LIGHTLORA_BIN=$build/bin LIGHTLORA_SOURCE_DIR=$PWD
if [[ ${GPU_CHECK_PHASE:-} ]]; then
  run_phase "$GPU_CHECK_PHASE"
else
  main "$@"
fi
