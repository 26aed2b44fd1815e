# SPDX-License-Identifier: Apache-2.0
"""The reference package and this library agree about safetensors files.

1. What the reference writes is read and written here with the same bytes for every tensor, and the
   reference reads it back.
2. Of damaged files, this library accepts only what the reference accepts, and refuses more only for the
   reasons that it documents.
"""

import json
import os
import pathlib
import random
import struct
import subprocess
import tempfile

import safetensors
import torch
from safetensors.torch import load_file, save_file

LIBRARY_TESTS = pathlib.Path(os.environ["LIGHTLORA_BIN"]).parent / "tests" / "library_tests"
TEST_CASE = "safetensors: each file of a folder is written again or refused with a reason"
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.bool,
]


def pass_through(files):
    """The bytes that this library writes for each file, or its error message as text."""
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as target:
        for name, content in files.items():
            pathlib.Path(source, name).write_bytes(content)
        environment = {**os.environ, "LIGHTLORA_INTEROP_FROM": source, "LIGHTLORA_INTEROP_TO": target}
        run = subprocess.run([LIBRARY_TESTS, TEST_CASE], env=environment, capture_output=True, text=True)
        assert run.returncode == 0 and "1 test case" in run.stdout, run.stdout + run.stderr
        results = {}
        for name in files:
            refusal = pathlib.Path(target, name + ".refused")
            results[name] = refusal.read_text() if refusal.exists() else pathlib.Path(target, name).read_bytes()
        return results


def tensor_bytes(tensor):
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def check_round_trip():
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for dtype in DTYPES:
        for shape in [(), (3,), (2, 5), (0, 4), (1, 2, 3, 4)]:
            values = torch.randint(0, 100, shape, generator=generator)
            values = values % 2 == 1 if dtype == torch.bool else values.to(dtype)
            tensors[f"{dtype} {shape} \u00e9\n"] = values
    metadata = {"format": "pt", "ss_tag_frequency": json.dumps({"a": {"\u00e9": 1}}), "\u20ac": ""}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "x.safetensors")
        save_file(tensors, path, metadata=metadata)
        [written] = pass_through({"x": path.read_bytes()}).values()
        assert isinstance(written, bytes), written
        path.write_bytes(written)
        loaded = load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata() == metadata, file.metadata()
        # With the header's metadata sorted alike, even the whole file is the reference's.
        save_file(tensors, path, metadata={"format": "pt"})
        reference = path.read_bytes()
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape, name
        assert tensor_bytes(loaded[name]) == tensor_bytes(tensor), name
    assert pass_through({"x": reference})["x"] == reference


def file(header, data=b""):
    return struct.pack("<Q", len(header)) + header + data


def reference_accepts(content):
    try:
        safetensors.deserialize(content)
        return True
    except safetensors.SafetensorError:
        return False


# What this library refuses and the reference lets pass: the words of its reasons.
STRICTER = [
    "expected each key once",
    "names that are not empty",
    "that fit int64",
    "at most 8 dimensions",
    "nesting of at most 32",
    "expected 0 or 1 in BOOL",
    "expected a dtype of LibTorch",
]


def entry(name, dtype="U8", shape="[1]", offsets="[0,1]"):
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def known_differences():
    same = entry("a")
    return {
        "tensor twice": file(f"{{{same},{same}}}".encode(), b"x"),
        "tensor twice, escaped": file(f"{{{same},{entry(chr(92) + 'u0061')}}}".encode(), b"x"),
        "metadata twice": file(b'{"__metadata__":{"k":"1","k":"2"}}'),
        "empty name": file(f"{{{entry('')}}}".encode(), b"x"),
        "NUL in a name": file(f"{{{entry(chr(92) + 'u0000')}}}".encode(), b"x"),
        "above int64": file(f"{{{entry('a', shape='[0,18446744073709551615,2]', offsets='[0,0]')}}}".encode()),
        "9 dimensions": file(f"{{{entry('a', shape='[1,1,1,1,1,1,1,1,1]')}}}".encode(), b"x"),
    }


TOKENS = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"0",
    b"1",
    b"8",
    b"-",
    b".",
    b"e1",
    b" ",
    b"\n",
    b"\0",
    b"\\",
    b"\\u0061",
    b"\xff",
    b"null",
    b'"dtype":',
    b'"shape":',
    b'"U8"',
    b'"F16"',
    b'"x":1,',
    b"18446744073709551615",
    b'"__metadata__":{},',
    b"[0,0]",
    b"[0]",
]


def damaged(count):
    """Valid files with up to two random changes of their JSON and, now and then, of their length."""
    chance = random.Random(7)
    seeds = [
        (f"{{{entry('a')},{entry('b', 'F16', '[2,1]', '[1,5]')}}}".encode(), bytes(5)),
        (f'{{"__metadata__":{{"k":"v","l":"w"}},{entry("a", "I8", "[0]", "[0,0]")},{entry("b")}}}'.encode(), b"\1"),
        (f"  {{{entry('a', 'F32', '[]', '[0,4]')}}}  ".encode(), bytes(4)),
    ]
    result = {}
    for i in range(count):
        header, data = chance.choice(seeds)
        for _ in range(chance.choice([0, 1, 1, 1, 2])):
            at = chance.randrange(len(header) + 1)
            cut = chance.choice([0, 0, 1, 1, 2, 9])
            header = header[:at] + chance.choice(TOKENS + [b""]) + header[at + cut :]
        content = file(header, chance.choice([data] * 18 + [data[1:], data + b"x"]))
        if chance.random() < 0.05:
            content = content[: chance.randrange(len(content))]
        result[f"{i:05}"] = content
    return result


def check_strictness():
    differences = known_differences()
    for name, result in pass_through(differences).items():
        assert reference_accepts(differences[name]), f"the reference now refuses: {name}"
        assert isinstance(result, str) and any(reason in result for reason in STRICTER), (name, result)
    files = damaged(3000)
    accepted = 0
    for name, result in pass_through(files).items():
        if isinstance(result, bytes):
            accepted += 1
            assert reference_accepts(files[name]), f"accepted here alone: {files[name]!r}"
        elif reference_accepts(files[name]):
            assert any(reason in result for reason in STRICTER), f"refused here alone: {files[name]!r}: {result}"
    assert 100 < accepted < 2900, f"the damage is one-sided: {accepted} files of 3000 are accepted"


def main():
    check_round_trip()
    check_strictness()
    print("safetensors files agree with the reference package", safetensors.__version__)


if __name__ == "__main__":
    main()
