# SPDX-License-Identifier: Apache-2.0
"""convert_lora --extract_from: the difference of two models is the LoRA that made it."""

import json
import pathlib
import random

from support import MODEL, UNET, delta_error, deltas, distance, main, run, run_ok, scratch, write_safetensors

WIDTH, TIME = UNET["block_out_channels"][-1], 4 * UNET["block_out_channels"][0]
TEXT = json.loads((MODEL / "text_encoder/config.json").read_text())["hidden_size"]
UNET_LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_LAYER = "text_model.encoder.layers.0.mlp.fc1"
SIZES = {f"unet.{UNET_LAYER}": (WIDTH, WIDTH), f"text_encoder.{TEXT_LAYER}": (4 * TEXT, TEXT)}


def lora(path, sizes, rank=2):
    numbers, tensors = random.Random(1), {}
    for layer, (out, width) in sizes.items():
        tensors[f"{layer}.lora_A.weight"] = ([rank, width], [numbers.gauss(0, 1) for _ in range(rank * width)])
        tensors[f"{layer}.lora_B.weight"] = ([out, rank], [numbers.gauss(0, 1) for _ in range(out * rank)])
    write_safetensors(path, tensors)


def merge(target, *loras):
    flags = [word for each in loras for word in ["--lora", each]]
    run_ok("text_to_image", "--pretrained_model_name_or_path", MODEL, "--device", "cpu", *flags, "--merge_to", target)


def extract(tuned, target, *more, base=MODEL):
    return run_ok(
        "convert_lora",
        "--extract_from",
        tuned,
        "--base",
        base,
        "--model_config",
        MODEL,
        "--output",
        target,
        "--to",
        "kohya",
        *more,
    )


def test_the_difference_is_the_lora_that_was_merged():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        lora(folder / "lora", SIZES)
        run_ok("convert_lora", "--input", folder / "lora", "--output", folder / "expected", "--to", "kohya")
        expected = deltas(folder / "expected")
        merge(folder / "tuned.safetensors", folder / "lora")
        merge(folder / "base.safetensors")
        for base in [MODEL, folder / "base.safetensors"]:
            shown = extract(folder / "tuned.safetensors", folder / "found", "--rank", 2, base=base)
            assert "kept 100% of the difference" in shown and "notice" not in shown, shown
            assert delta_error(deltas(folder / "found"), expected) < 1e-4
        extract(folder / "tuned.safetensors", folder / "found", "--energy", 0.99999)
        assert delta_error(deltas(folder / "found"), expected) < 1e-2
        shown = extract(folder / "tuned.safetensors", folder / "found", "--energy", 0.99999, "--rank", 1)
        kept = float(shown.split("kept ")[1].split("%")[0])
        found, whole = deltas(folder / "found", step=1), deltas(folder / "expected", step=1)
        lost = sum(distance(values, whole[layer]) ** 2 for layer, values in found.items())
        lost /= sum(value * value for values in whole.values() for value in values)
        assert 50 < kept < 90 and abs(1 - lost - kept / 100) < 1e-3, (kept, lost)


def test_what_else_differs_is_said():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        lora(folder / "lora", SIZES | {"unet.time_embedding.linear_2": (TIME, TIME)})
        merge(folder / "tuned.safetensors", folder / "lora")
        shown = extract(folder / "tuned.safetensors", folder / "found", "--rank", 2)
        assert "notice: 1 other tensors of the unet differ too, the first is 'time_embedding.linear_2'" in shown, shown
        shown = extract(folder / "tuned.safetensors", folder / "found", "--rank", 2, "--target_modules", "linear_2")
        assert "lora_unet_time_embedding_linear_2" in deltas(folder / "found"), shown


def fails(status, expected, *arguments):
    done = run("convert_lora", *arguments)
    assert done.returncode == status and len(done.stderr.splitlines()) == 1, (done.returncode, done.stderr)
    assert expected in done.stderr, (expected, done.stderr)


def test_errors():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        out = ["--output", folder / "out", "--to", "native"]
        fails(2, "--rank or --energy", "--extract_from", MODEL, "--base", MODEL, *out)
        fails(2, "--extract_from and --base", "--extract_from", MODEL, "--rank", 2, *out)
        fails(2, "got both", "--input", "x", "--extract_from", MODEL, "--base", MODEL, "--rank", 2, *out)
        fails(2, "--extract_from", "--input", "x", "--target_modules", "to_q", *out)
        fails(1, "got equal ones", "--extract_from", MODEL, "--base", MODEL, "--rank", 2, *out)
        fails(1, "no-such-model", "--extract_from", folder / "no-such-model", "--base", MODEL, "--rank", 2, *out)
        assert not (folder / "out").exists()


main(globals())
