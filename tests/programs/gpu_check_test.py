# SPDX-License-Identifier: Apache-2.0
"""Rehearses scripts/gpu_check.sh on the simulated device, whole: what would go wrong on a machine with a GPU but for the
GPU goes wrong here. scripts/gpu_rehearsal.sh does so from the kit, on a machine that has nothing else."""

import os
import re
import subprocess
import sys

from support import BIN, SOURCE, main, scratch

PHASES = "env build tests precision parity waits nccl speed attention choices memory determinism sanitizer".split()


def check(out, *phases, **environment):
    return subprocess.run(
        [SOURCE / "scripts/gpu_check.sh", *phases],
        capture_output=True,
        text=True,
        timeout=800,
        cwd=SOURCE,
        env={
            **os.environ,
            "GPU_CHECK_FAKE": "1",
            "OUT": out,
            "BUILD": str(BIN.parent),
            "PYTHON": sys.executable,
            **environment,
        },
    )


# What each phase leaves in the table.
FIGURES = {
    "env: GPU": 1,
    "env: LibTorch": 1,
    "precision: layers, fp32, forward": 1,
    "precision: UNet, bf16, usual attention": 1,
    "precision: UNet, bf16, math attention": 1,
    "precision: UNet, bf16, cuDNN attention | none": 1,
    "precision: VAE's decoder, fp16, usual attention": 1,
    "parity: recorded steps": 0,
    "waits: waits, drawing with": 4,
    "speed: train, bundled bf16": 1,
    "attention: step, attention": 3,
    "attention: generate, attention flash": 1,
    "choices: generate, --channels_last": 1,
    "choices: step, --cudnn_benchmark": 1,
    "choices: step, classic, rank 8": 1,
    "choices: SVD": 1,
    "memory: memory, --": 2,
    "determinism: two runs": 1,
}


def test_every_phase_runs_and_the_one_table_says_that_it_was_simulated():
    with scratch() as folder:
        done = check(f"{folder}/out")
        log = open(f"{folder}/out/log.txt").read()
        assert done.returncode == 0, done.stdout + done.stderr + log[-4000:]
        summary = open(f"{folder}/out/summary.md").read()
        print(summary)
        for phase in PHASES:
            assert f"| {phase} | passed |" in summary, summary
        for name, count in FIGURES.items():
            assert summary.count("\n| " + name) == count, (name, summary)
        table = [line for line in summary.splitlines() if line.startswith("|")]
        assert all(line.count("|") == 4 for line in table), summary
        assert "Simulated: no GPU was used." in summary and "failed" not in summary, summary
        assert len(os.listdir(f"{folder}/out")) <= 8


def test_a_phase_that_fails_or_takes_too_long_is_named_and_the_next_one_runs():
    with scratch() as folder:
        done = check(f"{folder}/out", "determinism", "env", BUILD=f"{folder}/nothing")
        assert done.returncode == 1, done
        assert "| determinism | FAILED |" in done.stdout and "| env | passed |" in done.stdout, done
        done = check(f"{folder}/out", "determinism", LIMIT="0.1")
        assert done.returncode == 1 and "| determinism | FAILED after 0.1 s, its limit |" in done.stdout, done
        done = check(f"{folder}/out", "sped")
        assert done.returncode == 2 and "'sped': expected one of env build" in done.stderr, done


def test_the_kit_has_the_headers_that_bootstrap_installs():
    bootstrap, kit = ((SOURCE / "scripts" / name).read_text() for name in ["bootstrap.sh", "gpu_kit.sh"])
    wanted = set(re.findall(r"\blib\S+-dev\b|\bcatch2\b|\b\S+-json3-dev\b", bootstrap))
    names = {"libjpeg-dev": "libjpeg62-turbo-dev"}  # what a virtual package stands for
    missing = {names.get(name, name) for name in wanted} - set(kit.split())
    assert len(wanted) > 8 and not missing, (wanted, missing)


if not (BIN.parent / "lib/libfake_cuda.so").exists():
    print("SKIPPED: no simulated device here")
    sys.exit(77)

if __name__ == "__main__":
    main(globals())
