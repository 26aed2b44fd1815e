# SPDX-License-Identifier: Apache-2.0
"""Links what a program for a GPU consists of, on a machine without one: no symbol may be missing, the CUDA
libraries must stay in the program, and it must start. It runs nothing on a GPU."""

import os
import pathlib
import subprocess
import sys
import tempfile

SOURCE = pathlib.Path(os.environ["LIGHTLORA_SOURCE_DIR"])
TORCH = pathlib.Path(os.environ["LIGHTLORA_TORCH_DIR"])  # of TorchConfig.cmake
LIBRARIES = TORCH.parents[2] / "lib"


def skip(reason):
    print(f"SKIPPED: {reason}")
    sys.exit(77)


def ok(command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=800, **options)
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def main():
    if not (LIBRARIES / "libtorch_cuda.so").exists():
        skip("this LibTorch has no CUDA libraries")
    # Without a driver the wheel is installed without cuBLAS and the like: then the program is linked, not run.
    complete = bool(list((TORCH.parents[3] / "nvidia").glob("*/lib/libcublas.so*")))
    flags = [] if complete else ["-DCMAKE_EXE_LINKER_FLAGS=-Wl,--unresolved-symbols=ignore-in-shared-libs"]
    with tempfile.TemporaryDirectory(prefix="lightlora-") as folder:
        configured = ok(
            [
                "cmake",
                "-S",
                SOURCE / "tests/packaging/cuda_flavour",
                "-B",
                folder,
                f"-DLIGHTLORA_SOURCE_DIR={SOURCE}",
                f"-DTorch_DIR={TORCH}",
                "-DCMAKE_BUILD_TYPE=Release",
                *flags,
            ]
        )
        if "CUDA graphs and NCCL: off" in configured:
            skip("no complete set of CUDA's headers here")
        ok(["cmake", "--build", folder, "--target", "cuda_flavour"])
        program = pathlib.Path(folder) / "cuda_flavour"
        needed = ok(["readelf", "-d", program])
        for library in ["libtorch_cuda.so", "libc10_cuda.so", "libcudart.so"]:
            assert library in needed, (library, needed)
        if complete:
            output = ok([program])
            assert "records 1, exchanges 1" in output, output
    print("1 passed, 0 failed")


if __name__ == "__main__":
    main()
