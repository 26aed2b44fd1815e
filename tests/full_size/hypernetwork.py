# SPDX-License-Identifier: Apache-2.0
"""A hypernetwork at Stable Diffusion 1.5's full size, random weights: one step of everything, time and peak memory, and how
long a whole training would take at that pace.

Usage: hypernetwork.py <folder of the programs> <scratch folder> [--device cuda] [--mixed_precision bf16] [--identities 15000]
Not part of `make test`: it needs 5 GB of disk, 16 GB of memory and, on two cores, a quarter of an hour.
"""

import argparse
import pathlib
import resource
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
PICTURES = HERE.parents[1] / "examples/stable_diffusion/assets/teddy_bear"
# The paper's layers: attention of UNet and text encoder, and the text encoder's feed-forward layers.
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def peak(title, *command):
    """Seconds that a command takes; prints them with the peak resident memory of all commands so far."""
    begin = time.time()
    subprocess.run([str(word) for word in command], check=True)
    seconds = time.time() - begin
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"{title}: {seconds:.1f} s, peak memory so far {memory:.1f} GB", flush=True)
    return seconds


def make_things(folder):
    """Two things, of three pictures each."""
    pictures = sorted(PICTURES.glob("*.png"))
    for number, picture in enumerate(pictures):
        thing = folder / f"thing_{number % 2}"
        thing.mkdir(parents=True, exist_ok=True)
        for file in [picture, picture.with_suffix(".txt")]:
            shutil.copy(file, thing)
    return pictures[0]


def learn(options, steps, targets):
    """Seconds of so many steps of a network, each of one picture, after as many of each thing's adapters."""
    output = options.scratch / f"network-{steps}-{targets}"
    shutil.rmtree(output, ignore_errors=True)
    layers = [word for layer in TEXT_LAYERS for word in ("--text_encoder_target_modules", layer)]
    return peak(
        f"network: {steps} steps, {targets} of the adapters to learn from, a picture each",
        *[options.bin / "train_hypernetwork", "--pretrained_model_name_or_path", options.scratch / "model"],
        *["--identities_dir", options.scratch / "things", "--instance_prompt", "a sks bear"],
        *["--train_text_encoder", *layers, "--output_dir", output, "--device", options.device],
        *["--mixed_precision", options.mixed_precision, "--gradient_checkpointing"],
        *["--target_steps", targets, "--targets_at_once", 1, "--target_pictures", 1, "--validation_steps", 0],
        *["--train_batch_size", 1, "--pictures_per_identity", 1, "--max_train_steps", steps],
        *["--lr_warmup_steps", 0, "--lr_decay_steps", 0],
    )


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("bin", type=pathlib.Path)
    parser.add_argument("scratch", type=pathlib.Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mixed_precision", default="no")
    parser.add_argument("--identities", type=int, default=15000)
    parser.add_argument("--target_steps", type=int, default=100)
    parser.add_argument("--target_pictures", type=int, default=4)
    parser.add_argument("--network_steps", type=int, default=100000)
    parser.add_argument("--network_pictures", type=int, default=32, help="things of a step times pictures of each")
    return parser.parse_args()


def main():
    options = parse()
    if not (options.scratch / "model").exists():
        subprocess.run([sys.executable, HERE / "make_model.py", options.scratch / "model"], check=True)
    picture = make_things(options.scratch / "things")
    few = learn(options, steps=1, targets=1)
    network = (learn(options, steps=3, targets=1) - few) / 2
    target = (learn(options, steps=1, targets=3) - few) / 4  # two more for each of two things
    print(f"a picture in a step: {network:.2f} s of a network, {target:.2f} s of adapters to learn from")
    passes = options.identities * options.target_steps * options.target_pictures
    more = options.network_steps * options.network_pictures
    hours = (passes * target + more * network) / 3600
    print(f"{options.identities} identities ({passes} + {more} pictures): {hours:.0f} hours of this device")
    peak(
        "personalize: a prediction, 1 step, 1 picture of 1 step",
        *[options.bin / "personalize", "--pretrained_model_name_or_path", options.scratch / "model"],
        *["--hypernetwork", options.scratch / "network-1-1", "--image", picture, "--prompt", "a sks bear"],
        *["--output_dir", options.scratch / "personalized", "--overwrite_output_dir", "--max_train_steps", 1],
        *["--num_images_per_prompt", 1, "--num_inference_steps", 1, "--device", options.device],
        *["--mixed_precision", options.mixed_precision],
    )


main()
