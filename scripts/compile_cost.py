# SPDX-License-Identifier: Apache-2.0
"""What including the library costs: CPU seconds and memory of the compiler for a file with one include, against
one that includes only torch/nn/modules/linear.h, and for examples/first_adapter.cpp, which calls what it includes.

    scripts/compile_cost.py [--runs N] [HEADER or FILE.cpp...]     others in place of these
    scripts/compile_cost.py --check    only whether the umbrella, compiled separately, stays below 1.15
    scripts/compile_cost.py --against DIR [FILE...]    the same files of another checkout (an older commit), in one run

Each is measured header-only; with the umbrella header precompiled (target_precompile_headers in CMake); and
compiled separately (CMake's target lightlora::compiled).
Environment: CXX, Torch_DIR (the folder of TorchConfig.cmake; default: the one in .deps).
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
BASE = "torch/nn/modules/linear.h"
UMBRELLA = "lightlora/lightlora.h"
LIMIT = 1.15
MODES = {"header-only": "", "precompiled": "  precompiled", "separate": "  compiled separately"}


def torch_folder():
    if "Torch_DIR" in os.environ:
        return Path(os.environ["Torch_DIR"]).parents[2]
    found = sorted(SOURCE.glob(".deps/python/lib/python3*/site-packages/torch"))
    assert found, "expected LibTorch in .deps or in Torch_DIR, got none; hint: scripts/bootstrap.sh"
    return found[0]


class Compiler:
    """Compiles single files of a checkout in a folder of its own."""

    def __init__(self, folder, torch, source=SOURCE):
        self.folder = Path(folder)
        self.source = source
        # It had another name once.
        self.separate = "-D" + re.search(r"#ifdef (\w+)", (source / "include/lightlora/config.h").read_text())[1]
        self.command = [
            os.environ.get("CXX", "c++"),
            "-std=c++17",
            "-O2",
            f"-I{source / 'include'}",
            "-isystem",
            f"{torch / 'include'}",
            "-isystem",
            f"{torch / 'include/torch/csrc/api/include'}",
        ]
        self.umbrella = self.folder / "umbrella.h"
        self.umbrella.write_text(f"#include <{UMBRELLA}>\n")

    def run(self, *arguments):
        """(CPU seconds, MB)"""
        child = subprocess.Popen([*self.command, *map(str, arguments)])
        _, status, usage = os.wait4(child.pid, 0)
        assert status == 0, f"'{arguments[-1]}': the compiler failed"
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024

    def cost(self, what, mode):
        unit = Path(what)
        if unit.suffix == ".h":
            unit = self.folder / "unit.cpp"
            unit.write_text(f"#include <{what}>\n")
        elif (self.source / unit).exists():
            unit = self.source / unit
        extra = {"header-only": [], "precompiled": ["-include", self.umbrella], "separate": [self.separate]}[mode]
        return self.run(*extra, "-o", self.folder / "unit.o", "-c", unit)

    def precompile(self):
        return self.run("-x", "c++-header", "-o", f"{self.umbrella}.gch", self.umbrella)


def measure(cases, runs):
    """Medians of seconds and MB for each case, which is (compiler, file, mode)."""
    costs = {case: [] for case in cases}
    for _ in range(runs):
        for case in cases:  # interleaved, so that a busy machine is busy for all of them
            compiler, file, mode = case
            costs[case].append(compiler.cost(file, mode))
    return {case: [statistics.median(values) for values in zip(*found)] for case, found in costs.items()}


def check(compiler):
    """Only memory decides: unlike the time it is the same in every run, and grows with the same causes."""
    found = measure([(compiler, BASE, "header-only"), (compiler, UMBRELLA, "separate")], runs=1)
    base, umbrella = found.values()
    seconds, memory = umbrella[0] / base[0], umbrella[1] / base[1]
    print(f"{UMBRELLA} compiled separately, over {BASE}: seconds {seconds:.2f}, memory {memory:.2f}")
    sys.exit(
        0
        if memory < LIMIT
        else f"expected the memory below {LIMIT}, got {memory:.2f}; hint: a header includes or "
        "defines what belongs into a file x-inl.h beside it"
    )


def compare(here, there, files, runs):
    """Header-only and compiled separately: these need no file that is compiled once."""
    found = measure(
        [(c, file, mode) for file in files for mode in ["header-only", "separate"] for c in (there, here)], runs
    )
    print(f"{'file':<32} {'there':>20} {'here':>20} {'ratio':>6}")
    for (compiler, file, mode), (seconds, memory) in found.items():
        if compiler is here:
            other = found[(there, file, mode)]
            name = file if mode == "header-only" else MODES[mode]
            columns = " ".join(f"{s:>10.1f} s {m:>5.0f} MB" for s, m in [other, (seconds, memory)])
            print(f"{name:<32} {columns} {seconds / other[0]:>6.2f}")


def report(compiler, files, runs):
    once = {
        "precompiling the umbrella, once": compiler.precompile(),
        "compiling the library, once": compiler.cost("lightlora/detail/source.h", "separate"),
    }
    cases = [
        (compiler, BASE, "header-only"),
        (compiler, "torch/torch.h", "header-only"),
        *((compiler, file, mode) for file in files for mode in MODES),
    ]
    found = measure(cases, runs)
    base = found[cases[0]]
    print(f"{'file':<32} {'seconds':>8} {'ratio':>6} {'MB':>6} {'ratio':>6}")
    for (_, file, mode), (seconds, memory) in found.items():
        name = MODES[mode] or file
        print(f"{name:<32} {seconds:>8.1f} {seconds / base[0]:>6.2f} {memory:>6.0f} {memory / base[1]:>6.2f}")
    for name, (seconds, memory) in once.items():
        print(f"{name:<32} {seconds:>8.1f} {'':>6} {memory:>6.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--against", type=Path, metavar="DIR")
    parser.add_argument("files", nargs="*", default=["lightlora/patch.h", UMBRELLA, "examples/first_adapter.cpp"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compiler = Compiler(folder, torch_folder())
        if options.check:
            check(compiler)
        elif options.against:
            other = Compiler(folder, torch_folder(), options.against.resolve())
            compare(compiler, other, options.files, options.runs)
        else:
            report(compiler, options.files, options.runs)


main()
