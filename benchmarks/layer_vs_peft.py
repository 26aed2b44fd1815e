# SPDX-License-Identifier: Apache-2.0
"""Times PEFT's own LoRA layer and this library's on the same shapes, alternating in one run.

Usage: layer_vs_peft.py --bin build/bin [--json FILE] [--quick]. Needs torch and peft.
Each round takes one sample of the bare Linear and of the adapted one, in Python and in C++, in random order.
Both sides run the same LibTorch version with the same number of threads on the same inputs' shapes.
"""

import argparse
import json
import operator
import pathlib
import random

import peft
import torch
from common import Server, geometric_mean, machine, median, now, spread

SHAPES = [
    (4096, 320, 320),
    (1024, 640, 640),
    (256, 1280, 1280),
    (64, 1280, 1280),
    (77, 768, 320),
    (77, 768, 640),
    (77, 768, 1280),
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PeftLayer:
    """A frozen Linear with PEFT's adapter as `get_peft_model` makes it, and the same Linear bare."""

    def __init__(self, rows, inside, outside, dtype, rank):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(inside, outside, bias=False)).to(DTYPES[dtype])
        self.bare = torch.nn.Linear(inside, outside, bias=False).to(DTYPES[dtype]).requires_grad_(False)
        config = peft.LoraConfig(r=rank, lora_alpha=2, target_modules=["0"], init_lora_weights=False)
        self.adapted = peft.get_peft_model(model, config)
        self.trained = [p for p in self.adapted.parameters() if p.requires_grad]
        assert all(p.dtype == torch.float32 for p in self.trained), "PEFT trains its adapters in fp32"
        self.x = torch.randn(rows, inside, dtype=DTYPES[dtype]).requires_grad_()
        self.dy = torch.randn(rows, outside, dtype=DTYPES[dtype])

    def sample(self, form, repeats, threads):
        layer, leaves = (self.bare, [self.x]) if form == "bare" else (self.adapted, [self.x, *self.trained])
        forward = backward = 0.0
        for _ in range(repeats):
            start = now(threads)
            y = layer(self.x)
            middle = now(threads)
            torch.autograd.grad([y], leaves, [self.dy])
            end = now(threads)
            forward += middle - start
            backward += end - middle
        return 1e6 * forward / repeats, 1e6 * backward / repeats

    def kept_bytes(self):
        """Bytes of the tensors that autograd holds for the backward pass, but for inputs and parameters."""
        own = {t.untyped_storage().data_ptr() for t in [self.x, *self.adapted.parameters()]}
        held = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = self.adapted(self.x)
        held.pop(y.untyped_storage().data_ptr(), None)
        return sum(held.values())


def measure(parts, seconds):
    """{name: microseconds of each round} of the parts, in random order in each round."""
    repeats = 1
    for _ in range(2):
        once = sum(part(repeats) for part in parts.values()) * 1e-6
    repeats = max(1, int(5 * 3e-3 / once))
    rounds = min(101, max(9, int(seconds / (once * repeats))))
    times = {name: [] for name in parts}
    for _ in range(rounds):
        for name in random.sample(list(parts), len(parts)):
            times[name].append(parts[name](repeats))
    return times


def figures(times):
    """Medians, spreads and ratios of the times of all parts."""

    def middle(combine, one, other):
        return median([combine(a, b) for a, b in zip(times[one], times[other])])

    our_overhead = middle(operator.sub, "ours", "our_bare")
    peft_overhead = middle(operator.sub, "peft", "peft_bare")
    return {
        "samples": len(times["ours"]),
        **{f"{name}_us": median(values) for name, values in times.items()},
        **{f"{name}_iqr_us": spread(values) for name, values in times.items()},
        "our_ratio_to_bare": middle(operator.truediv, "ours", "our_bare"),
        "peft_ratio_to_bare": middle(operator.truediv, "peft", "peft_bare"),
        "packed_ratio_to_bare": middle(operator.truediv, "packed", "our_bare"),
        "our_overhead_us": our_overhead,
        "peft_overhead_us": peft_overhead,
        "overhead_ratio": our_overhead / peft_overhead,
        "total_ratio": middle(operator.truediv, "ours", "peft"),
        "packed_total_ratio": middle(operator.truediv, "packed", "peft"),
    }


def compare(server, shape, dtype, variant, rank, seconds, threads):
    peft_layer = PeftLayer(*shape, dtype, rank)
    peft_kept = peft_layer.kept_bytes()
    size = "{} {} {}".format(*shape)

    def ask(form, repeats):
        return server.ask(f"{size} {dtype} {variant} {rank} {form} {repeats}")

    def ours(form):
        return lambda repeats: sum(ask(form, repeats)[:2])

    def theirs(form):
        return lambda repeats: sum(peft_layer.sample(form, repeats, threads))

    times = measure(
        {
            "our_bare": ours("bare"),
            "ours": ours("auto"),
            "packed": ours("packed"),
            "peft_bare": theirs("bare"),
            "peft": theirs("lora"),
        },
        seconds,
    )

    return {
        "n": shape[0],
        "k": shape[1],
        "m": shape[2],
        "dtype": dtype,
        "variant": variant,
        "rank": rank,
        **figures(times),
        "our_kept_bytes": ask("auto", 1)[2],
        "peft_kept_bytes": peft_kept,
    }


def report(rows, dtype, variant):
    for row in rows:
        print(
            "{n}x{k}x{m}".format(**row).ljust(16),
            "{dtype:5} {variant:7} | {our_ratio_to_bare:11.3f} {peft_ratio_to_bare:11.3f} | {packed_ratio_to_bare:11.3f}"
            " | {overhead_ratio:18.2f} | {total_ratio:15.3f} {packed_total_ratio:7.3f} |".format(**row),
            f"{row['our_kept_bytes'] / 1024:8.1f} {row['peft_kept_bytes'] / 1024:8.1f}",
            flush=True,
        )
    # A difference below the clock's noise can come out negative, which has no logarithm.
    mean = geometric_mean([max(row["overhead_ratio"], 1e-3) for row in rows])
    print(f"{'geometric mean':16} {dtype:5} {variant:7} | {'':23} | {'':11} | {mean:18.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/bin"))
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=8, help="for each shape, dtype and variant")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--variants", nargs="+", default=["classic", "light"])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two shapes, and fail unless ours is the faster one")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    shapes = [(1024, 320, 320), (77, 768, 320)] if flags.quick else SHAPES
    seconds = 2 if flags.quick else flags.seconds
    server = Server(flags.bin / "layer_benchmark", "--serve", "--threads", flags.threads)
    rows = []
    print(
        f"{'rows x in x out':16} dtype variant |   ours/bare   PEFT/bare | packed/bare | overhead ours/PEFT | total ours/PEFT, packed | kept ours, PEFT KB"
    )
    for dtype in flags.dtypes:
        for variant in flags.variants:
            own = [compare(server, shape, dtype, variant, flags.rank, seconds, flags.threads) for shape in shapes]
            report(own, dtype, variant)
            rows += own
    server.close()
    if flags.json:
        flags.json.write_text(json.dumps({"machine": machine(flags.threads), "rows": rows}, indent=1) + "\n")
        print(f"written: {flags.json}")
    if flags.quick:
        slow = [row for row in rows if row["variant"] == "classic" and row["total_ratio"] > 1.05]
        assert not slow, f"expected to be no slower than PEFT, got {slow}"


if __name__ == "__main__":
    main()
