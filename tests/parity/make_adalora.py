# SPDX-License-Identifier: Apache-2.0
"""Writes data/adalora: two Linear layers that PEFT (0.21.2) trains with AdaLoRA. numbers.safetensors has the base, the data, the
factors at the start, and as "<step>.<layer>.<tensor>" the factors after each step of SGD and of the budget, with the budget itself
("budget"); "y" is the output in the end. The folder trained is the adapter that PEFT saves then, with the ranks that are left;
untrained is one that no budget has touched. With --check FOLDER, PEFT loads adapters that the library has saved into FOLDER/trained
and FOLDER/untrained, and must compute the same as with its own.
"""

import copy
import pathlib
import sys

import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

DATA = pathlib.Path(__file__).parent / "data/adalora"
SIZES = [12, 10, 8]
LAYERS = ["0", "2"]
STEPS, RATE = 14, 0.2
CONFIG = AdaLoraConfig(
    init_r=4, target_r=2, tinit=2, tfinal=3, deltaT=2, total_step=STEPS, lora_alpha=6, target_modules=LAYERS
)


def base_model(weights):
    model = torch.nn.Sequential(
        torch.nn.Linear(SIZES[0], SIZES[1]), torch.nn.Tanh(), torch.nn.Linear(SIZES[1], SIZES[2])
    )
    model.double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model


def orthogonality(model):
    """The term that PEFT adds to the loss of models that compute one themselves."""
    apart = []
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = p @ p.T if "lora_A" in name else p.T @ p
            apart.append(torch.norm(product - torch.eye(product.shape[0]), p="fro"))
    return sum(apart) / len(apart)


def factors(model):
    return {
        name.split("base_model.model.")[1].replace(".default", ""): p.detach().clone()
        for name, p in model.named_parameters()
        if "lora_" in name
    }


def output(weights, folder, x):
    with torch.no_grad():
        return PeftModel.from_pretrained(base_model(weights), folder).double()(x)


def check(folder):
    tensors = load_file(DATA / "numbers.safetensors")
    weights = {name[5:]: value for name, value in tensors.items() if name.startswith("base.")}
    for case in ["trained", "untrained"]:
        theirs = output(weights, DATA / case, tensors["x"])
        ours = output(weights, pathlib.Path(folder) / case, tensors["x"])
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6), (case, (ours - theirs).abs().max())


def main():
    torch.manual_seed(6)
    base = torch.nn.Sequential(
        torch.nn.Linear(SIZES[0], SIZES[1]), torch.nn.Tanh(), torch.nn.Linear(SIZES[1], SIZES[2])
    )
    weights = {name: p.detach().double() for name, p in base.named_parameters()}
    x, target = torch.randn(16, SIZES[0]).double(), torch.randn(16, SIZES[2]).double()
    tensors = {**{f"base.{name}": value for name, value in weights.items()}, "x": x, "target": target}
    model = get_peft_model(base_model(weights), copy.deepcopy(CONFIG)).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape).double() * 0.3)
    tensors.update({f"start.{name}": p for name, p in factors(model).items()})
    model.save_pretrained(DATA / "untrained")
    # PEFT gives the counter of ranks a gradient too, once an adapter is set active; it is no weight of AdaLoRA's.
    trained = [p for name, p in model.named_parameters() if p.requires_grad and "ranknum" not in name]
    optimizer = torch.optim.SGD(trained, lr=RATE)
    budgets = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), target) + CONFIG.orth_reg_weight * orthogonality(model)
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        budgets.append(model.base_model.rankallocator.budget_schedule(step)[0])
        tensors.update({f"{step}.{name}": p for name, p in factors(model).items()})
    tensors["budget"] = torch.tensor(budgets)
    tensors["y"] = model(x).detach()
    model.save_pretrained(DATA / "trained")
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, DATA / "numbers.safetensors")
    for folder in ["trained", "untrained"]:
        (DATA / folder / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    check(sys.argv[2]) if sys.argv[1:2] == ["--check"] else main()
