# SPDX-License-Identifier: Apache-2.0
"""Packages that AOTInductor compiles of the Python model take adapters in: exports the model of
parity/data/torchscript, as it is and with its weights folded, and runs the C++ cases over both.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import torch

TESTS = pathlib.Path(__file__).resolve().parents[1]
LIBRARY_TESTS = pathlib.Path(os.environ["LIGHTLORA_BIN"]).parent / "tests" / "library_tests"
sys.path.insert(0, str(TESTS / "parity"))


def main():
    from make_torchscript import Net

    net = Net().eval()
    net.load_state_dict(torch.jit.load(TESTS / "parity/data/torchscript/scripted.pt").state_dict())
    ids = torch.zeros(3, 7, dtype=torch.long)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder + "/cache"
        for name, freezing in ("net", False), ("frozen", True):
            torch._inductor.aoti_compile_and_package(
                torch.export.export(net, (ids,)),
                package_path=f"{folder}/{name}.pt2",
                inductor_configs={"freezing": freezing, "cpp_cache_precompile_headers": False},
            )
        # A package's code asks for libtorch.so, which a program that needs libtorch_cpu alone does not bring.
        libraries = str(pathlib.Path(torch.__file__).parent / "lib")
        environment = {**os.environ, "LIGHTLORA_PACKAGES": folder, "LD_LIBRARY_PATH": libraries}
        run = subprocess.run([LIBRARY_TESTS, "[aotinductor]"], env=environment, capture_output=True, text=True)
        print(run.stdout + run.stderr)
        assert run.returncode == 0 and "2 test cases" in run.stdout and "checks nothing" not in run.stdout


if __name__ == "__main__":
    main()
