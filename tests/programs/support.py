# SPDX-License-Identifier: Apache-2.0
"""What the tests of whole programs share. Only the standard library, so that they run everywhere."""

import array
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

BIN = pathlib.Path(os.environ["LIGHTLORA_BIN"])
SOURCE = pathlib.Path(os.environ["LIGHTLORA_SOURCE_DIR"])
MODEL = SOURCE / "examples/stable_diffusion/assets/base"
SUBJECT = SOURCE / "examples/stable_diffusion/assets/teddy_bear"
# The bundled model's sizes: of the UNet's levels, of one picture's latents, of the text encoder's states, of a caption.
UNET = json.loads((MODEL / "unet/config.json").read_text())
SIDE, CHANNELS, WIDTH = UNET["sample_size"], UNET["in_channels"], UNET["cross_attention_dim"]
LATENTS = [1, CHANNELS, SIDE, SIDE]
TOKENS = json.loads((MODEL / "tokenizer/tokenizer_config.json").read_text())["model_max_length"]
# Pixels of a picture for one of its latents' sides.
FACTOR = 2 ** (len(json.loads((MODEL / "vae/config.json").read_text())["block_out_channels"]) - 1)


def run(program, *arguments, **options):
    """Runs one of our programs and returns the finished process with its output as text."""
    command = [str(BIN / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


def run_ok(program, *arguments):
    """As run, but anything else than success is an error that shows both outputs."""
    done = run(program, *arguments)
    assert done.returncode == 0, f"{program} {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == "", f"{program}: expected nothing on standard error, got {done.stderr!r}"
    return done.stdout


def subject_flags(output, prompt="a sks bear", model=MODEL):
    """What the trainer asks for, with the bundled subject."""
    return [
        "--pretrained_model_name_or_path",
        model,
        "--instance_data_dir",
        SUBJECT,
        "--instance_prompt",
        prompt,
        "--output_dir",
        output,
    ]


def word_flags(output):
    """What textual inversion asks for, with a word for the bundled subject."""
    return [
        "--pretrained_model_name_or_path",
        MODEL,
        "--train_data_dir",
        SUBJECT,
        "--placeholder_token",
        "<toy>",
        "--initializer_token",
        "bear",
        "--output_dir",
        output,
    ]


def train(output, *more, steps=3, model=MODEL):
    """A few training steps on the bundled subject."""
    return run_ok(
        "train_dreambooth_lora",
        *subject_flags(output, model=model),
        "--train_batch_size",
        2,
        "--max_train_steps",
        steps,
        "--device",
        "cpu",
        *more,
    )


def draw(output, *more):
    """Four denoising steps on the bundled model."""
    return run_ok(
        "text_to_image",
        "--pretrained_model_name_or_path",
        MODEL,
        "--num_inference_steps",
        4,
        "--device",
        "cpu",
        "--output",
        output,
        *more,
    )


def read_safetensors(path):
    """Header and data bytes of a safetensors file."""
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def attention_shapes():
    """(outputs, inputs) of the bundled model's layers that get adapters by default."""
    header, _ = read_safetensors(MODEL / "unet/diffusion_pytorch_model.safetensors")
    ends = tuple(f"{name}.weight" for name in ["to_q", "to_k", "to_v", "to_out.0"])
    return [entry["shape"] for name, entry in header.items() if name.endswith(ends)]


def read_latents(path):
    """{name: (shape, floats)} of an F32 file."""
    header, data = read_safetensors(path)
    return {
        name: (entry["shape"], array.array("f", data[slice(*entry["data_offsets"])]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def distance(a, b):
    """Root of the sum of squared differences."""
    return sum((x - y) ** 2 for x, y in zip(a, b)) ** 0.5


def write_safetensors(path, tensors):
    """Writes {name: (shape, list of floats)} as F32."""
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        start = len(data)
        data += struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def deltas(path, step=7):
    """{layer with underscores: up @ down} of a kohya file whose alpha is the rank; of every step-th column."""
    tensors, result = read_latents(path), {}
    for name, (shape, down) in tensors.items():
        if not name.endswith(".lora_down.weight"):
            continue
        layer = name[: -len(".lora_down.weight")]
        rank, width = shape[0], math.prod(shape[1:])
        up_shape, up = tensors[layer + ".lora_up.weight"]
        assert rank == 1 or tensors[layer + ".alpha"][1][0] == rank, layer
        result[layer] = [
            sum(up[row * rank + k] * down[k * width + column] for k in range(rank))
            for row in range(up_shape[0])
            for column in range(0, width, step)
        ]
    return result


def delta_error(one, other):
    """The largest relative error among the layers of one; both must have the same layers."""
    assert one.keys() == other.keys() and one, (one.keys(), other.keys())
    return max(
        distance(values, other[layer]) / distance(other[layer], [0] * len(values)) for layer, values in one.items()
    )


def scratch():
    return tempfile.TemporaryDirectory(prefix="lightlora-")


def main(tests):
    """Runs every function of a module's globals whose name begins with test_, or with it and one of the arguments."""
    wanted = tuple("test_" + word for word in sys.argv[1:]) or ("test_",)
    names = [name for name in tests if name.startswith(wanted)]
    assert names, f"no test of these names: {sys.argv[1:]}"
    for name in names:
        tests[name]()
        print("ok:", name)
    print(f"{len(names)} passed, 0 failed")
    sys.exit(0)
