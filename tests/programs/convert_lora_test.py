# SPDX-License-Identifier: Apache-2.0
"""convert_lora: from any format to any other without a change of the weights, and what it shows."""

import hashlib
import json
import math
import pathlib
import random
import re
import shutil

from support import SOURCE, delta_error, deltas, main, read_safetensors, run, run_ok, scratch, train, write_safetensors
from support import read_latents as floats

FORMATS = ["native", "diffusers", "peft", "kohya"]
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def same_deltas(one, other, tolerance):
    error = delta_error(one, other)
    assert error <= tolerance, error


def convert(source, target, to, *more):
    return run_ok("convert_lora", "--input", source, "--output", target, "--to", to, *more)


def fails(status, expected, *arguments):
    done = run("convert_lora", *arguments)
    assert done.returncode == status and len(done.stderr.splitlines()) == 1, (done.returncode, done.stderr)
    assert expected in done.stderr, (expected, done.stderr)


def small_file(path, rank=3):
    """Two layers under diffusers' names."""
    numbers, tensors = random.Random(1), {}

    def values(count):
        return [numbers.gauss(0, 1) for _ in range(count)]

    for layer in [LAYER, LAYER.replace("to_q", "to_out.0")]:
        tensors[f"unet.{layer}.lora.down.weight"] = ([rank, 12], values(rank * 12))
        tensors[f"unet.{layer}.lora.up.weight"] = ([8, rank], values(8 * rank))
    write_safetensors(path, tensors)


def full_file(path, rank=3):
    """Attention, a convolution and the text encoder under PEFT's endings."""
    numbers, tensors = random.Random(2), {}
    text = "text_encoder.text_model.encoder.layers.0"
    sizes = {f"unet.{LAYER}": (8, [12]), "unet.mid_block.resnets.0.conv1": (6, [4, 3, 3])}
    sizes |= {f"{text}.self_attn.{name}": (8, [8]) for name in ["q_proj", "k_proj", "v_proj", "out_proj"]}
    sizes |= {f"{text}.mlp.fc1": (16, [8])}
    for layer, (out, inner) in sizes.items():
        shapes = {"A": [rank, *inner], "B": [out, rank] + [1] * (len(inner) - 1)}
        for side, shape in shapes.items():
            tensors[f"{layer}.lora_{side}.weight"] = (shape, [numbers.gauss(0, 1) for _ in range(math.prod(shape))])
    write_safetensors(path, tensors)
    return len(sizes)


def test_every_pair_of_formats_keeps_every_bit():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        layers = full_file(folder / "start")
        convert(folder / "start", folder / "reference", "kohya")
        expected = floats(folder / "reference")
        assert len(expected) == 3 * layers
        for first in FORMATS:
            convert(folder / "start", folder / first, first)
            for second in FORMATS:
                convert(folder / first, folder / f"{first}-{second}", second)
                convert(folder / f"{first}-{second}", folder / "end", "kohya")
                assert floats(folder / "end") == expected, (first, second)


def test_trained_variants_keep_their_weights():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for variant in ["classic", "light", "fused"]:
            out = folder / variant
            train(out, "--variant", variant, "--rank", 2, "--network_alpha", 1, "--learning_rate", "0.02")
            native = out / "lightlora.safetensors"
            convert(native, folder / "again", "native")
            header = read_safetensors(native)[0]["__metadata__"]
            again = read_safetensors(folder / "again")[0]["__metadata__"]
            assert again == header and again["0.variant"] == variant
            assert native.read_bytes()[8:] == (folder / "again").read_bytes()[8:]
            if variant != "classic":
                convert(native, folder / "with_bases", "native", "--embed_aux")
                bases = [name for name in read_safetensors(folder / "with_bases")[0] if name.endswith("_aux")]
                assert bases and (folder / "with_bases").stat().st_size > 2 * native.stat().st_size
            shown = run_ok("convert_lora", "--input", native, "--inspect")
            assert f"layers, {variant}, rank" in shown and "native" in shown and "instance_prompt" in shown


