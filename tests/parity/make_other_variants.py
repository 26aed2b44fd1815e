# SPDX-License-Identifier: Apache-2.0
"""Writes data/other_variants.safetensors: one Linear with PEFT's (0.21.2) PSOFT, SHiRA and BOFT and LyCORIS' (lycoris-lora 4.1.3)
diag-OFT, BOFT, GLoRA, T-LoRA and full, with trained values that are not zero. For each case, as "<case>.<name>": the trained and the frozen values,
the delta, and for the shared x and dy the output and the gradients of x and of the trained values.
"""

import pathlib

import torch
from boft_without_cuda import use_torch_for_boft
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.tlora import TLoraModule, clear_timestep_mask, compute_timestep_mask, set_timestep_mask
from peft import BOFTConfig, PsoftConfig, ShiraConfig, get_peft_model
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).parent / "data/other_variants.safetensors"
IN, OUT = 24, 20
torch.Tensor.float = lambda tensor: tensor  # LyCORIS inverts and decomposes in fp32, which cannot be mixed with double


def linear(weight, bias):
    layer = torch.nn.Linear(IN, OUT).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def psoft(layer):
    config = PsoftConfig(r=5, psoft_alpha=10, ab_svd_init="psoft_init", target_modules=["0"])
    model = get_peft_model(torch.nn.Sequential(layer.to(torch.float32)), config).double()
    own = model.base_model.model[0]
    core = own.psoft_R["default"]
    frozen = {"down_aux": own._psoft_A_cache["default"].double(), "up_aux": own._psoft_B_cache["default"].double()}
    own._set_psoft_ab_cache_buffers("default", *frozen.values())
    return model, {"q": core.weight, "alpha": core.vector_a, "beta": core.vector_b}, frozen


def shira(layer):
    model = get_peft_model(torch.nn.Sequential(layer), ShiraConfig(r=2, target_modules=["0"], random_seed=3)).double()
    own = model.base_model.model[0]
    rows, columns = own.shira_indices["default"]
    return model, {"values": own.shira_weight["default"]}, {"rows": rows, "columns": columns}


def lycoris(module, names):
    """A module of LyCORIS over its layer, and its trained values under our names."""
    module = module.double()
    module.apply_to()
    trained = {ours: getattr(module, theirs) for ours, theirs in names.items() if "." not in theirs}
    for ours, theirs in names.items():
        if "." in theirs:
            owner, name = theirs.split(".")
            trained[ours] = getattr(getattr(module, owner), name)
    return module, trained


def peft_boft(layer, block, factors):
    config = BOFTConfig(boft_block_size=block, boft_n_butterfly_factor=factors, target_modules=["0"])
    model = get_peft_model(torch.nn.Sequential(layer), config).double()
    own = model.base_model.model[0]
    return model, {"boft_R": own.boft_R["default"], "rescale": own.boft_s["default"]}, {}


def output_rotation(kind, layer, rank, **settings):
    module = kind("x", layer, lora_dim=rank, bypass_mode=False, **settings)
    names = {"oft_blocks": "oft_blocks", **({"rescale": "rescale"} if module.rescaled else {})}
    module, trained = lycoris(module, names)
    return layer, trained, {}


def diag_oft(layer, **settings):
    return output_rotation(DiagOFTModule, layer, 5, **settings)


def boft(layer, **settings):
    return output_rotation(ButterflyOFTModule, layer, 10, **settings)


def glora(layer):
    module = GLoRAModule("x", layer, lora_dim=3, alpha=6, bypass_mode=False)
    _, trained = lycoris(module, {name: f"{name}.weight" for name in ["a1", "a2", "b1", "b2"]})
    return layer, trained, {}


def tlora(layer, sig_type):
    module = TLoraModule("x", layer, lora_dim=4, alpha=8, bypass_mode=False, sig_type=sig_type)
    module, trained = lycoris(module, {"q": "q_layer.weight", "p": "p_layer.weight", "lambda": "lambda_layer"})
    return layer, trained, {"q_start": module.base_q, "p_start": module.base_p, "lambda_start": module.base_lambda}


def full(layer):
    module, trained = lycoris(FullModule("x", layer, bypass_mode=False), {"diff": "weight"})
    return layer, trained, {}


CASES = {
    "psoft": psoft,
    "shira": shira,
    "diag_oft": diag_oft,
    "diag_oft_rescaled": lambda layer: diag_oft(layer, rescaled=True),
    "diag_oft_coft": lambda layer: diag_oft(layer, constraint=0.01),
    "glora": glora,
    "tlora": lambda layer: tlora(layer, "principal"),
    "tlora_last": lambda layer: tlora(layer, "last"),
    "tlora_masked": lambda layer: tlora(layer, "middle"),
    "full": full,
    "boft": boft,
    "boft_rescaled": lambda layer: boft(layer, rescaled=True),
    "boft_coft": lambda layer: boft(layer, constraint=0.01),
    "boft_peft": lambda layer: peft_boft(layer, 4, 1),
    "boft_peft_3": lambda layer: peft_boft(layer, 6, 3),
}


def main():
    torch.manual_seed(1)
    weight, bias = torch.randn(OUT, IN), torch.randn(OUT)
    weight, bias = weight.double(), bias.double()
    x, dy = torch.randn(7, IN, dtype=torch.double), torch.randn(7, OUT, dtype=torch.double)
    tensors = {"weight": weight, "bias": bias, "x": x, "dy": dy}
    for case, make in CASES.items():
        model, trained, frozen = make(linear(weight, bias))
        with torch.no_grad():
            for parameter in trained.values():
                parameter.add_(torch.randn(parameter.shape, dtype=torch.double) * 0.2)
        if case == "tlora_masked":
            set_timestep_mask(compute_timestep_mask(600, 1000, 4))
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        gradients = torch.autograd.grad([y], [leaf, *trained.values()], [dy])
        tensors[f"{case}.y"] = y.detach()
        tensors[f"{case}.grad.x"] = gradients[0]
        # The delta, from the outputs of every unit input.
        tensors[f"{case}.delta"] = (model(torch.eye(IN).double()) - bias).T.detach() - weight
        clear_timestep_mask()
        for (name, parameter), gradient in zip(trained.items(), gradients[1:]):
            tensors[f"{case}.{name}"] = parameter.detach()
            tensors[f"{case}.grad.{name}"] = gradient
        if case == "full":  # LyCORIS trains the weight itself
            tensors["full.diff"] = tensors["full.diff"] - weight
        for name, value in frozen.items():
            tensors[f"{case}.{name}"] = value.detach().double()
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, DATA)


if __name__ == "__main__":
    use_torch_for_boft()
    main()
