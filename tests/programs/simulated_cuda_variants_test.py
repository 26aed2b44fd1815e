# SPDX-License-Identifier: Apache-2.0
"""Every variant, and every way of keeping the frozen weights, over the simulated CUDA device."""

import json
import os
import pathlib
import re
import subprocess

from simulated_cuda_test import DEVICE, KINDS, LOOSE, NATIVE, REAL, SAME_KERNELS, difference, train_on
from support import BIN, main, run_ok, scratch

# Variants with more to say than their name.
FLAGS = {
    "adalora": ["--tinit", 1, "--tfinal", 1],
    "boft": ["--target_modules", "to_q", "--target_modules", "conv1"],
    "oft": ["--neumann_terms", 0],
}
# How the UNet's frozen weights are kept. In eight bits a GPU's convolutions read full weights, and a CPU's do not.
BASES = {"int8": 5e-2, "nf4": 1e-5}


def other_variants():
    """Those that simulated_cuda_test.py does not train."""
    line = re.search(r"--variant (\w+(?:\|\w+)+)", run_ok("train_dreambooth_lora", "--help"))
    return sorted(set(line[1].split("|")) - {name.split()[0] for name in KINDS})


def check(folder, name, limit, *flags):
    flags = [*SAME_KERNELS, "--train_batch_size", 1, *flags]
    expected, _ = train_on(folder / f"{name}-cpu", "cpu", *flags, steps=4)
    got, _ = train_on(folder / f"{name}-cuda", "cuda", *flags, steps=4)
    error = difference(expected, got)
    print(f"  {name}: losses within {error:.1e} of the CPU's")
    assert error <= limit * LOOSE, (name, error, expected, got)


def test_the_other_variants_are_recorded_with_the_cpus_losses():
    with scratch() as folder:
        variants = other_variants()
        assert len(variants) >= 13, variants
        for variant in variants:
            check(pathlib.Path(folder), variant, 1e-5, "--variant", variant, *FLAGS.get(variant, []))


def test_frozen_weights_of_few_bits_have_about_the_cpus_losses():
    with scratch() as folder:
        for precision, limit in BASES.items():
            check(pathlib.Path(folder), precision, limit, "--base_precision", precision)


def test_what_changes_between_steps_reaches_the_recorded_ones():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name, more in [
            ("ranks by timestep", ["--variant", "tlora"]),
            ("ranks that are taken away", ["--variant", "adalora", *FLAGS["adalora"]]),
            ("ranks left out", ["--rank_dropout", 0.3]),
            ("layers left out", ["--module_dropout", 0.3]),
        ]:
            results = []
            for choice in ["on", "off"]:
                output = folder / f"{name}-{choice}"
                found, _ = train_on(output, "cuda", "--cuda_graph", choice, *more, "--train_batch_size", 1, steps=6)
                results.append((found, (output / NATIVE).read_bytes()))
            error = difference(results[0][0], results[1][0])
            print(f"  recorded steps, {name}: losses within {error:.1e} of the eager ones'")
            assert error < 1e-3 if REAL else results[0] == results[1], (name, results[0][0], results[1][0])


def test_the_small_example_computes_on_the_device_and_prints_what_it_promises():
    source = pathlib.Path(os.environ["LIGHTLORA_SOURCE_DIR"]) / "examples/existing_model.cpp"
    promised = [line[5:] for line in source.read_text().splitlines() if line.startswith("//   ")]
    with scratch() as folder:
        counts = pathlib.Path(folder) / "counts.json"
        environment = {**os.environ, **DEVICE, "FAKE_CUDA_COUNTS": str(counts)}
        done = subprocess.run([BIN / "existing_model"], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.splitlines() == promised, (done.stdout, done.stderr)
        assert REAL or json.loads(counts.read_text())["kernel_total"] > 1000, counts.read_text()


if __name__ == "__main__":
    main(globals())
