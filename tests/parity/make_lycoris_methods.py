# SPDX-License-Identifier: Apache-2.0
"""Writes data/lycoris_methods: files of LyCORIS' (lycoris-lora 4.1.3) diag-OFT, BOFT, GLoRA, (IA)3, T-LoRA, whole differences with
biases and norms, and the weights that they make. <case>.safetensors is what a user would have; expected.safetensors holds
"base.<layer>.weight" and "<case>.<layer>.weight", likewise ".bias" where there is one, with the adapter at strength 1. With
--check FOLDER, LyCORIS loads the files of these names from FOLDER, and must make the same weights.
"""

import copy
import pathlib
import sys

import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.norms import NormModule
from lycoris.modules.tlora import TLoraModule
from safetensors.torch import load_file, save_file
from torch import nn

DATA = pathlib.Path(__file__).parent / "data/lycoris_methods"
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0."
LINEAR, OUTPUT, POINT = BLOCK + "attn1.to_q", BLOCK + "attn1.to_out.0", "down_blocks.0.attentions.0.proj_in"
CONV, GROUP, LAYER = "down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.0.norm1", BLOCK + "norm1"
LAYERS = {
    LINEAR: nn.Linear(24, 16, bias=False),
    OUTPUT: nn.Linear(16, 24),
    CONV: nn.Conv2d(6, 16, 3),
    POINT: nn.Conv2d(12, 16, 1),
    GROUP: nn.GroupNorm(2, 6),
    LAYER: nn.LayerNorm(24),
}
MATRICES = [LINEAR, OUTPUT, CONV, POINT]
CASES = {
    "diag_oft": (DiagOFTModule, dict(lora_dim=4), MATRICES),
    "diag_oft_coft": (DiagOFTModule, dict(lora_dim=4, constraint=0.01), MATRICES),
    "diag_oft_rescaled": (DiagOFTModule, dict(lora_dim=4, rescaled=True), MATRICES),
    "glora": (GLoRAModule, dict(lora_dim=3, alpha=1.5), MATRICES),
    "ia3": (IA3Module, dict(), MATRICES),
    "ia3_input": (IA3Module, dict(train_on_input=True), MATRICES),
    "full": (FullModule, dict(), MATRICES),
    "tlora": (TLoraModule, dict(lora_dim=4, alpha=2), [LINEAR, OUTPUT, POINT]),
    "norms": (NormModule, dict(), [GROUP, LAYER]),
    "boft": (ButterflyOFTModule, dict(lora_dim=6), MATRICES),
    "boft_coft": (ButterflyOFTModule, dict(lora_dim=6, constraint=0.01), MATRICES),
    "boft_rescaled": (ButterflyOFTModule, dict(lora_dim=6, rescaled=True), MATRICES),
}


def flat(name):
    return "lora_unet_" + name.replace(".", "_")


def merged(module, base):
    """The weight and the bias that the module stands for."""
    weight, bias = module.get_merged_weight(shape=base.weight.shape)
    return weight, base.bias if bias is None else bias


def module_of(kind, options, name, base):
    return kind(flat(name), copy.deepcopy(base), 1.0, **options)


@torch.no_grad()
def main():
    torch.manual_seed(3)
    expected = {}
    for name, base in LAYERS.items():
        for key, parameter in base.named_parameters():
            nn.init.normal_(parameter, std=0.5)
            expected[f"base.{name}.{key}"] = parameter
    for case, (kind, options, names) in CASES.items():
        tensors = {}
        for name in names:
            base = LAYERS[name]
            module = module_of(kind, options, name, base)
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
            weight, bias = merged(module, base)
            expected[f"{case}.{name}.weight"] = weight
            if bias is not None:
                expected[f"{case}.{name}.bias"] = bias
            state = module.custom_state_dict()
            if kind is FullModule:  # which folds the layer in only when it is applied
                state = {"diff": module.weight, **({} if module.bias is None else {"diff_b": module.bias})}
            if state is None:
                state = module.state_dict()
            tensors |= {f"{flat(name)}.{key}": value for key, value in state.items()}
        save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, DATA / f"{case}.safetensors")
    save_file({k: v.detach().clone().contiguous() for k, v in expected.items()}, DATA / "expected.safetensors")


@torch.no_grad()
def check(folder):
    expected = load_file(DATA / "expected.safetensors")
    for case, (kind, _, names) in CASES.items():
        if case == "tlora":  # written as plain factors
            continue
        tensors = load_file(pathlib.Path(folder) / f"{case}.safetensors")
        for name in names:
            base = copy.deepcopy(LAYERS[name])
            for key, parameter in base.named_parameters():
                parameter.copy_(expected[f"base.{name}.{key}"])
            assert kind.algo_check(tensors, flat(name)), (case, name)
            if kind is IA3Module:  # whose reader passes over on_input
                module = module_of(kind, dict(train_on_input=bool(tensors[f"{flat(name)}.on_input"])), name, base)
                module.weight.copy_(tensors[f"{flat(name)}.weight"])
            else:
                weights = kind.extract_state_dict(tensors, flat(name))
                module = kind.make_module_from_state_dict(flat(name), base, *weights)
            weight, bias = merged(module, base)
            assert torch.allclose(weight, expected[f"{case}.{name}.weight"], atol=1e-5), (case, name)
            if bias is not None:
                assert torch.allclose(bias, expected[f"{case}.{name}.bias"], atol=1e-5), (case, name)


if __name__ == "__main__":
    check(sys.argv[2]) if sys.argv[1:2] == ["--check"] else main()
