# SPDX-License-Identifier: Apache-2.0
"""Times a training or a denoising step of this project and of diffusers (with PEFT), alternating in one run.

Usage: program_vs_diffusers.py train|generate --bin build/bin [--json FILE] [--cases NAME...] [--device cuda].
Both UNets have the sizes of one configuration file and random weights, the same dtype and number of threads.
"train": forward, mean squared error, backward, clipping, AdamW, with rank 4 adapters on to_q, to_k, to_v and
to_out.0; in Python as diffusers' train_dreambooth_lora.py does it (fp32 adapters over weights in the dtype,
under autocast for bf16). "generate": one guided step of DDIM without adapters, eager.
"""

import argparse
import json
import pathlib
import random

import torch
from common import Server, machine, median, now, spread
from diffusers import DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "examples/stable_diffusion/assets/base/unet/config.json"
FULL = ROOT / "benchmarks/sd15_unet.json"
# name: configuration, size of the latents, batch, dtype
CASES = {
    "bundled fp32": (BUNDLED, 0, 4, "fp32"),
    "bundled bf16": (BUNDLED, 0, 4, "bf16"),
    "sd15 256x256 fp32": (FULL, 32, 1, "fp32"),
    "sd15 256x256 bf16": (FULL, 32, 1, "bf16"),
    "sd15 512x512 bf16": (FULL, 64, 1, "bf16"),
    "sd15 512x512 bf16 batch 4": (FULL, 64, 4, "bf16"),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_unet(config, dtype, device):
    torch.manual_seed(0)
    settings = json.loads(pathlib.Path(config).read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(settings)
    unet = unet.to_empty(device=device).to(dtype).requires_grad_(False)
    numbers = (torch.randn(1 << 20) * 0.02).to(device, dtype)
    for parameter in unet.parameters():
        copies = -(-parameter.numel() // numbers.numel())
        parameter.data.copy_(numbers.repeat(copies)[: parameter.numel()].view(parameter.shape))
    return unet


def training_step(unet, size, batch, dtype):
    unet.train()
    unet.add_adapter(
        LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"])
    )
    trained = [p for p in unet.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    device = unet.device
    noisy = torch.randn(batch, unet.config.in_channels, size, size, dtype=dtype, device=device)
    target = torch.randn(noisy.shape, device=device)
    states = torch.randn(batch, 77, unet.config.cross_attention_dim, dtype=dtype, device=device)
    timesteps = torch.full((batch,), 500, device=device)

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            predicted = unet(noisy, timesteps, states).sample
        torch.nn.functional.mse_loss(predicted.float(), target).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def denoising_step(unet, size, batch, dtype):
    unet.eval()
    scheduler = DDIMScheduler.from_pretrained(ROOT / "examples/stable_diffusion/assets/base/scheduler")
    scheduler.set_timesteps(50)
    latents = torch.randn(batch, unet.config.in_channels, size, size, dtype=dtype, device=unet.device)
    states = torch.randn(2 * batch, 77, unet.config.cross_attention_dim, dtype=dtype, device=unet.device)
    time = scheduler.timesteps[10]

    @torch.no_grad()
    def step():
        halves = unet(torch.cat([latents, latents]), time, states).sample.chunk(2)
        scheduler.step(halves[0] + 7.5 * (halves[1] - halves[0]), time, latents)

    return step


def seconds_of(step, flags):
    if flags.device == "cpu":
        start = now(flags.threads)
        step()
        return now(flags.threads) - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def compare(what, name, flags):
    config, size, batch, dtype = CASES[name]
    size = size or json.loads(pathlib.Path(config).read_text())["sample_size"]
    program = {"train": "step_benchmark", "generate": "generate_benchmark"}[what]
    server = Server(
        flags.bin / program,
        "--serve",
        "--unet_config",
        config,
        "--size",
        size,
        "--batch",
        batch,
        "--dtype",
        dtype,
        "--threads",
        flags.threads,
        "--device",
        flags.device,
    )
    unet = make_unet(config, DTYPES[dtype], flags.device)
    make = training_step if what == "train" else denoising_step
    theirs = make(unet, size, batch, DTYPES[dtype])

    parts = {"ours": lambda: server.ask("step")[0], "python": lambda: seconds_of(theirs, flags)}
    for _ in range(2 if flags.device == "cpu" else 4):  # ours is recorded in the third on a GPU
        once = sum(part() for part in parts.values())
    rounds = min(flags.most_rounds, max(5, int(flags.seconds / once)))
    times = {part: [] for part in parts}
    for _ in range(rounds):
        for part in random.sample(list(parts), len(parts)):
            times[part].append(parts[part]())
    server.close()
    return {
        "what": what,
        "case": name,
        "size": size,
        "batch": batch,
        "dtype": dtype,
        "samples": rounds,
        "ours_s": median(times["ours"]),
        "python_s": median(times["python"]),
        "ours_iqr_s": spread(times["ours"]),
        "python_iqr_s": spread(times["python"]),
        "speedup": median([b / a for a, b in zip(times["ours"], times["python"])]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["train", "generate"])
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/bin"))
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seconds", type=float, default=60, help="for each case")
    parser.add_argument("--most_rounds", type=int, default=41)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    rows = []
    for name in flags.cases:
        rows.append(compare(flags.what, name, flags))
        print(
            "{what:8} {case:18} ours {ours_s:8.3f} s  diffusers {python_s:8.3f} s  {speedup:5.2f} times as fast"
            "  ({samples} rounds)".format(**rows[-1]),
            flush=True,
        )
        if flags.json:
            flags.json.write_text(json.dumps({"machine": machine(flags.threads), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
