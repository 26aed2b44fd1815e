# SPDX-License-Identifier: Apache-2.0
"""Writes data/torch_files: small files of torch.save for tests/torch_file_test.cpp (torch 2.11.0)."""

import os
import pathlib

import torch
from safetensors.torch import save_file
from torch import nn

DATA = pathlib.Path(__file__).parent / "data/torch_files"


class Call:
    """Pickles as a call of a function, as hostile files do."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def values():
    torch.manual_seed(1)
    whole = torch.randn(4, 6)
    return {
        "float": torch.randn(2, 3),
        "half": torch.randn(5).half(),
        "bfloat": torch.randn(3).bfloat16(),
        "double": torch.randn(2).double(),
        "long": torch.tensor([1, -2]),
        "int": torch.tensor([3], dtype=torch.int32),
        "short": torch.tensor([4], dtype=torch.int16),
        "char": torch.tensor([-5], dtype=torch.int8),
        "byte": torch.tensor([6], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7.5),
        "empty": torch.zeros(0, 3),
        "view": whole[1:, 2:5],
        "transposed": whole.t(),
        "parameter": nn.Parameter(torch.randn(2)),
    }


def main():
    DATA.mkdir(exist_ok=True)
    tensors = values()
    save_file(
        {name: value.detach().clone().contiguous() for name, value in tensors.items()}, DATA / "expected.safetensors"
    )
    content = {
        **tensors,
        "name": "cat",
        "step": -500,
        "rate": 0.5,
        "nothing": None,
        "big": 2**80,
        "size": torch.Size([1, 2]),
        "list": [True, (1, 2)],
    }
    torch.save(content, DATA / "plain.pt")
    torch.save(content, DATA / "protocol_4.pt", pickle_protocol=4)
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": nn.ParameterDict({"*": nn.Parameter(torch.randn(2, 8))})},
        DATA / "parameter_dict.pt",
    )
    torch.save(
        {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": torch.randn(3, 8)},
            "name": "cat",
            "step": 499,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
        },
        DATA / "a1111.pt",
    )
    model = nn.Sequential(nn.Linear(2, 3)).half()
    torch.save({"state_dict": model.state_dict(), "epoch": 3, "loops": {"a": {"b": []}}}, DATA / "trainer.ckpt")
    torch.save({"a": Call(os.system, "true")}, DATA / "system.pt")
    torch.save({"a": Call(eval, "1")}, DATA / "eval.pt")
    torch.save(nn.Linear(2, 3), DATA / "module.pt")
    torch.save({"a": torch.zeros(2)}, DATA / "old_format.pt", _use_new_zipfile_serialization=False)


main()
