# SPDX-License-Identifier: Apache-2.0
"""What including the library costs: CPU seconds and memory of the compiler for a file with one include, against
one that includes only torch/nn/modules/linear.h, and for examples/first_adapter.cpp, which calls what it includes.

    scripts/compile_cost.py [--runs N] [HEADER or FILE.cpp...]     others in place of these

Each is measured as it is, and with the umbrella header precompiled (target_precompile_headers in CMake).
Environment: CXX, Torch_DIR (the folder of TorchConfig.cmake; default: the one in .deps).
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
BASE = "torch/nn/modules/linear.h"


def torch_folder():
    if "Torch_DIR" in os.environ:
        return Path(os.environ["Torch_DIR"]).parents[2]
    found = sorted(SOURCE.glob(".deps/python/lib/python3*/site-packages/torch"))
    assert found, "expected LibTorch in .deps or in Torch_DIR, got none; hint: scripts/bootstrap.sh"
    return found[0]


class Compiler:
    """Compiles single files in a folder of its own."""

    def __init__(self, folder, torch):
        self.folder = Path(folder)
        self.command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O2", f"-I{SOURCE / 'include'}",
                        "-isystem", f"{torch / 'include'}", "-isystem", f"{torch / 'include/torch/csrc/api/include'}"]
        self.umbrella = self.folder / "umbrella.h"
        self.umbrella.write_text("#include <lightlora/lightlora.h>\n")

    def run(self, *arguments):
        """(CPU seconds, MB)"""
        child = subprocess.Popen([*self.command, *map(str, arguments)])
        _, status, usage = os.wait4(child.pid, 0)
        assert status == 0, f"'{arguments[-1]}': the compiler failed"
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024

    def cost(self, what, precompiled):
        unit = Path(what)
        if unit.suffix == ".h":
            unit = self.folder / "unit.cpp"
            unit.write_text(f"#include <{what}>\n")
        before = ["-include", self.umbrella] if precompiled else []
        return self.run(*before, "-o", self.folder / "unit.o", "-c", unit)

    def precompile(self):
        return self.run("-x", "c++-header", "-o", f"{self.umbrella}.gch", self.umbrella)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("files", nargs="*", default=["lightlora/patch.h", "lightlora/lightlora.h",
                                                     str(SOURCE / "examples/first_adapter.cpp")])
    options = parser.parse_args()
    cases = [(BASE, False), *((file, precompiled) for file in options.files for precompiled in (False, True))]
    costs = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        compiler = Compiler(folder, torch_folder())
        once = compiler.precompile()
        for _ in range(options.runs):
            for case in cases:  # interleaved, so that a busy machine is busy for all of them
                costs[case].append(compiler.cost(*case))
    base = [statistics.median(values) for values in zip(*costs[cases[0]])]
    print(f"{'file':<32} {'seconds':>8} {'ratio':>6} {'MB':>6} {'ratio':>6}")
    for file, precompiled in cases:
        seconds, memory = (statistics.median(values) for values in zip(*costs[file, precompiled]))
        name = "  precompiled" if precompiled else file.replace(f"{SOURCE}/", "")
        print(f"{name:<32} {seconds:>8.1f} {seconds / base[0]:>6.2f} {memory:>6.0f} {memory / base[1]:>6.2f}")
    print(f"precompiling, once: {once[0]:.1f} s, {once[1]:.0f} MB")


main()
