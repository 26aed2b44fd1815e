# SPDX-License-Identifier: Apache-2.0
"""The UNet's frozen weights in eight and four bits: training and drawing come near to those with full weights.
A UNet of its own in GGUF draws what the model's own does."""

import json
import pathlib
import struct

import tomllib
from support import MODEL, SUBJECT, distance, draw, main, read_latents, read_safetensors, run, scratch, train


def losses(output):
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def gguf(path, damage=0):
    """The model's UNet as a GGUF file, under diffusers' names."""
    header, data = read_safetensors(MODEL / "unet/diffusion_pytorch_model.safetensors")
    start, values, count = b"", b"", 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        values += bytes(-len(values) % 32)
        shape = entry["shape"][::-1]
        start += struct.pack("<Q", len(name)) + name.encode() + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        start += struct.pack("<IQ", {"F32": 0, "F16": 1, "BF16": 30}[entry["dtype"]], len(values))
        values += data[slice(*entry["data_offsets"])]
        count += 1
    start = b"GGUF" + struct.pack("<IQQ", 3, count, 0) + start
    path.write_bytes((start + bytes(-len(start) % 32) + values)[: -damage or None])
    return path


def test_training_in_fewer_bits_follows_the_full_one():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "full", "--learning_rate", "1e-3", steps=6)
        full = losses(folder / "full")
        for name in ("int8", "nf4"):
            train(folder / name, "--learning_rate", "1e-3", "--base_precision", name, steps=6)
            fewer = losses(folder / name)
            assert len(full) == len(fewer) == 6
            for a, b in zip(full, fewer):
                assert abs(a - b) < (0.05 if name == "int8" else 0.25) * a, (name, full, fewer)
            assert full != fewer
            assert tomllib.loads((folder / name / "config.toml").read_text())["base_precision"] == name


def test_half_precision_and_checkpointing_beside_it():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name in ("int8", "nf4"):
            more = ["--base_precision", name, "--gradient_checkpointing"]
            train(folder / f"{name}-a", *more, "--mixed_precision", "bf16", steps=2)
            train(folder / f"{name}-b", *more[:2], "--mixed_precision", "bf16", steps=2)
            a, b = losses(folder / f"{name}-a"), losses(folder / f"{name}-b")
            assert all(abs(x - y) < 1e-2 * x for x, y in zip(a, b)), (name, a, b)


def test_a_unet_in_gguf_draws_what_the_model_draws():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        unet, found = gguf(folder / "unet.gguf"), []
        for name, more in [("own", []), ("gguf", ["--unet", unet]), ("nf4", ["--base_precision", "nf4"])] + [
            ("both", ["--unet", unet, "--base_precision", "nf4"])
        ]:
            latents = folder / f"{name}.safetensors"
            draw(folder / f"{name}.png", "--prompt", "a red apple", "--seed", 5, "--save_latents", latents, *more)
            found.append(read_latents(latents)["latents"][1])
        assert found[0] == found[1] and found[2] == found[3] and found[0] != found[2]
        done = run("text_to_image", "--pretrained_model_name_or_path", MODEL, "--prompt", "x", "--output",
                   folder / "x.png", "--unet", gguf(folder / "cut.gguf", damage=100))  # fmt: skip
        assert done.returncode == 1 and "cut.gguf': expected" in done.stderr and "cut off" in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1


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
        for name in ("int8", "nf4"):
            for more in (
                ["--pack_weights", "on"],
                ["--memory_limit", "1GB"],
                ["--merge_to", folder / "merged.safetensors"],
            ):
                done = run("text_to_image", *drawing, "--base_precision", name, *more)
                assert done.returncode == 2 and "cannot be combined" in done.stderr, done.stderr
                assert f"--base_precision {name}" in done.stderr, done.stderr
        assert not (folder / "merged.safetensors").exists()
        done = run("train_dreambooth_lora", "--pretrained_model_name_or_path", MODEL, "--instance_data_dir", SUBJECT,
                   "--instance_prompt", "x", "--output_dir", folder / "out", "--base_precision", "int4")  # fmt: skip
        assert done.returncode == 2 and "int8" in done.stderr, done.stderr


main(globals())
