#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The demo: teaches the bundled base model a subject that it has never seen, and draws the same
# prompts before and after.   scripts/demo.sh <folder of the programs>
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$1
model=examples/stable_diffusion/assets/base
subject=examples/stable_diffusion/assets/teddy_bear
output=demo

echo
echo "Teaching $model the teddy bear in $subject"
"$bin/train_dreambooth_lora" --pretrained_model_name_or_path "$model" --instance_data_dir "$subject" \
  --instance_prompt "a sks bear" --output_dir "$output" --overwrite_output_dir --variant light --rank 4 \
  --learning_rate 5e-3 --train_batch_size 6 --max_train_steps 400 --seed 1

prompts=()
for colour in blue black teal pink; do
  prompts+=(--prompt "a sks bear on a $colour background")
done
echo
echo "Drawing it on backgrounds that its pictures never showed"
"$bin/before_after" --pretrained_model_name_or_path "$model" --lora "$output/lightlora.safetensors" \
  --subject_pictures "$subject" --output_dir "$output" --emoji_vectors examples/stable_diffusion/assets/measures/emoji.safetensors \
  --emoji "teddy bear" "${prompts[@]}"

cat <<END

Look at $output/contact_sheet.png. Then try:
  $bin/text_to_image --pretrained_model_name_or_path $model --lora $output/lightlora.safetensors:0.8 \\
    --prompt "a sks bear on a yellow background" --seed 1 --output $output/yellow.png
  $bin/train_dreambooth_lora --help      # the same on your own photos and a Stable Diffusion 1.5 folder
$output/pytorch_lora_weights.safetensors opens in diffusers as it is (pipe.load_lora_weights("$output")).
END
