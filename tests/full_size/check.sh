#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Loads, trains for two steps and draws with two steps at Stable Diffusion 1.5's full size, and prints
# time and peak memory of each.   tests/full_size/check.sh <folder of the programs> <scratch folder> [flags]
# With SDXL=1 at SDXL's instead: in bf16, training at 512x512 and drawing at 1024x1024.
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
[[ -d $scratch/model ]] || "$python" "$here/make_model.py" "$scratch/model" "${family[@]}"

# peak <title> <command...>: runs it, then prints its time and peak resident memory.
peak() {
  local title=$1
  shift
  "$python" - "$title" "$@" <<'END'
import resource, subprocess, sys, time
start = time.time()
status = subprocess.call(sys.argv[2:])
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
