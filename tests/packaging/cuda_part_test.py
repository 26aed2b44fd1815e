# SPDX-License-Identifier: Apache-2.0
"""The part for CUDA, liblightlora_cuda.so, and the counter of waits on a machine without a GPU: no symbol may be missing, it holds on to the CUDA
libraries, and the programs do without them. It runs nothing on a GPU."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "programs"))
from processes_support import Processes, training_flags  # noqa: E402

BIN = pathlib.Path(os.environ["LIGHTLORA_BIN"])
PART = BIN.parent / "lib/liblightlora_cuda.so"
MODEL = pathlib.Path(os.environ["LIGHTLORA_SOURCE_DIR"]) / "examples/stable_diffusion/assets/base"
LIBRARIES = pathlib.Path(os.environ["LIGHTLORA_TORCH_DIR"]).parents[2] / "lib"
# Of NVIDIA's packages, of an older wheel of PyTorch, or the stand-ins of scripts/stand_in_cuda.py.
CUDA_LIBRARIES = [*(LIBRARIES.parents[1] / "nvidia").glob("*/lib/libcublas.so*"), *LIBRARIES.glob("libcublas*.so*")]


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
    if CUDA_LIBRARIES:
        load = "import ctypes, sys; [ctypes.CDLL(path, ctypes.RTLD_GLOBAL | 2) for path in sys.argv[1:]]"
        output_of(sys.executable, "-c", load, LIBRARIES / "libtorch_cuda.so", PART)
    exported = {name for name, _ in symbols(PART, "defined")}
    assert {"lightlora_make_graph_recorder", "lightlora_make_nccl_backend"} <= exported


def test_a_program_of_the_cuda_flavour_links_and_loads():
    program = BIN.parent / "tests/gpu/cuda_flavour"
    wanted = needed(program)
    # Nothing in it names libtorch_cuda, whose kernels register themselves: the linker must have been told to keep it.
    for library in ["libtorch_cuda.so", "libc10_cuda.so", "libcudart.so"]:
        assert any(name.startswith(library) for name in wanted), (library, wanted)
    if CUDA_LIBRARIES:
        assert '"clock": ' in output_of(program)


def test_the_programs_need_no_cuda_libraries():
    for program in ["train_dreambooth_lora", "text_to_image", "textual_inversion"]:
        if (BIN / program).exists():
            assert not [name for name in needed(BIN / program) if "cuda" in name], program


def test_waits_for_a_real_gpu_are_counted_through_libtorchs_own_debug_mode():
    counter = PART.parent / "libcount_waits.so"
    # LibTorch calls the function through the loader, so a library that comes before it takes its place.
    name = "_ZN3c104cuda21warn_or_error_on_syncEv"
    assert (name, "U") in symbols(LIBRARIES / "libtorch_cuda.so", "undefined")
    assert (name, "T") in symbols(counter, "defined")
    with tempfile.TemporaryDirectory(prefix="lightlora-") as folder:
        counts = pathlib.Path(folder) / "counts.json"
        code = (
            "import ctypes, sys; library = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL);"
            f"[ctypes.CDLL(None).{name}() for _ in range(3)];"
            "print(ctypes.c_int.in_dll(library, '_ZZN3c104cuda13warning_stateEvE14warning_state_').value)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, LIBRARIES / "libc10_cuda.so"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "LD_PRELOAD": str(counter), "FAKE_CUDA_COUNTS": str(counts)},
        )
        warn = "1\n"  # c10::cuda::SyncDebugMode::L_WARN, in the state that LibTorch reads
        assert done.returncode == 0 and done.stdout == warn, done
        assert json.loads(counts.read_text())["waits"] == {"synchronisation": 3}, counts.read_text()


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
char* getenv(const char*);
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  const char* generation = getenv("STUB_GENERATION");
  *value = attribute == 75 && generation ? generation[0] - '0' : 0;
  return 0;
}
int cuDeviceGetUuid_v2(char* uuid, int device) {
  const char* text = getenv("STUB_UUID");
  for (int i = 0; i < 16; ++i) uuid[i] = text ? text[0] : 0;
  return text ? 0 : 999;
}
"""


