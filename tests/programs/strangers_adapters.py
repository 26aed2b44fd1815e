# SPDX-License-Identifier: Apache-2.0
"""A native file with fields of choice, and files of torch.save."""

import os
import struct
import zipfile

from strangers_support import floats, safetensors

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def native(folder, tensors=None, **changes):
    """A native file of one Light layer, with some of its fields changed."""
    fields = {
        "format": "lightlora",
        "format_version": "1",
        "basis_version": "1",
        "groups": "1",
        "0.component": "unet",
        "0.layers": LAYER[5:],
        "0.variant": "light",
        "0.in": "320",
        "0.out": "320",
        "0.rank": "1",
        "0.scale": "1",
        "0.init": "up_zero",
        "0.aux_in": "100",
        "0.aux_out": "50",
        "0.aux_seed": "0",
        "0.aux_init": "orthogonal",
    }
    for key, value in changes.items():
        fields[key if key in ("groups", "format_version") else "0." + key] = value
    tensors = tensors or {"0.down": floats(1, 1, 100), "0.up": floats(1, 50, 1)}
    return safetensors(folder / "a.safetensors", {k: v for k, v in tensors.items() if v}, fields)


def torch_file(folder, pickled, storages=None, name="a.pt"):
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {}).items():
            archive.writestr("archive/data/" + key, data)
    return folder / name


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def recalled_text(size, times):
    """A list that holds one long text many times."""
    return b"\x80\x02]q\x00(" + text("a" * size) + b"q\x01" + b"h\x01" * times + b"e."


class Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/lightlora-was-here",))
