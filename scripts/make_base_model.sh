#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the bundled base model again, from Debian's emoji font to the folder that the demo uses:
#
#   scripts/make_base_model.sh [output folder, default build/base_model] [configuration]
#
# The configuration is by default that of the bundled model. On two cores of an EPYC that know bf16 (AMX) the autoencoder's
# 2,200 steps of 16 pictures took 17 minutes and 7,400 steps of 32 pictures of text encoder and UNet about two hours. A
# run that was stopped goes on where it was when it is called again. The stage `measure` first trains the classifier that
# judges (a minute), then draws; it ends with the table of the model's card, and the figures lie in figures.json.
set -euo pipefail
cd "$(dirname "$0")/.."

output=${1:-build/base_model}
config=${2:-examples/stable_diffusion/research/pretraining/base.json}

scripts/bootstrap.sh
scripts/build.sh dev make_dataset pretrain

# LibTorch allocates and frees large tensors at every operation; with this allocator, if it is
# there (Debian: libtcmalloc-minimal4), one core took 37.0 pictures a second where it took 31.5 without.
for library in /usr/lib/*/libtcmalloc_minimal.so.4; do
  [[ ! -e $library ]] || export LD_PRELOAD=$library
done

build/bin/make_dataset --config "$config" --output_dir "$output/data"
for stage in tokenizer vae diffusion measure; do
  build/bin/pretrain --config "$config" --dataset_dir "$output/data" --stage $stage --output_dir "$output/model"
done
echo
echo "The model is in $output/model, in fp16. To bundle it: copy model_index.json, scheduler, text_encoder, tokenizer,"
echo "unet and vae to examples/stable_diffusion/assets/base, and data/subjects/teddy_bear to examples/stable_diffusion/assets/teddy_bear;"
echo "then scripts/subjects.py measures the demo on it, and make study compares the variants on it."
