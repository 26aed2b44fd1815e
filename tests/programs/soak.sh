#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains, kills with SIGKILL at a random moment, goes on, and draws, in a loop; then trains the same
# without a stop and compares.   tests/programs/soak.sh <folder of the programs> <minutes> [scratch folder]
# Fails if a checkpoint is lost or damaged, if the weights at the end differ from those of the run
# that never stopped, or if a program's peak memory grows from round to round. Not part of `make test`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$1
minutes=$2
scratch=${3:-$(mktemp -d)}
model=$here/../../examples/stable_diffusion/assets/base
output=$scratch/soak
mkdir -p "$scratch"

train() {  # <output folder> <steps> [flags...]; a subshell, so that `&` gives the program's own number
  exec "$bin/train_dreambooth_lora" --pretrained_model_name_or_path "$model" \
    --instance_data_dir "$here/../../examples/stable_diffusion/assets/teddy_bear" --instance_prompt "a sks bear" \
    --output_dir "$1" --max_train_steps "$2" --train_batch_size 2 --random_flip --noise_offset 0.05 \
    --caption_dropout_rate 0.2 --checkpointing_steps 5 --checkpoints_total_limit 3 --seed 11 --device cpu "${@:3}"
}

# newest: the step of the last checkpoint, 0 if there is none.
newest() {
  local last
  last=$(find "$output" -maxdepth 1 -name 'checkpoint-*' 2>/dev/null | sed 's/.*checkpoint-//' | sort -n | tail -1)
  echo "${last:-0}"
}

fail() {
  echo "soak: $1" >&2
  exit 1
}

end=$((SECONDS + minutes * 60))
rounds=0
first_memory=0
largest_memory=0
while ((SECONDS < end)); do
  before=$(newest)
  (train "$output" 1000000 --resume_from_checkpoint latest) >"$scratch/train.log" 2>&1 &
  process=$!
  sleep "$((RANDOM % 20 + 4)).$((RANDOM % 10))"
  kill -0 "$process" 2>/dev/null || fail "the trainer ended by itself: $(tail -1 "$scratch/train.log")"
  memory=$(awk '/VmHWM/ {print $2}' "/proc/$process/status")
  kill -KILL "$process"
  wait "$process" 2>/dev/null || true
  after=$(newest)
  ((after >= before)) || fail "the checkpoint of step $before is lost, the last is $after"
  ((rounds == 0)) && first_memory=$memory
  ((memory > largest_memory)) && largest_memory=$memory
  rounds=$((rounds + 1))
  if ((after > 0)); then
    "$bin/text_to_image" --pretrained_model_name_or_path "$model" --device cpu --num_inference_steps 4 \
      --lora "$output/checkpoint-$after/lightlora.safetensors" --prompt "a sks bear" --seed 1 \
      --output "$scratch/picture.png" >/dev/null || fail "checkpoint-$after does not draw"
  fi
  echo "round $rounds: step $before to $after, peak memory $((memory / 1024)) MB"
done

last=$(newest)
(train "$output" $((last + 3)) --resume_from_checkpoint latest) >"$scratch/train.log"
(train "$scratch/whole" $((last + 3))) >"$scratch/whole.log"
cmp "$output/lightlora.safetensors" "$scratch/whole/lightlora.safetensors" ||
  fail "the weights differ from those of a run that never stopped"
# 15 % and 20 MB: how far a run comes decides which of its buffers are in use when it is killed.
((largest_memory < first_memory * 115 / 100 + 20480)) ||
  fail "peak memory grew from $first_memory to $largest_memory kB"
[[ -z $(find "$output" -maxdepth 1 -name '.checkpoint*') ]] || fail "unfinished checkpoints were left"
echo "soak: $rounds rounds, $((last + 3)) steps, nothing lost; peak memory $((first_memory / 1024)) MB in the" \
  "first round, $((largest_memory / 1024)) MB at most"
