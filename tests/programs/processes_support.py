# SPDX-License-Identifier: Apache-2.0
"""Starts one of our programs as several processes, as a launcher does, and compares what they learn."""

import atexit
import os
import socket
import subprocess
import time

import support

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def clean_environment(**more):
    """Without a launcher's variables, and without GPUs: there may be fewer than processes."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def training_flags(output, *more, steps=3, batch=1):
    return [
        *support.subject_flags(output),
        "--device",
        "cpu",
        "--report_to",
        "none",
        "--train_batch_size",
        batch,
        "--max_train_steps",
        steps,
        *more,
    ]


class Processes:
    """One process for each rank; `arguments(rank)` are its flags, `before(rank)` what runs it."""

    def __init__(
        self, program, size, arguments, ranks=None, before=lambda rank: [], port=None, host="127.0.0.1", **environment
    ):
        port = port or free_port()
        self.size = size
        self.processes = {}
        for rank in range(size) if ranks is None else ranks:
            command = [*before(rank), str(support.BIN / program), *map(str, arguments(rank))]
            variables = clean_environment(
                RANK=str(rank),
                WORLD_SIZE=str(size),
                LOCAL_RANK=str(rank),
                LOCAL_WORLD_SIZE=str(size),
                MASTER_ADDR=host,
                MASTER_PORT=str(port),
                **environment,
            )
            self.processes[rank] = subprocess.Popen(
                command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        atexit.register(self.end)  # after a test that failed

    def wait(self, seconds=300):
        """{rank: (exit status, standard output, standard error)}; a process that hangs is an error."""
        end = time.monotonic() + seconds
        try:
            results = {}
            for rank, process in self.processes.items():
                out, err = process.communicate(timeout=max(0.1, end - time.monotonic()))
                results[rank] = (process.returncode, out, err)
            return results
        finally:
            self.end()

    def end(self):
        """Whatever they do."""
        for process in self.processes.values():
            process.kill()

    def wait_for_line(self, rank, text, seconds=300):
        """Reads a process's output until a line with the text comes."""
        end = time.monotonic() + seconds
        for line in self.processes[rank].stdout:
            if text in line:
                return line
            assert time.monotonic() < end, f"no '{text}' within {seconds} s"
        raise AssertionError(f"rank {rank} ended before '{text}': {self.processes[rank].stderr.read()}")


def run_ok(program, size, arguments, **options):
    """Standard output of rank 0 after all have succeeded; the others must be silent."""
    results = Processes(program, size, arguments, **options).wait()
    for rank, (status, out, err) in results.items():
        assert status == 0 and err == "", f"rank {rank}: {status}\n{out}\n{err}"
        assert rank == 0 or out == "", f"rank {rank}: expected no output, got {out!r}"
    return results[0][1]


def relative_difference(path, other):
    """Root of the summed squared differences of two files' values, over the size of the first. Counts of steps are none."""
    files = [support.read_latents(file) for file in (path, other)]
    a, b = ({name: value for name, value in values.items() if not name.endswith("steps")} for values in files)
    assert a.keys() == b.keys(), (a.keys(), b.keys())
    flat = [[value for name in sorted(values) for value in values[name][1]] for values in (a, b)]
    return support.distance(*flat) / support.distance(flat[0], [0] * len(flat[0]))
