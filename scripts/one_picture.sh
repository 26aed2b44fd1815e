#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The end of the demo: a hypernetwork looks at one picture of the demo's subject, predicts adapters, and a few steps finish
# them.   scripts/one_picture.sh <folder of the programs>
# Nothing where no hypernetwork is bundled: scripts/make_hypernetwork.sh makes one.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$1
network=examples/stable_diffusion/assets/hypernetwork
[[ -e $network/hypernetwork.safetensors ]] || exit 0
picture=$(echo examples/stable_diffusion/assets/teddy_bear/0_*.png)
colour=${picture##*/0_}
colour=${colour%.png}

echo
echo "The same from one picture, $picture, in seconds"
"$bin/personalize" --pretrained_model_name_or_path examples/stable_diffusion/assets/base --hypernetwork "$network" \
  --image "$picture" --instance_prompt "a sks thing on a $colour background" --prompt "a sks thing on a blue background" \
  --learning_rate 8e-3 --guidance_scale 4 --output_dir demo/one_picture --overwrite_output_dir --seed 1
