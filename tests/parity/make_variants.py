# SPDX-License-Identifier: Apache-2.0
"""Writes data/variants.safetensors: one Linear with each of PEFT's (0.21.2) HiRA, MiSS, GraLoRA and OFT, with trained values that
are not zero. For each case, as "<case>.<name>": the trained values, the delta, and for the shared x and dy the output and the
gradients of x and of the trained values.
"""

import pathlib

import torch
from peft import GraloraConfig, HiraConfig, MissConfig, OFTConfig, get_peft_model
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).parent / "data/variants.safetensors"
IN, OUT = 24, 20

CASES = {
    "hira": HiraConfig(r=3, target_modules=["0"]),
    "miss": MissConfig(r=5, target_modules=["0"]),
    "gralora": GraloraConfig(r=4, alpha=8, gralora_k=2, target_modules=["0"]),
    "gralora_4": GraloraConfig(r=8, alpha=4, gralora_k=4, target_modules=["0"]),
    "oft": OFTConfig(r=0, oft_block_size=8, target_modules=["0"]),
    "oft_3": OFTConfig(r=0, oft_block_size=7, num_cayley_neumann_terms=3, target_modules=["0"]),
}


def main():
    torch.manual_seed(1)
    weight, bias = torch.randn(OUT, IN, dtype=torch.double), torch.randn(OUT, dtype=torch.double)
    x, dy = torch.randn(7, IN, dtype=torch.double), torch.randn(7, OUT, dtype=torch.double)
    tensors = {"weight": weight, "bias": bias, "x": x, "dy": dy}
    for case, config in CASES.items():
        base = torch.nn.Sequential(torch.nn.Linear(IN, OUT))
        base.double()
        with torch.no_grad():
            base[0].weight.copy_(weight)
            base[0].bias.copy_(bias)
        model = get_peft_model(base, config).double()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for parameter in trained.values():
                parameter.copy_(torch.randn(parameter.shape, dtype=torch.double) * 0.2)
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        gradients = torch.autograd.grad([y], [leaf, *trained.values()], [dy])
        tensors[f"{case}.y"] = y.detach()
        tensors[f"{case}.grad.x"] = gradients[0]
        for (name, parameter), gradient in zip(trained.items(), gradients[1:]):
            short = name.split("base_model.model.0.")[1].replace(".default", "")
            tensors[f"{case}.{short}"] = parameter.detach()
            tensors[f"{case}.grad.{short}"] = gradient
        merged = model.merge_and_unload()
        tensors[f"{case}.delta"] = merged[0].weight.detach() - weight
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, DATA)


if __name__ == "__main__":
    main()
