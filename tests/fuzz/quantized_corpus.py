# SPDX-License-Identifier: Apache-2.0
"""The fuzz corpus of files with quantised weights, for make_corpus.py: bitsandbytes' descriptions beside safetensors,
and every kind of GGUF's blocks."""

import json
import struct

import gguf_corpus

SIZES = {"F32": 4, "U8": 1, "I8": 1}
# Number in the file, numbers in a block, and its bytes, as ggml has them.
BLOCKS = {
    "q4_0": (2, 32, 18),
    "q4_1": (3, 32, 20),
    "q5_0": (6, 32, 22),
    "q5_1": (7, 32, 24),
    "q8_0": (8, 32, 34),
    "q2_k": (10, 256, 84),
    "q3_k": (11, 256, 110),
    "q4_k": (12, 256, 144),
    "q5_k": (13, 256, 176),
    "q6_k": (14, 256, 210),
}


def safetensors(tensors):
    """A file of {name: (dtype, shape, bytes, or none for ones)}."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        count = 1
        for size in shape:
            count *= size
        if content is None:
            content = struct.pack(f"<{count}f", *[0.5] * count) if dtype == "F32" else b"\x21" * count
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


STATE = "a.weight.quant_state.bitsandbytes__nf4"


def described(**fields):
    """What STATE says of the layer."""
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": (6, 32)} | fields
    text = json.dumps(state).encode()
    return ("U8", [len(text)], text)


def four_bits(kind="nf4", shape=(6, 32), **more):
    """A layer as Linear4bit saves it; with blocks of blocks, `nested_blocksize`."""
    numbers = 1
    for size in shape:
        numbers *= size
    blocks, nested = -(-numbers // 64), "nested_blocksize" in more
    tensors = {
        "a.weight": ("U8", [(numbers + 1) // 2, 1], None),
        "a.weight.absmax": ("U8" if nested else "F32", [blocks], None),
        "a.weight.quant_map": ("F32", [16], None),
        STATE.replace("nf4", kind): described(quant_type=kind, shape=shape, **more),
    }
    if nested:
        tensors["a.weight.nested_absmax"] = ("F32", [1], None)
        tensors["a.weight.nested_quant_map"] = ("F32", [256], None)
    return tensors


EIGHT = {"a.weight": ("I8", [4, 6], None), "a.SCB": ("F32", [4], None), "a.weight_format": ("U8", [], b"\0")}
QUANTIZED = {
    "valid_nf4": safetensors(four_bits()),
    "valid_fp4": safetensors(four_bits("fp4", (5, 7), dtype="bfloat16")),
    "valid_nested": safetensors(four_bits(nested_blocksize=256, nested_offset=0.25, nested_dtype="float32")),
    "valid_int8": safetensors(EIGHT),
    "invalid_shape": safetensors({**four_bits(), STATE: described(shape=(2**62, 4))}),
    "invalid_part": safetensors({k: v for k, v in four_bits().items() if not k.endswith("absmax")}),
    "invalid_block": safetensors({**four_bits(), STATE: described(blocksize=2**62)}),
    "invalid_size": safetensors({**four_bits(), "a.weight": ("U8", [7, 1], None)}),
    "invalid_twice": safetensors({**four_bits(), **EIGHT}),
    "invalid_scales": safetensors({**EIGHT, "a.SCB": ("F32", [3], None)}),
    **{
        f"valid_{name}": gguf_corpus.gguf((b"a", (numbers, 2), kind, 0), data=(bytes(range(250)) * 2)[: 2 * size])
        for name, (kind, numbers, size) in BLOCKS.items()
    },
}
