#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Loads, trains for two steps and draws with two steps at Stable Diffusion 1.5's full size, and prints
# time and peak memory of each.   tests/full_size/check.sh <folder of the programs> <scratch folder> [flags]
# With SDXL=1 at SDXL's instead: in bf16, training at 512x512 and drawing at 1024x1024.
# With LIMIT=<bytes> both run in a control group of that size, with --memory_limit (as root).
# Not part of `make test`: it needs 5 GB of disk, 20 GB of memory and some minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$1
scratch=$2
python="$here/../../.deps/python/bin/python3"

family=()
training=()
drawing=()
side=512
if [[ -n ${SDXL:-} ]]; then
  family=(sdxl)
  training=(--mixed_precision bf16 --gradient_checkpointing --cache_latents --resolution 512)
  drawing=(--dtype bf16 --vae_tiling)
  side=1024
fi
if [[ -n ${LIMIT:-} ]]; then
  training+=(--memory_limit "$LIMIT")
  drawing+=(--memory_limit "$LIMIT")
fi
[[ -d $scratch/model ]] || "$python" "$here/make_model.py" "$scratch/model" "${family[@]}"

# peak <title> <command...>: runs it, then prints its time and peak resident memory.
peak() {
  local title=$1
  shift
  "$python" - "$title" "$@" <<'END'
import os, pathlib, resource, subprocess, sys, time

def enter_group():
    """Moves this process into a control group of LIMIT bytes: version 1 if it has one for memory, else 2."""
    root = pathlib.Path("/sys/fs/cgroup")
    group = (root / "memory" if (root / "memory").is_dir() else root) / "lightlora-check"
    group.mkdir(exist_ok=True)
    limit = group / "memory.limit_in_bytes"
    (limit if limit.exists() else group / "memory.max").write_text(os.environ["LIMIT"])
    (group / "cgroup.procs").write_text(str(os.getpid()))

start = time.time()
status = subprocess.call(sys.argv[2:], preexec_fn=enter_group if os.environ.get("LIMIT") else None)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
print(f"{sys.argv[1]}: {time.time() - start:.0f} s, peak memory {peak:.1f} GB")
sys.exit(status)
END
}

peak "train 2 steps at 512x512" "$bin/train_dreambooth_lora" --pretrained_model_name_or_path "$scratch/model" \
  --instance_data_dir "$here/../../examples/stable_diffusion/assets/teddy_bear" --instance_prompt "a sks bear" \
  --output_dir "$scratch/out" --train_batch_size 1 --max_train_steps 2 --device cpu "${training[@]}" "${@:3}"
peak "draw 2 steps at ${side}x$side" "$bin/text_to_image" --pretrained_model_name_or_path "$scratch/model" \
  --lora "$scratch/out/lightlora.safetensors" --prompt "a sks bear" --num_inference_steps 2 --seed 1 \
  --device cpu "${drawing[@]}" --output "$scratch/picture.png"
