# SPDX-License-Identifier: Apache-2.0
"""Writes data/starts.safetensors: two Linear layers with PEFT's (0.21.2) LoRA from each of its starts that look at the weight or at
data. For each case, as "<case>.<name>": the model's output at the start and after one step of SGD, and for each layer the delta of
the file that PEFT exports for the unchanged base (path_initial_model_for_weight_conversion). Beside them the base, the inputs, the
targets, and the factors of all adapters of LoRA-FA's and the Riemannian optimizer's after two steps.
"""

import copy
import dataclasses
import pathlib
import sys
import tempfile

import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from peft.optimizers import create_lorafa_optimizer, create_riemannian_optimizer, lorafa
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import load_file, save_file

sys.modules.setdefault("attr", dataclasses)  # of which PEFT's module takes the dataclass alone
from peft.tuners.lora.corda import preprocess_corda  # noqa: E402

DATA = pathlib.Path(__file__).parent / "data/starts.safetensors"
SIZES = [24, 20, 16]
RANK, ALPHA, RATE = 3, 6, 0.3
CORDA_RATE = 0.003  # its factors are far from balanced
LAYERS = ["0", "2"]

STARTS = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter_16": {"init_lora_weights": "pissa_niter_16"},
    "olora": {"init_lora_weights": "olora"},
    "mica": {"init_lora_weights": "mica"},
    "eva": {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0)},
    "eva_ranks": {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=3.34)},
    "corda": {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="ipm")},
    "corda_kpm": {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="kpm")},
    "lora_ga": {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
}


def spread(rows, columns, fall=0.8):
    """A random matrix with singular values that fall by this factor each, so that its singular vectors are well defined."""
    u, s, vh = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    return (u * (3 * fall ** torch.arange(s.numel()))) @ vh


def base_model(weights):
    model = torch.nn.Sequential(
        torch.nn.Linear(SIZES[0], SIZES[1]), torch.nn.Tanh(), torch.nn.Linear(SIZES[1], SIZES[2])
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model


def adapted(weights, settings, x, target):
    model = base_model(weights)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LAYERS, **settings)

    def backward():
        torch.nn.functional.mse_loss(model(x), target).backward()

    def forward():
        model(x)

    if config.init_lora_weights == "corda":
        preprocess_corda(model, config, run_model=forward)
    if config.init_lora_weights == "lora_ga":
        preprocess_loraga(model, config, backward)
    peft = get_peft_model(model, config)
    if config.init_lora_weights == "eva":
        initialize_lora_eva_weights(
            peft, [x], forward_fn=lambda m, batch: m(batch), prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None
        )
    return peft


def deltas_of(folder):
    """The deltas of an exported adapter, with the rank and alpha of its configuration."""
    config = LoraConfig.from_pretrained(folder)
    tensors = load_file(folder + "/adapter_model.safetensors")
    result = {}
    for layer in LAYERS:
        prefix = f"base_model.model.{layer}."
        if prefix + "lora_A.weight" not in tensors:
            continue
        rank = config.rank_pattern.get(layer, config.r)
        scale = config.alpha_pattern.get(layer, config.lora_alpha) / rank
        result[layer] = scale * tensors[prefix + "lora_B.weight"] @ tensors[prefix + "lora_A.weight"]
    return result


def step(model, optimizer, x, target):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(x), target).backward()
    optimizer.step()


def main():
    torch.manual_seed(4)
    weights = {
        "0.weight": spread(SIZES[1], SIZES[0], 0.53),
        "0.bias": torch.randn(SIZES[1]),
        "2.weight": spread(SIZES[2], SIZES[1], 0.6),
        "2.bias": torch.randn(SIZES[2]),
    }
    x, target = spread(64, SIZES[0]), torch.randn(64, SIZES[2])
    tensors = {**{f"base.{name}": value for name, value in weights.items()}, "x": x, "target": target}
    for case, settings in STARTS.items():
        peft = adapted(weights, copy.deepcopy(settings), x, target)
        tensors[f"{case}.start"] = peft(x).detach()
        with tempfile.TemporaryDirectory() as folder:
            first, last = folder + "/first", folder + "/last"
            offset = settings["init_lora_weights"] not in ("eva", "mica")
            if offset:
                peft.peft_config["default"].init_lora_weights = True  # or PEFT refuses to load it
                peft.save_pretrained(first)
                peft.peft_config["default"].init_lora_weights = settings["init_lora_weights"]
            rate = CORDA_RATE if "corda" in case else RATE
            step(peft, torch.optim.SGD([p for p in peft.parameters() if p.requires_grad], lr=rate), x, target)
            tensors[f"{case}.y"] = peft(x).detach()
            peft.save_pretrained(last, **({"path_initial_model_for_weight_conversion": first} if offset else {}))
            for layer, delta in deltas_of(last).items():
                tensors[f"{case}.{layer}.delta"] = delta

    lorafa.is_bf16_available = lambda: False  # it would multiply in bf16
    for case in ["lora_fa", "riemannian"]:
        torch.manual_seed(5)
        peft = get_peft_model(
            base_model(weights), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LAYERS, init_lora_weights=False)
        )
        factors = {name: p for name, p in peft.named_parameters() if "lora_" in name}
        with torch.no_grad():
            for p in factors.values():
                p.copy_(torch.randn(p.shape) * 0.3)
        short = {name: name.split("base_model.model.")[1].replace(".default.weight", "") for name in factors}
        tensors.update({f"{case}.before.{short[name]}": p.detach().clone() for name, p in factors.items()})
        if case == "lora_fa":
            optimizer = create_lorafa_optimizer(peft, r=RANK, lora_alpha=ALPHA, lr=1e-2)
            optimizer.param_groups[0]["eps"] = 1e-12  # it stands elsewhere than in AdamW
        else:
            optimizer = create_riemannian_optimizer(peft, torch.optim.SGD, lr=1e-2, reg=1e-2)
        for _ in range(2):
            step(peft, optimizer, x, target)
        tensors.update({f"{case}.after.{short[name]}": p.detach().clone() for name, p in factors.items()})
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, DATA)


if __name__ == "__main__":
    main()
