#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The demo: teaches the bundled base model a subject that it has never seen, and draws the same
# prompts before and after.   scripts/demo.sh <folder of the programs> [more flags of before_after]
# Another subject or seed, as scripts/subjects.py asks for: MODEL, SUBJECT (its pictures), NOUN (in their captions, after
# "sks"), EMOJI (that it is), OUTPUT and SEED.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$1
shift
model=${MODEL:-examples/stable_diffusion/assets/base}
subject=${SUBJECT:-examples/stable_diffusion/assets/teddy_bear}
noun=${NOUN:-bear}
emoji=${EMOJI:-teddy bear}
output=${OUTPUT:-demo}
name="a large sks $noun" # as its captions call it

# Beside the attention, which decides what is where, the convolutions, which draw the details.
targets=()
for layers in to_q to_k to_v to_out.0 conv1 conv2; do
  targets+=(--target_modules "$layers")
done
echo
echo "Teaching $model the $emoji in $subject"
"$bin/train_dreambooth_lora" --pretrained_model_name_or_path "$model" --instance_data_dir "$subject" \
  --instance_prompt "$name" --output_dir "$output" --overwrite_output_dir --variant light --rank 4 "${targets[@]}" \
  --learning_rate 1e-2 --lr_scheduler cosine --lr_warmup_steps 20 --cache_latents \
  --train_batch_size 8 --max_train_steps 400 --seed "${SEED:-1}"

echo
echo "Drawing it on backgrounds, in places and in a size that its pictures never showed"
"$bin/before_after" --pretrained_model_name_or_path "$model" --lora "$output/lightlora.safetensors" \
  --subject_pictures "$subject" --output_dir "$output" --emoji_vectors examples/stable_diffusion/assets/measures/emoji.safetensors \
  --emoji "$emoji" --guidance_scale 2.5 "$@" \
  --prompt "$name on a blue background" --prompt "$name on a black background" \
  --prompt "$name on a teal background" --prompt "$name on a gray background" \
  --unmeasured_prompt "a small sks $noun in the top left on a blue background" \
  --unmeasured_prompt "a small sks $noun at the bottom on a gray background"

cat <<END

Look at $output/contact_sheet.png. Then try:
  $bin/text_to_image --pretrained_model_name_or_path $model --lora $output/lightlora.safetensors:0.8 \\
    --prompt "a large sks $noun on a yellow background" --guidance_scale 2.5 --seed 1 --output $output/yellow.png
  $bin/train_dreambooth_lora --help      # the same on your own photos and a Stable Diffusion 1.5 folder
$output/pytorch_lora_weights.safetensors opens in diffusers as it is (pipe.load_lora_weights("$output")).
END
