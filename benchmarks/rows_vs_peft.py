# SPDX-License-Identifier: Apache-2.0
"""Times a batch whose rows have different adapters, PEFT's `adapter_names` against `activate_rows`, alternating in one run.

Usage: rows_vs_peft.py --bin build/bin [--json FILE] [--quick]. Needs torch and peft.
One Linear of 640 features, 64 rows of 64 tokens, forward without gradients; each side also with one adapter for all rows.
"""

import argparse
import json
import pathlib
import random

import peft
import torch
from common import Server, machine, median, now

ROWS, TOKENS, WIDTH = 64, 64, 640


class PeftBatch:
    """PEFT's LoRA layer with so many adapters, and a row of the batch for each in turn."""

    def __init__(self, adapters, rank):
        torch.manual_seed(1)
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"], init_lora_weights=False)
        self.names = [f"set{i}" for i in range(adapters)]
        model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH))
        self.model = peft.get_peft_model(model, config, adapter_name=self.names[0])
        for name in self.names[1:]:
            self.model.add_adapter(name, config)
        self.model.eval()
        self.x = torch.randn(ROWS, TOKENS, WIDTH)
        self.rows = [self.names[i % adapters] for i in range(ROWS)]

    @torch.no_grad()
    def sample(self, form, repeats, threads):
        arguments = {"adapter_names": self.rows} if form == "mixed" else {}
        start = now(threads)
        for _ in range(repeats):
            self.model(self.x, **arguments)
        return 1e6 * (now(threads) - start) / repeats


def compare(server, adapters, rounds, rank, threads):
    batch = PeftBatch(adapters, rank)
    parts = {
        "one": lambda: server.ask(f"{adapters} one 3")[0],
        "mixed": lambda: server.ask(f"{adapters} mixed 3")[0],
        "peft_one": lambda: batch.sample("one", 3, threads),
        "peft_mixed": lambda: batch.sample("mixed", 3, threads),
    }
    for part in parts.values():
        part()
    times = {name: [] for name in parts}
    for _ in range(rounds):
        for name in random.sample(list(parts), len(parts)):
            times[name].append(parts[name]())

    def ratio(one, other):
        return median([a / b for a, b in zip(times[one], times[other])])

    return {
        "adapters": adapters,
        "mixed_over_one": ratio("mixed", "one"),
        "peft_mixed_over_one": ratio("peft_mixed", "peft_one"),
        "peft_over_ours": ratio("peft_mixed", "mixed"),
        **{f"{name}_us": median(values) for name, values in times.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/bin"))
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="few rounds, and fail unless ours is the faster one")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    server = Server(flags.bin / "rows_benchmark", "--serve", "--rank", flags.rank, "--threads", flags.threads)
    rounds = 7 if flags.quick else flags.rounds
    rows = [compare(server, adapters, rounds, flags.rank, flags.threads) for adapters in (8, 64)]
    server.close()
    print("adapters | ours mixed/one | PEFT mixed/one | PEFT mixed/ours mixed")
    for row in rows:
        print(
            "{adapters:8} | {mixed_over_one:14.2f} | {peft_mixed_over_one:14.2f} | {peft_over_ours:21.2f}".format(**row)
        )
    if flags.json:
        flags.json.write_text(json.dumps({"machine": machine(flags.threads), "rows": rows}, indent=1) + "\n")
        print(f"written: {flags.json}")
    if flags.quick:
        assert all(row["peft_over_ours"] > 1 for row in rows), f"expected to be faster than PEFT, got {rows}"


if __name__ == "__main__":
    main()
