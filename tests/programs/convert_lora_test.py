# SPDX-License-Identifier: Apache-2.0
"""convert_lora: from any format to any other without a change of the weights, and what it shows."""

import json
import pathlib
import random
import struct

from support import main, read_safetensors, run, run_ok, scratch, train, write_safetensors

FORMATS = ["native", "diffusers", "peft", "kohya"]
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def floats(path):
    """The F32 tensors of a file as {name: (shape, values)}."""
    header, data = read_safetensors(path)
    header.pop("__metadata__", None)
    result = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32", (name, entry)
        begin, end = entry["data_offsets"]
        result[name] = (entry["shape"], struct.unpack(f"<{(end - begin) // 4}f", data[begin:end]))
    return result


def deltas(path):
    """{layer with underscores: up @ down} of a kohya file whose alpha is the rank."""
    tensors, result = floats(path), {}
    for name, (shape, down) in tensors.items():
        if not name.endswith(".lora_down.weight"):
            continue
        layer = name[:-len(".lora_down.weight")]
        rank, width = shape
        up_shape, up = tensors[layer + ".lora_up.weight"]
        assert rank == 1 or tensors[layer + ".alpha"][1] == (rank,), layer
        result[layer] = [sum(up[row * rank + k] * down[k * width + column] for k in range(rank))
                         for row in range(up_shape[0]) for column in range(0, width, 7)]
    return result


def same(one, other, tolerance):
    assert one.keys() == other.keys() and one, (one.keys(), other.keys())
    for layer, values in one.items():
        error = sum((a - b) ** 2 for a, b in zip(values, other[layer])) ** 0.5
        norm = sum(b * b for b in other[layer]) ** 0.5
        assert error <= tolerance * norm, (layer, error, norm)


def convert(source, target, to, *more):
    return run_ok("convert_lora", "--input", source, "--output", target, "--to", to, *more)


def fails(status, expected, *arguments):
    done = run("convert_lora", *arguments)
    assert done.returncode == status and len(done.stderr.splitlines()) == 1, (done.returncode, done.stderr)
    assert expected in done.stderr, (expected, done.stderr)


def small_file(path, rank=3):
    """Two layers under diffusers' names."""
    numbers, tensors = random.Random(1), {}
    for layer in [LAYER, LAYER.replace("to_q", "to_out.0")]:
        values = lambda count: [numbers.gauss(0, 1) for _ in range(count)]
        tensors[f"unet.{layer}.lora.down.weight"] = ([rank, 12], values(rank * 12))
        tensors[f"unet.{layer}.lora.up.weight"] = ([8, rank], values(8 * rank))
    write_safetensors(path, tensors)


def test_every_pair_of_formats_keeps_the_weights():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        small_file(folder / "start")
        convert(folder / "start", folder / "reference", "kohya")
        expected = deltas(folder / "reference")
        assert len(expected) == 2
        for first in FORMATS:
            convert(folder / "start", folder / first, first)
            for second in FORMATS:
                convert(folder / first, folder / f"{first}-{second}", second)
                convert(folder / f"{first}-{second}", folder / "end", "kohya")
                same(deltas(folder / "end"), expected, 1e-6)


def test_trained_variants_keep_their_weights():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for variant in ["classic", "light", "fused"]:
            train(folder, "--variant", variant, "--rank", 2, "--network_alpha", 1, "--learning_rate", "0.02")
            native = folder / "lightlora.safetensors"
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
        same(deltas(folder / "more"), deltas(folder / "full"), 1e-6)
        for dtype, name in [("fp16", "F16"), ("bf16", "BF16")]:
            for to in ["native", "diffusers", "kohya"]:
                convert(folder / "start", folder / "half", to, "--dtype", dtype)
                header = read_safetensors(folder / "half")[0]
                assert {entry["dtype"] for key, entry in header.items() if key != "__metadata__"} == {name}
                convert(folder / "half", folder / "back", "kohya")
                same(deltas(folder / "back"), deltas(folder / "full"), 1e-3 if dtype == "fp16" else 1e-2)


def test_inspect_and_peft_configuration():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        small_file(folder / "start")
        shown = run_ok("convert_lora", "--input", folder / "start", "--inspect")
        for text in ["dialect     diffusers\n", "4 tensors", "dtype       F32\n", "metadata    none",
                     "unet        2 layers, classic, rank 3, alpha 3, scale 1, 120 values"]:
            assert text in shown, (text, shown)
        convert(folder / "start", folder / "peft", "peft")
        config = json.loads((folder / "peft/unet/adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] == 3 and config["peft_type"] == "LORA"
        assert config["target_modules"] == sorted([LAYER, LAYER.replace("to_q", "to_out.0")])
        assert "peft" in run_ok("convert_lora", "--input", folder / "peft", "--inspect")
        convert(folder / "start", folder / "kohya", "kohya")
        assert "sshs_model_hash" in run_ok("convert_lora", "--input", folder / "kohya", "--inspect")


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
        fails(1, "expected a tensor 'hada_w1_b'", "--input", folder / "loha", "--output", folder / "out", "--to", "native")
        fails(1, "create the folder", "--input", folder / "start", "--output", folder / "no/out", "--to", "native")
        assert not (folder / "out").exists()


main(globals())
