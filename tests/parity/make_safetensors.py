# SPDX-License-Identifier: Apache-2.0
"""Writes data/safetensors with the reference package, for safetensors_interop_test.cpp.

Made with safetensors 0.8.0, torch 2.11.0, Python 3.11. At most one metadata key for each file: the
reference keeps more in an order that changes from run to run.
"""

import pathlib

import torch
from safetensors.torch import save_file

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def main():
    folder = pathlib.Path(__file__).parent / "data" / "safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    values = torch.arange(6).reshape(2, 3)
    tensors = {name: values.to(dtype) for name, dtype in DTYPES.items()}
    tensors["BOOL"] = values % 2 == 1
    save_file(tensors, folder / "dtypes.safetensors")
    save_file(
        {"scalar": torch.tensor(2.5), "none": torch.empty(0, 5), "deep": torch.ones(1, 1, 1, 1, 1, 1, 1, 2)},
        folder / "shapes.safetensors",
    )
    save_file(
        {'\u00e9 "quoted" \\ \U0001f600\n': torch.ones(3)},
        folder / "names.safetensors",
        metadata={"k\u00e9y\t": 'line\nbreak \x01 \u20ac "\\/'},
    )
    save_file({}, folder / "empty.safetensors", metadata={"format": "pt"})
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora."
    save_file(
        {key + "down.weight": torch.arange(8.0).reshape(2, 4), key + "up.weight": torch.arange(6.0).reshape(3, 2)},
        folder / "lora.safetensors",
        metadata={"format": "pt"},
    )


if __name__ == "__main__":
    main()