def driver_stub(folder):
    """A libcuda.so.1 of a machine with one GPU, which can do nothing but say so."""
    (folder / "stub.c").write_text(STUB)
    output_of("cc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "stub.c")


def draw(folder, device, *more, program=BIN / "text_to_image", **environment):
    done = subprocess.run(
        list(
            map(
                str,
                [
                    *[program, "--pretrained_model_name_or_path", MODEL, "--prompt", "a bear"],
                    *[
                        "--num_inference_steps",
                        1,
                        "--seed",
                        1,
                        "--device",
                        device,
                        "--output",
                        folder / "bear.png",
                        *more,
                    ],
                ],
            )
        ),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), **environment},
    )
    return done


def link_libtorch_without_cuda(folder):
    """LibTorch as its CPU build is: the loader takes this folder first."""
    for library in LIBRARIES.glob("lib*.so*"):
        if "cuda" not in library.name:
            (folder / library.name).symlink_to(library)


LOADED = """#include <unistd.h>
__attribute__((constructor)) static void say(void) { (void)!write(1, "loaded our part\\n", 16); }
"""


def test_libtorchs_cuda_libraries_and_our_part_are_loaded_while_the_program_runs():
    with tempfile.TemporaryDirectory(prefix="lightlora-") as name:
        folder = pathlib.Path(name)
        driver_stub(folder)
        link_libtorch_without_cuda(folder)
        (folder / "libtorch_cuda.so").symlink_to(PART.parent / "libfake_cuda.so")
        (folder / "part.c").write_text(LOADED)
        program = folder / "bin/text_to_image"
        program.parent.mkdir()
        shutil.copy2(BIN / "text_to_image", program)
        done = draw(folder, "cpu", program=program)
        assert done.returncode == 0 and "loaded" not in done.stdout, done
        picture = (folder / "bear.png").read_bytes()
        for place in ["lib", "lib64", "bin"]:
            (folder / place).mkdir(exist_ok=True)
            part = folder / place / PART.name
            output_of("cc", "-shared", "-fPIC", "-o", part, folder / "part.c")
            for device in ["auto", "cuda"] if place == "lib" else ["cuda"]:
                done = draw(folder, device, "--dtype", "fp32", program=program)
                assert done.returncode == 0 and "warning" not in done.stdout + done.stderr, done
                assert "device: NVIDIA Stub (cuda:0), fp32, LibTorch" in done.stdout, (place, device, done)
                assert done.stdout.count("loaded our part\n") == 1, (place, device, done)
                assert (folder / "bear.png").read_bytes() == picture, (place, device)
            part.unlink()
        # Without our part nothing is recorded, and all the rest works.
        done = draw(folder, "cuda", "--dtype", "fp32", program=program)
        assert done.returncode == 0 and "(cuda:0), fp32" in done.stdout and "loaded" not in done.stdout, done


def test_a_gpu_that_cannot_be_used_is_named_with_the_reason():
    with tempfile.TemporaryDirectory(prefix="lightlora-") as name:
        folder = pathlib.Path(name)
        driver_stub(folder)
        done = draw(folder, "cpu")
        assert done.returncode == 0 and "warning" not in done.stdout, done
        assert "device: cpu, fp32, LibTorch" in done.stdout, done
        link_libtorch_without_cuda(folder)
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


def test_auto_is_the_precision_that_the_gpu_is_fast_in_and_fp32_for_a_file():
    simulated = PART.parent / "libfake_cuda.so"
    with tempfile.TemporaryDirectory(prefix="lightlora-") as name:
        folder = pathlib.Path(name)
        driver_stub(folder)
        for generation, more, expected in [
            ("9", [], "bf16"),
            ("8", ["--allow_tf32"], "bf16"),
            ("7", [], "fp16"),
            ("9", ["--dtype", "fp32"], "fp32"),
            ("9", ["--merge_to", folder / "model.safetensors"], "fp32"),
        ]:
            done = draw(folder, "cuda", *more, LD_PRELOAD=str(simulated), STUB_GENERATION=generation)
            assert done.returncode == 0, done
            assert f"device: NVIDIA Stub (cuda:0), {expected}, LibTorch" in done.stdout, (generation, more, done)
        done = draw(folder, "cuda", "--dtype", "bf16", LD_PRELOAD=str(simulated), STUB_GENERATION="7")
        assert "(cuda:0), bf16 (emulated on this GPU; hint: fp16 is fast), LibTorch" in done.stdout, done
        done = draw(folder, "cpu", STUB_GENERATION="9")
        assert "device: cpu, fp32, LibTorch" in done.stdout, done


