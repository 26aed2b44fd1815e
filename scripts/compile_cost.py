# SPDX-License-Identifier: Apache-2.0
"""What including the library costs: CPU seconds and memory of the compiler for a file that includes the
umbrella header, against one that includes only torch/nn/modules/linear.h.

    scripts/compile_cost.py [--runs N] [HEADER...]     other headers to compare, such as lightlora/patch.h

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


def cost(header, folder, torch):
    """(CPU seconds, MB) of compiling a file with this header and nothing else."""
    unit = Path(folder) / "unit.cpp"
    unit.write_text(f"#include <{header}>\n")
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O2", f"-I{SOURCE / 'include'}",
               "-isystem", f"{torch / 'include'}", "-isystem", f"{torch / 'include/torch/csrc/api/include'}",
               "-c", str(unit), "-o", str(unit.with_suffix(".o"))]
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, f"'{header}': the compiler failed"
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("headers", nargs="*")
    options = parser.parse_args()
    headers = [BASE, "lightlora/lightlora.h", *options.headers]
    costs = {header: [] for header in headers}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.runs):
            for header in headers:  # interleaved, so that a busy machine is busy for all of them
                costs[header].append(cost(header, folder, torch_folder()))
    base = [statistics.median(values) for values in zip(*costs[BASE])]
    print(f"{'header':<32} {'seconds':>8} {'ratio':>6} {'MB':>6} {'ratio':>6}")
    for header in headers:
        seconds, memory = (statistics.median(values) for values in zip(*costs[header]))
        print(f"{header:<32} {seconds:>8.1f} {seconds / base[0]:>6.2f} {memory:>6.0f} {memory / base[1]:>6.2f}")


main()
