# SPDX-License-Identifier: Apache-2.0
"""Values after each step of reference optimisers on fixed gradients, and the learning rates of
diffusers and transformers.

    python3 make_optimizers.py data/optimizers.safetensors

AdamW and SGD are torch's, Adafactor transformers', Lion lion-pytorch's, Prodigy prodigyopt's. Made
with torch 2.11.0, transformers 5.23.0, diffusers 0.42.1, lion-pytorch 0.2.5, prodigyopt 1.1.2.
"""

import sys

import torch
from diffusers.optimization import get_scheduler
from lion_pytorch import Lion
from prodigyopt import Prodigy
from safetensors.torch import save_file
from transformers import get_wsd_schedule
from transformers.optimization import Adafactor

SHAPES = [(6, 4), (5,), (2, 3)]
STEPS = 22
# Prodigy is given these times 50: its rate is a factor of the one that it finds.
RATES = [0.0] + [0.01 * (1 + i % 3) for i in range(1, STEPS)]


def optimizers():
    common = {"betas": (0.8, 0.95), "weight_decay": 0.1}
    yield "adamw", lambda p: torch.optim.AdamW(p, lr=1, eps=1e-6, **common)
    yield "lion", lambda p: Lion(p, lr=1, **common)
    yield "sgd", lambda p: torch.optim.SGD(p, lr=1, momentum=0.7, weight_decay=0.1)
    yield (
        "adafactor",
        lambda p: Adafactor(p, lr=1, scale_parameter=False, relative_step=False, warmup_init=False, weight_decay=0.1),
    )
    yield (
        "prodigy",
        lambda p: Prodigy(p, lr=1, eps=1e-6, d_coef=2.0, use_bias_correction=True, safeguard_warmup=True, **common),
    )
    yield "prodigy_plain", lambda p: Prodigy(p, lr=1, eps=1e-6, beta3=0.9, **common)


def main(path):
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in SHAPES]
    # A common direction and noise, so that Prodigy's estimate grows.
    pull = [torch.randn(shape) for shape in SHAPES]
    gradients = [[p + 0.5 * torch.randn(p.shape) for p in pull] for _ in range(STEPS)]

    def flat(tensors):
        return torch.cat([t.detach().flatten() for t in tensors])

    result = {
        "start": flat(start),
        "gradients": torch.stack([flat(g) for g in gradients]),
        "rates": torch.tensor(RATES, dtype=torch.float64),
    }
    for name, make in optimizers():
        # Prodigy's first steps are near the rounding of fp32, and it makes its rate of them.
        dtype = torch.float64 if name.startswith("prodigy") else torch.float32
        parameters = [torch.nn.Parameter(t.to(dtype, copy=True)) for t in start]
        optimizer = make(parameters)
        values = []
        for rate, step in zip(RATES, gradients):
            for group in optimizer.param_groups:
                group["lr"] = rate * (50 if name.startswith("prodigy") else 1)
            for parameter, gradient in zip(parameters, step):
                parameter.grad = gradient.to(dtype, copy=True)
            optimizer.step()
            values.append(flat(parameters))
        result[name] = torch.stack(values)
    names = ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
    for name in [*names, "warmup_stable_decay"]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        if name == "warmup_stable_decay":
            schedule = get_wsd_schedule(optimizer, num_warmup_steps=4, num_decay_steps=9, num_training_steps=25)
        else:
            steps = {"num_warmup_steps": 4, "num_training_steps": 25}
            schedule = get_scheduler(name, optimizer, num_cycles=3, power=2.0, **steps)
        rates = []
        for _ in range(28):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        result["schedule." + name] = torch.tensor(rates, dtype=torch.float64)
    save_file(result, path)


main(sys.argv[1])