def train(output, device, *more, **environment):
    """What the trainer says with `--mixed_precision auto`."""
    done = subprocess.run(
        list(map(str, [BIN / "train_dreambooth_lora", *training_flags(output, *more), "--device", device])),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done
    return done.stdout


def test_a_training_settles_what_auto_is_and_goes_on_with_it():
    simulated = PART.parent / "libfake_cuda.so"
    with tempfile.TemporaryDirectory(prefix="lightlora-") as name:
        folder = pathlib.Path(name)
        driver_stub(folder)
        auto = ["--mixed_precision", "auto", "--checkpointing_steps", 1, "--max_train_steps"]
        stub = {"LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": str(simulated)}
        for generation, device, shown, word in [
            ("9", "cuda", "NVIDIA Stub (cuda:0), bf16", "bf16"),
            ("7", "cuda", "NVIDIA Stub (cuda:0), fp16", "fp16"),
            ("9", "cpu", "cpu, fp32", "no"),
        ]:
            output = folder / word
            said = train(output, device, *auto, 1, **stub, STUB_GENERATION=generation)
            assert f"  Device = {shown}, LibTorch" in said, (word, said)
            assert f'mixed_precision = "{word}"\n' in (output / "config.toml").read_text(), word
        going_on = [*auto, 2, "--resume_from_checkpoint", "latest"]
        said = train(folder / "bf16", "cuda", *going_on, **stub, STUB_GENERATION="7")
        assert "(cuda:0), bf16 (emulated" in said and "other settings" not in said, said


def test_processes_that_compute_on_one_gpu_are_named_and_a_gpu_of_its_own_is_told_by_its_uuid():
    with tempfile.TemporaryDirectory(prefix="lightlora-") as name:
        folder = pathlib.Path(name)
        driver_stub(folder)
        for uuids, fits in ["AA", False], ["AB", True]:
            # As srun shows each process one GPU, which is number 0 to it.
            both = Processes(
                "train_dreambooth_lora",
                2,
                lambda rank: [*training_flags(folder / uuids, steps=1), "--device", "cuda"],
                before=lambda rank: ["env", f"STUB_UUID={uuids[rank]}"],
                LD_LIBRARY_PATH=str(folder),
                LD_PRELOAD=str(PART.parent / "libfake_cuda.so"),
                CUDA_VISIBLE_DEVICES="0",
            ).wait()
            for code, _, error in both.values():
                assert code == (0 if fits else 2), (uuids, both)
                assert fits or "ranks 0 and 1 compute on one GPU (NVIDIA Stub): expected one for each; hint: " in error
                assert error.count("\n") == (0 if fits else 1), (uuids, error)


def main():
    if not PART.exists():
        print("SKIPPED: no complete set of CUDA's headers here, or this LibTorch has no CUDA libraries")
        sys.exit(77)
    test_the_part_needs_the_cuda_libraries_and_no_symbol_is_missing()
    test_a_program_of_the_cuda_flavour_links_and_loads()
    test_the_programs_need_no_cuda_libraries()
    test_waits_for_a_real_gpu_are_counted_through_libtorchs_own_debug_mode()
    test_libtorchs_cuda_libraries_and_our_part_are_loaded_while_the_program_runs()
    test_a_gpu_that_cannot_be_used_is_named_with_the_reason()
    test_auto_is_the_precision_that_the_gpu_is_fast_in_and_fp32_for_a_file()
    test_a_training_settles_what_auto_is_and_goes_on_with_it()
    test_processes_that_compute_on_one_gpu_are_named_and_a_gpu_of_its_own_is_told_by_its_uuid()
    print("9 passed, 0 failed")


if __name__ == "__main__":
    main()