def test_rank_and_dtype():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        small_file(folder / "start")
        convert(folder / "start", folder / "cut", "kohya", "--rank", 1)
        assert floats(folder / "cut")["lora_unet_" + LAYER.replace(".", "_") + ".lora_up.weight"][0] == [8, 1]
        assert not any(name.endswith(".alpha") for name in floats(folder / "cut"))
        convert(folder / "start", folder / "more", "kohya", "--rank", 9)
        convert(folder / "start", folder / "full", "kohya")
        same_deltas(deltas(folder / "more"), deltas(folder / "full"), 1e-6)
        for dtype, name in [("fp16", "F16"), ("bf16", "BF16")]:
            for to in ["native", "diffusers", "kohya"]:
                convert(folder / "start", folder / "half", to, "--dtype", dtype)
                header = read_safetensors(folder / "half")[0]
                assert {entry["dtype"] for key, entry in header.items() if key != "__metadata__"} == {name}
                convert(folder / "half", folder / "back", "kohya")
                same_deltas(deltas(folder / "back"), deltas(folder / "full"), 1e-3 if dtype == "fp16" else 1e-2)


def test_inspect_and_peft_configuration():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        small_file(folder / "start")
        shown = run_ok("convert_lora", "--input", folder / "start", "--inspect")
        for text in [
            "dialect     diffusers\n",
            "4 tensors",
            "dtype       F32\n",
            "metadata    none",
            "unet        2 layers, classic, rank 3, alpha 3, scale 1, 120 values",
        ]:
            assert text in shown, (text, shown)
        convert(folder / "start", folder / "peft", "peft")
        config = json.loads((folder / "peft/unet/adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] == 3 and config["peft_type"] == "LORA"
        assert config["target_modules"] == sorted([LAYER, LAYER.replace("to_q", "to_out.0")])
        assert "unet       attn1.to_q      1       classic  3     3      60\n" in shown, shown
        assert "peft" in run_ok("convert_lora", "--input", folder / "peft", "--inspect")
        convert(folder / "start", folder / "kohya", "kohya")
        assert "sshs_model_hash" in run_ok("convert_lora", "--input", folder / "kohya", "--inspect")


def test_several_files_are_added_up():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        small_file(folder / "one")
        small_file(folder / "two", rank=2)
        write_safetensors(
            folder / "three",
            {
                f"unet.{LAYER}.lora.{side}.weight": (shape, [0.5] * shape[0] * shape[1])
                for side, shape in [("down", [1, 12]), ("up", [8, 1])]
            },
        )
        for name in ["one", "two", "three"]:
            convert(folder / name, folder / f"{name}_kohya", "kohya")
        expected = deltas(folder / "one_kohya")
        for name, weight in [("two", -0.5), ("three", 2)]:
            for layer, values in deltas(folder / f"{name}_kohya").items():
                expected[layer] = [a + weight * b for a, b in zip(expected[layer], values)]
        for to in FORMATS:
            run_ok(
                "convert_lora",
                "--input",
                folder / "one",
                "--input",
                f"{folder / 'two'}:-0.5",
                "--input",
                f"{folder / 'three'}:2",
                "--output",
                folder / "sum",
                "--to",
                to,
            )
            convert(folder / "sum", folder / "sum_kohya", "kohya")
            same_deltas(deltas(folder / "sum_kohya"), expected, 1e-5)
            shutil.rmtree(folder / "sum") if to == "peft" else (folder / "sum").unlink()
        run_ok("convert_lora", "--input", f"{folder / 'one'}:0.25", "--output", folder / "quarter", "--to", "kohya")
        same_deltas(
            deltas(folder / "quarter"), {k: [v / 4 for v in vs] for k, vs in deltas(folder / "one_kohya").items()}, 1e-6
        )


def test_energy_chooses_the_rank():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        down, up = [0.0] * 36, [0.0] * 24
        for i, strength in enumerate([10.0, 3.0, 1.0]):  # singular values; energies 100, 9 and 1 of 110
            down[i * 12 + i], up[i * 3 + i] = strength, 1.0
        write_safetensors(
            folder / "start",
            {f"unet.{LAYER}.lora.down.weight": ([3, 12], down), f"unet.{LAYER}.lora.up.weight": ([8, 3], up)},
        )
        for energy, more, rank in [(0.9, [], 1), (0.95, [], 2), (0.995, [], 3), (1, [], 3), (0.995, ["--rank", 2], 2)]:
            convert(folder / "start", folder / "cut", "kohya", "--energy", energy, *more)
            shape = floats(folder / "cut")["lora_unet_" + LAYER.replace(".", "_") + ".lora_up.weight"][0]
            assert shape == [8, rank], (energy, more, shape)


def test_inspect_as_json():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        small_file(folder / "start")
        shown = json.loads(run_ok("convert_lora", "--input", folder / "start", "--inspect", "--json"))
        assert shown["dialects"] == ["diffusers"] and shown["tensors"] == 4 and shown["dtypes"] == ["F32"]
        assert shown["sha256"] == hashlib.sha256((folder / "start").read_bytes()).hexdigest()
        [layer] = [layer for layer in shown["components"]["unet"] if layer["layer"] == LAYER]
        assert layer == {
            "layer": LAYER,
            "variant": "classic",
            "dora": False,
            "in": 12,
            "out": 8,
            "kernel": [],
            "rank": 3,
            "alpha": 3.0,
            "scale": 1.0,
            "values": 60,
        }
        convert(folder / "start", folder / "kohya", "kohya")
        shown = json.loads(run_ok("convert_lora", "--input", folder / "kohya", "--inspect", "--json"))
        assert shown["metadata"]["ss_network_dim"] == "3" and shown["bytes"] == (folder / "kohya").stat().st_size


def test_the_guide_explains_every_flag():
    def flags(text):
        return set(re.findall(r"--([a-z][a-z_]+)", text))

    shown = flags(run_ok("convert_lora", "--help").split("\nEvery flag may")[0]) - {"help", "version", "config"}
    assert len(shown) > 12, shown
    missing = shown - flags((SOURCE / "docs/files.md").read_text().split("## Every flag of convert_lora")[1])
    assert not missing, missing


def test_errors():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        small_file(folder / "start")
        fails(2, "--input", "--inspect")
        fails(2, "--output and --to", "--input", folder / "start")
        fails(2, "expected one of", "--input", folder / "start", "--output", folder / "out", "--to", "onnx")
        fails(2, "--embed_aux", "--input", folder / "start", "--output", folder / "out", "--to", "kohya", "--embed_aux")
        fails(2, "--rank", "--input", folder / "start", "--output", folder / "out", "--to", "kohya", "--rank", 0)
        fails(1, "no-such-file", "--input", folder / "no-such-file", "--inspect")
        write_safetensors(folder / "loha", {"lora_unet_conv_in.hada_w1_a": ([1, 1], [1.0])})
        fails(
            1, "expected a tensor 'hada_w1_b'", "--input", folder / "loha", "--output", folder / "out", "--to", "native"
        )
        write_safetensors(folder / "oft", {"lora_unet_conv_in.oft_diag": ([1, 1], [1.0])})
        fails(1, "got OFT", "--input", folder / "oft", "--output", folder / "out", "--to", "native")
        rotation = folder / "rotation"
        write_safetensors(rotation, {"lora_unet_conv_in.oft_blocks": ([2, 2, 2], [0.1] * 8)})
        two = ["--input", rotation, "--input", rotation]
        fails(1, "got diag_oft, whose delta depends on the base", *two, "--output", folder / "out", "--to", "kohya")
        fails(2, "--energy", "--input", folder / "start", "--output", folder / "out", "--to", "kohya", "--energy", 0)
        fails(2, "--json", "--input", folder / "start", "--output", folder / "out", "--to", "kohya", "--json")
        fails(1, "create the folder", "--input", folder / "start", "--output", folder / "no/out", "--to", "native")
        assert not (folder / "out").exists()


main(globals())
