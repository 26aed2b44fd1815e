#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains the hypernetwork of the bundled base model, on emoji outside its vocabulary, and puts it with its card where
# `make demo` finds it:
#
#   scripts/make_hypernetwork.sh [output folder, default build/hypernetwork] [more flags of train_hypernetwork]
#
# A run that was stopped goes on where it was when it is called again. PROCESSES=2 shares the work.
set -euo pipefail
cd "$(dirname "$0")/.."

output=${1:-build/hypernetwork}
shift $(($# > 0))
base=examples/stable_diffusion/assets/base
assets=examples/stable_diffusion/assets/hypernetwork

scripts/bootstrap.sh
scripts/build.sh dev make_dataset train_hypernetwork personalize

# Eight pictures of each; no subgroup of Unicode is on both sides.
if [[ ! -e $output/data/held_out ]]; then
  build/bin/make_dataset --config examples/stable_diffusion/research/pretraining/base.json --output_dir "$output/data.new" \
    --identities 8
  mv "$output/data.new" "$output/data"
fi
launcher=()
if ((${PROCESSES:-1} > 1)); then
  launcher=("$(command -v torchrun || echo .deps/python/bin/torchrun)" --no-python --standalone --nproc-per-node "$PROCESSES")
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
# From pictures alone: adapters of each thing to learn from would take twice as long as the rest. Beside the attention, what
# tells each block the timestep, which costs next to nothing and can say something of the thing too.
command=(train_hypernetwork --pretrained_model_name_or_path "$base" --identities_dir "$output/data/identities"
  --validation_dir "$output/data/held_out" --instance_prompt "a sks thing" --output_dir "$output/network"
  --target_modules to_q --target_modules to_k --target_modules to_v --target_modules to_out.0 --target_modules time_emb_proj
  --rank 2 --width 160 --iterations 1 --target_steps 0 --prediction_penalty 0.0003 --prediction_scale 0.2
  --train_batch_size 16 --pictures_per_identity 2 --learning_rate 1e-3 --lr_warmup_steps 10 --lr_decay_steps 500
  --max_train_steps 1700 --validation_steps 300 --mixed_precision bf16 "$@")
"${launcher[@]}" "build/bin/${command[0]}" "${command[@]:1}"

mkdir -p "$assets"
cp "$output/network/hypernetwork.safetensors" "$output/network/mean_adapter.safetensors" "$assets"
python3 - "$output" "$assets" "${command[*]}" <<'END'
import json, pathlib, shutil, struct, sys

output, assets = map(pathlib.Path, sys.argv[1:3])
lines = (output / "network/runs/hypernetwork/metrics.jsonl").read_text().splitlines()
last = [row for row in map(json.loads, lines) if "validation_loss_of_mean" in row][-1]
file = assets / "hypernetwork.safetensors"
data = file.read_bytes()
header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
sizes = json.loads(header.pop("__metadata__")["hypernetwork"])
layers = sizes.pop("layers")
things = [sum(1 for path in (output / "data" / side).iterdir() if path.is_dir()) for side in ("identities", "held_out")]
losses = "\n".join(
    f"| {title} | {last[key]:.4f} |"
    for title, key in [
        ("the prediction", "validation_loss"),
        ("the prediction for another picture", "validation_loss_of_shuffled"),
        ("the mean adapter", "validation_loss_of_mean"),
        ("no adapter", "validation_loss_of_base"),
    ]
)
shutil.copyfile(output / f"network/samples/step-{last['step']}.png", assets / "samples.png")
(assets / "README.md").write_text(f"""# Model card: the hypernetwork of the bundled base

Predicts {sum(count for _, count in layers)} values, the adapters of {len(layers)} layers of the [base model](../base/README.md), from one picture of
64x64 pixels; {len(data) / 1e6:.1f} MB in fp16. [HyperDreamBooth](../../../../docs/hyperdreambooth.md) says how it works and how to use it.

Learned from {things[0]} emoji outside the base's vocabulary (Noto Color Emoji, as the base); sizes: {json.dumps(sizes)[1:-1].replace('"', "")}.
Made by `scripts/make_hypernetwork.sh`, which calls

    {sys.argv[3]}

Loss of drawing {things[1]} emoji that neither it nor the base has seen (up to 16 of them are measured), after {last["step"]} steps:

| with | loss |
|---|---|
{losses}

![Pictures that it was shown, and what the predictions draw](samples.png)

*Above eight of the pictures shown, below what their predictions draw of "a sks thing", from one noise and without any tuning:
the colours, and of the shapes a first idea.*

How it compares with other ways, alone and after 40 steps: [study](../../../../docs/study/hypernetwork.md). It knows emoji on
flat colours and nothing else. Offered under the Apache License 2.0.
""")
print(f"network and card: {assets}, {len(data) / 1e6:.1f} MB of at most 15")
END
