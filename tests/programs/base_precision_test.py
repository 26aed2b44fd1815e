# SPDX-License-Identifier: Apache-2.0
"""The UNet's frozen weights in eight bits: training and drawing come near to those with full weights."""

import json
import pathlib

import tomllib
from support import MODEL, SUBJECT, distance, draw, main, read_latents, run, scratch, train


def losses(output):
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def test_training_in_eight_bits_follows_the_full_one():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name, more in [("full", []), ("int8", ["--base_precision", "int8"])]:
            train(folder / name, "--learning_rate", "1e-3", *more, steps=6)
        full, int8 = losses(folder / "full"), losses(folder / "int8")
        assert len(full) == len(int8) == 6
        for a, b in zip(full, int8):
            assert abs(a - b) < 0.05 * a, (full, int8)
        assert full != int8
        assert tomllib.loads((folder / "int8/config.toml").read_text())["base_precision"] == "int8"


def test_half_precision_and_checkpointing_beside_it():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        more = ["--base_precision", "int8", "--gradient_checkpointing"]
        train(folder / "a", *more, "--mixed_precision", "bf16", steps=2)
        train(folder / "b", *more[:2], "--mixed_precision", "bf16", steps=2)
        a, b = losses(folder / "a"), losses(folder / "b")
        assert all(abs(x - y) < 1e-2 * x for x, y in zip(a, b)), (a, b)


def test_drawing_in_eight_bits_comes_near():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        found = []
        for name, more in [("full", []), ("int8", ["--base_precision", "int8"])]:
            latents = folder / f"{name}.safetensors"
            picture = folder / f"{name}.png"
            draw(picture, "--prompt", "a red apple", "--seed", 5, "--save_latents", latents, *more)
            found.append(read_latents(latents)["latents"][1])
            assert (b"Base precision: int8" in picture.read_bytes()) == (name == "int8")
        error = distance(*found) / distance(found[0], [0] * len(found[0]))
        assert 0 < error < 0.3, error


def test_what_does_not_go_together_is_refused():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        drawing = ["--pretrained_model_name_or_path", MODEL, "--prompt", "x", "--output", folder / "x.png"]
        for more in (
            ["--pack_weights", "on"],
            ["--memory_limit", "1GB"],
            ["--merge_to", folder / "merged.safetensors"],
        ):
            done = run("text_to_image", *drawing, "--base_precision", "int8", *more)
            assert done.returncode == 2 and "cannot be combined" in done.stderr, done.stderr
            assert "--base_precision int8" in done.stderr, done.stderr
        assert not (folder / "merged.safetensors").exists()
        done = run("train_dreambooth_lora", "--pretrained_model_name_or_path", MODEL, "--instance_data_dir", SUBJECT,
                   "--instance_prompt", "x", "--output_dir", folder / "out", "--base_precision", "int4")  # fmt: skip
        assert done.returncode == 2 and "int8" in done.stderr, done.stderr


main(globals())
