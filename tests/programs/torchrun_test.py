# SPDX-License-Identifier: Apache-2.0
"""The programs under PyTorch's own launcher: a start, a kill and a restart, and Ctrl-C."""

import os
import pathlib
import signal
import subprocess
import sys

import torch.distributed.run
from processes_support import clean_environment, training_flags
from support import BIN, main, scratch

NATIVE = "lightlora.safetensors"


def torchrun(processes, *flags, restarts=0):
    """torchrun itself, with what it and the processes print."""
    command = [
        sys.executable,
        "-m",
        torch.distributed.run.__name__,
        "--no-python",
        "--nproc-per-node",
        str(processes),
        "--max-restarts",
        str(restarts),
        "--master-port",
        "0",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        BIN / "train_dreambooth_lora",
        *flags,
    ]
    return subprocess.Popen(
        list(map(str, command)), env=clean_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def children(process):
    """{rank: process number} of the processes that a torchrun has started."""
    found = {}
    for task in pathlib.Path(f"/proc/{process.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            variables = pathlib.Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            ranks = [value[5:] for value in variables if value.startswith(b"RANK=")]
            if ranks:
                found[int(ranks[0])] = int(child)
    return found


def wait_for_checkpoint(process, folder, step):
    while not (folder / f"checkpoint-{step}").exists():
        assert process.poll() is None, process.communicate()
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            pass


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, f"{process.returncode}\n{out}\n{err}"
    return out


def test_a_restarted_run_ends_with_the_weights_of_one_that_never_stopped():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        flags = ["--checkpointing_steps", 5]
        out = finish(torchrun(2, *training_flags(folder / "whole", *flags, steps=30)))
        assert "Num processes = 2\n" in out, out
        broken = torchrun(2, *training_flags(folder / "broken", *flags, steps=30), restarts=1)
        wait_for_checkpoint(broken, folder / "broken", 10)
        os.kill(children(broken)[1], signal.SIGKILL)
        out = finish(broken)
        assert "resuming from" in out, out
        assert (folder / "whole" / NATIVE).read_bytes() == (folder / "broken" / NATIVE).read_bytes()


def test_a_restart_never_takes_an_earlier_runs_checkpoint():
    with scratch() as folder:
        (pathlib.Path(folder) / "checkpoint-7").mkdir()
        run = torchrun(2, *training_flags(folder), restarts=1)
        out, err = run.communicate(timeout=300)
        assert run.returncode != 0 and "expected no checkpoints of an earlier run" in err, err


def test_ctrl_c_saves_the_last_step():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        run = torchrun(2, *training_flags(folder, "--checkpointing_steps", 5, steps=100000))
        wait_for_checkpoint(run, folder, 5)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=300)
        assert "stopped by request after" in out, out + err
        assert (folder / NATIVE).exists()


if __name__ == "__main__":
    main(globals())
