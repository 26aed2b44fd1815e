# SPDX-License-Identifier: Apache-2.0
"""The fuzz corpus of GGUF files, for make_corpus.py."""


def words(*values, size=8):
    return b"".join(value.to_bytes(size, "little") for value in values)


def counted(value):
    return words(len(value)) + value


def gguf(*tensors, keys=(), data=bytes(64), version=3, count=None):
    """A GGUF file of tensors (name, sizes, type, offset) and keys (name, type, value)."""
    start = b"GGUF" + words(version, size=4) + words(len(tensors) if count is None else count, len(keys))
    for name, kind, value in keys:
        start += counted(name) + words(kind, size=4) + value
    for name, sizes, kind, offset in tensors:
        start += counted(name) + words(len(sizes), size=4) + words(*sizes) + words(kind, size=4) + words(offset)
    return start + bytes(-len(start) % 32) + data


ROW = (b"a", (4, 2), 0, 0)
GGUF = {
    "valid_empty": gguf(data=b""),
    "valid_one": gguf(ROW),
    "valid_blocks": gguf((b"q", (32, 2), 2, 0), ROW[:3] + (64,), data=bytes(96)),
    "valid_keys": gguf(
        ROW,
        keys=[
            (b"general.architecture", 8, counted(b"sd1")),
            (b"comfy.gguf.orig_shape.a", 9, words(5, size=4) + words(2) + words(2, 4, size=4)),
            (b"list", 9, words(9, size=4) + words(1) + words(8, size=4) + words(1) + counted(b"x")),
        ],
    ),
    "invalid_nothing": b"",
    "invalid_version": gguf(ROW, version=1),
    "invalid_count": gguf(ROW, count=2**62),
    "invalid_key": gguf(ROW, keys=[(b"k", 8, words(2**63))]),
    "invalid_type": gguf((b"a", (4, 2), 31, 0)),
    "invalid_overflow": gguf((b"a", (2**62, 2**62), 0, 0)),
    "invalid_cut": gguf(ROW, data=bytes(31)),
    "invalid_twice": gguf(ROW, ROW),
    "invalid_block": gguf((b"a", (33,), 2, 0)),
}
