# SPDX-License-Identifier: Apache-2.0
"""What the comparisons share: the clock, a C++ program that takes samples on request, and statistics."""

import datetime
import pathlib
import statistics
import subprocess
import time


def now(threads):
    """Processor time with one thread (blind to other programs), wall time with several: as the C++ programs."""
    return time.process_time() if threads == 1 else time.perf_counter()


class Server:
    """A benchmark program in its --serve mode: one line in, one line of figures out."""

    def __init__(self, *command):
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line):
        print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"'{self.process.args[0]}': expected an answer to '{line}', got none")
        return [float(word) for word in answer.split()]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def median(values):
    return statistics.median(values)


def spread(values):
    """The distance between the quartiles."""
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4)
    return third - first


def geometric_mean(values):
    return statistics.geometric_mean(values)


def machine(threads):
    import diffusers
    import peft
    import torch

    processor = "unknown processor"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.split(": ", 1)[1]
            break
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "processor": processor,
        "threads": threads,
        "clock": "processor time" if threads == 1 else "wall time",
        "torch": torch.__version__,
        "peft": peft.__version__,
        "diffusers": diffusers.__version__,
    }
