# SPDX-License-Identifier: Apache-2.0
"""Writes data/peft_methods: for each of PEFT's (0.21.2) HiRA, MiSS, GraLoRA, OFT and BOFT a folder as save_pretrained writes it, and
numbers.safetensors with the base model, the inputs and the output "<case>.y" with the adapter; of cases named conv another
model and inputs, in which the names begin with "conv_".

    python make_peft_methods.py --check FOLDER

loads FOLDER/<case>, as lightlora has written them, with PEFT, and compares the outputs.
"""

import pathlib
import shutil
import sys

import torch
from boft_without_cuda import use_torch_for_boft
from peft import BOFTConfig, GraloraConfig, HiraConfig, MissConfig, OFTConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

DATA = pathlib.Path(__file__).parent / "data/peft_methods"
LAYERS = ["0", "2"]
CASES = {
    "hira": HiraConfig(r=3, target_modules=LAYERS),
    "miss": MissConfig(r=5, target_modules=LAYERS),
    "gralora": GraloraConfig(r=4, alpha=4, gralora_k=2, target_modules=LAYERS),
    "gralora_alpha": GraloraConfig(r=4, alpha=8, gralora_k=4, target_modules=LAYERS),
    "oft": OFTConfig(r=0, oft_block_size=7, target_modules=LAYERS),
    "oft_exact": OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=False, target_modules=LAYERS),
    "boft": BOFTConfig(boft_block_size=4, target_modules=LAYERS),
    "boft_2": BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=2, target_modules=LAYERS),
    "conv_boft": BOFTConfig(boft_block_size=4, target_modules=LAYERS),
    "conv_boft_2": BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=2, target_modules=LAYERS),
}


def start_of(case):
    return "conv_" if case.startswith("conv_") else ""


def base_model(start="", numbers=None):
    if start:
        first, second = torch.nn.Conv2d(4, 8, 3, stride=2, padding=1), torch.nn.Conv2d(8, 5, 1)
    else:
        first, second = torch.nn.Linear(24, 20), torch.nn.Linear(20, 16)
    model = torch.nn.Sequential(first, torch.nn.Tanh(), second)
    if numbers:
        model.load_state_dict({name: numbers[f"{start}base.{name}"] for name in model.state_dict()})
    return model


def check(folder):
    numbers = load_file(DATA / "numbers.safetensors")
    for case in CASES:
        start = start_of(case)
        model = PeftModel.from_pretrained(base_model(start, numbers), folder / case)
        y, expected = model(numbers[start + "x"]), numbers[f"{case}.y"]
        error = ((y - expected).norm() / expected.norm()).item()
        assert error < 1e-5, (case, error)
        print(case, error)


def main():
    torch.manual_seed(7)
    shutil.rmtree(DATA, ignore_errors=True)
    numbers = {}
    for case, config in CASES.items():
        start = start_of(case)
        if start + "x" not in numbers:
            base = base_model(start)
            numbers[start + "x"] = torch.randn(2, 4, 6, 7) if start else torch.randn(5, 24)
            numbers |= {f"{start}base.{name}": value for name, value in base.state_dict().items()}
        model = get_peft_model(base_model(start, numbers), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape) * 0.2)
        numbers[f"{case}.y"] = model(numbers[start + "x"]).detach()
        model.save_pretrained(DATA / case)
        (DATA / case / "README.md").unlink()
    save_file({name: value.contiguous().clone() for name, value in numbers.items()}, DATA / "numbers.safetensors")


if __name__ == "__main__":
    use_torch_for_boft()
    check(pathlib.Path(sys.argv[2])) if sys.argv[1:2] == ["--check"] else main()
