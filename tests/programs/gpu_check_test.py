# SPDX-License-Identifier: Apache-2.0
"""Rehearses scripts/gpu_check.sh on the simulated device, whole: what would go wrong on a machine with a GPU but for the
GPU goes wrong here."""

import os
import subprocess
import sys

from support import BIN, SOURCE, main, scratch


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


def test_every_phase_runs_and_the_summary_says_that_it_was_simulated():
    with scratch() as folder:
        done = check(f"{folder}/out")
        log = open(f"{folder}/out/log.txt").read()
        assert done.returncode == 0, done.stdout + done.stderr + log[-4000:]
        summary = open(f"{folder}/out/summary.md").read()
        for phase in ["env", "build", "tests", "parity", "nccl", "speed", "memory", "determinism", "sanitizer"]:
            assert f"| {phase} | passed |" in summary, summary
        assert "Simulated: no GPU was used." in summary and summary.count("memory | --") == 4, summary
        assert len(os.listdir(f"{folder}/out")) <= 8


def test_a_phase_that_fails_is_named_and_the_next_one_runs():
    with scratch() as folder:
        done = check(f"{folder}/out", "build", "env", BUILD=f"{folder}/nothing")
        assert done.returncode == 1 and "| build | FAILED |" in done.stdout and "| env | passed |" in done.stdout, done
        done = check(f"{folder}/out", "sped")
        assert done.returncode == 2 and "'sped': expected one of env build" in done.stderr, done


if not (BIN.parent / "lib/libfake_cuda.so").exists():
    print("SKIPPED: no simulated device here")
    sys.exit(77)

if __name__ == "__main__":
    main(globals())
