# SPDX-License-Identifier: Apache-2.0
"""The unchanged programs over the simulated CUDA device (tests/fake_cuda): same results as on the CPU,
and no needless waits for the device."""

import json
import os
import pathlib
import sys

from support import BIN, MODEL, SUBJECT, main, read_latents, run, scratch

LIBRARY = BIN.parent / "lib/libfake_cuda.so"
NATIVE = "lightlora.safetensors"
# Thin products stop at rank 8, and packed weights are the CPU's: beyond both, kernels are the same.
SAME_KERNELS = ["--pack_weights", "off", "--rank", 12]


def simulated(program, *arguments, counts=None):
    """Runs a program on the simulated device; its standard output."""
    environment = {**os.environ, "LD_PRELOAD": str(LIBRARY)}
    if counts:
        environment["FAKE_CUDA_COUNTS"] = str(counts)
    done = run(program, *arguments, env=environment)
    assert done.returncode == 0 and done.stderr == "", (program, arguments, done)
    return done.stdout


def training(output, device, *more, steps=3):
    return ["--pretrained_model_name_or_path", MODEL, "--instance_data_dir", SUBJECT, "--instance_prompt",
            "a sks bear", "--output_dir", output, "--train_batch_size", 2, "--max_train_steps", steps,
            "--device", device, *more]


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def compare_training(folder, name, *more, limit=0.0, steps=4):
    """The largest relative difference of a step's loss on the device from the CPU's."""
    cpu, cuda = folder / (name + "-cpu"), folder / (name + "-cuda")
    done = run("train_dreambooth_lora", *training(cpu, "cpu", *more, steps=steps))
    assert done.returncode == 0, done
    output = simulated("train_dreambooth_lora", *training(cuda, "cuda", *more, steps=steps))
    expected, got = losses(cpu), losses(cuda)
    assert len(expected) == len(got) == steps, (name, expected, got)
    error = max(abs(a - b) / abs(a) for a, b in zip(expected, got))
    print(f"{name}: losses within {error:.1e} of the CPU's")
    assert error <= limit, (name, error, limit, expected, got)
    return output


if not LIBRARY.exists():
    print("SKIPPED: no simulated device here, as this LibTorch brings CUDA itself")
    sys.exit(77)

if __name__ == "__main__":
    main(globals())
