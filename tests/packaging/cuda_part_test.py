# SPDX-License-Identifier: Apache-2.0
"""The part for CUDA, liblightlora_cuda.so, on a machine without a GPU: no symbol may be missing, it holds on to the CUDA
libraries, and the programs do without them. It runs nothing on a GPU."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

BIN = pathlib.Path(os.environ["LIGHTLORA_BIN"])
PART = BIN.parent / "lib/liblightlora_cuda.so"
MODEL = pathlib.Path(os.environ["LIGHTLORA_SOURCE_DIR"]) / "examples/stable_diffusion/assets/base"
LIBRARIES = pathlib.Path(os.environ["LIGHTLORA_TORCH_DIR"]).parents[2] / "lib"


def output_of(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (command, done.stderr[-3000:])
    return done.stdout


def needed(library):
    return re.findall(r"\(NEEDED\).*\[(.+)\]", output_of("readelf", "-d", library))


def symbols(library, kind):
    lines = output_of("nm", "-D", f"--{kind}-only", library).splitlines()
    return {(line.split()[-1].partition("@")[0], line.split()[-2]) for line in lines}


def test_the_part_needs_the_cuda_libraries_and_no_symbol_is_missing():
    wanted = needed(PART)
    for library in ["libtorch_cuda.so", "libc10_cuda.so", "libcudart.so"]:
        assert any(name.startswith(library) for name in wanted), (library, wanted)
    # The loader looks every symbol up; LibTorch's CUDA libraries need no driver to be loaded.
    if list((LIBRARIES.parents[1] / "nvidia").glob("*/lib/libcublas.so*")):
        load = "import ctypes, sys; [ctypes.CDLL(path, ctypes.RTLD_GLOBAL | 2) for path in sys.argv[1:]]"
        output_of(sys.executable, "-c", load, LIBRARIES / "libtorch_cuda.so", PART)
    exported = {name for name, _ in symbols(PART, "defined")}
    assert {"lightlora_make_graph_recorder", "lightlora_make_nccl_backend"} <= exported


def test_the_programs_need_no_cuda_libraries():
    for program in ["train_dreambooth_lora", "text_to_image", "textual_inversion"]:
        if (BIN / program).exists():
            assert not [name for name in needed(BIN / program) if "cuda" in name], program


STUB = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int length, int device) {
  const char* text = "NVIDIA Stub";
  int i = 0;
  do name[i] = text[i]; while (text[i++]);
  return 0;
}
int cuDeviceTotalMem_v2(unsigned long* bytes, int device) { *bytes = 8000000000ul; return 0; }
"""


def driver_stub(folder):
    """A libcuda.so.1 of a machine with one GPU, which can do nothing but say so."""
    (folder / "stub.c").write_text(STUB)
    output_of("cc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "stub.c")


def draw(folder, device):
    done = subprocess.run(
        list(
            map(
                str,
                [
                    *[BIN / "text_to_image", "--pretrained_model_name_or_path", MODEL, "--prompt", "a bear"],
                    *["--num_inference_steps", 1, "--seed", 1, "--device", device, "--output", folder / "bear.png"],
                ],
            )
        ),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
    )
    return done


def test_a_gpu_that_cannot_be_used_is_named_with_the_reason():
    with tempfile.TemporaryDirectory(prefix="lightlora-") as name:
        folder = pathlib.Path(name)
        driver_stub(folder)
        done = draw(folder, "cpu")
        assert done.returncode == 0 and "warning" not in done.stdout, done
        assert "device: cpu, fp32, LibTorch" in done.stdout, done
        # LibTorch without CUDA libraries, as its CPU build is: the loader takes this folder first.
        for library in LIBRARIES.glob("lib*.so*"):
            if "cuda" not in library.name:
                (folder / library.name).symlink_to(library)
        cases = [("has no CUDA libraries", None), ("cannot be loaded", "no library")]
        for reason, text in cases:
            if text:
                (folder / "libtorch_cuda.so").write_text(text)
            done = draw(folder, "auto")
            warnings = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
            assert done.returncode == 0 and len(warnings) == 1, done
            assert "a GPU (NVIDIA Stub)" in warnings[0] and reason in warnings[0] and "hint: " in warnings[0], warnings
            done = draw(folder, "cuda")
            assert done.returncode == 1 and reason in done.stderr and done.stderr.count("\n") == 1, done


def main():
    if not PART.exists():
        print("SKIPPED: no complete set of CUDA's headers here, or this LibTorch has no CUDA libraries")
        sys.exit(77)
    test_the_part_needs_the_cuda_libraries_and_no_symbol_is_missing()
    test_the_programs_need_no_cuda_libraries()
    test_a_gpu_that_cannot_be_used_is_named_with_the_reason()
    print("3 passed, 0 failed")


if __name__ == "__main__":
    main()
