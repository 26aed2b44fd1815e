# SPDX-License-Identifier: Apache-2.0
"""Two machines, made of network namespaces with a cable between them: training together, and a cut cable."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time

from processes_support import Processes, run_ok, training_flags
from support import main, scratch
from support import run_ok as run_alone

TRAINER = "train_dreambooth_lora"
NATIVE = "lightlora.safetensors"
NAMES = ["upstairs", "downstairs"]
ADDRESSES = ["10.77.0.1", "10.77.0.2"]


class Host:
    """A machine with a name and a network of its own, as long as its one process sleeps."""

    def __init__(self, name):
        command = ["unshare", "--net", "--uts", "sh", "-c", f"hostname {name} && echo ready && exec sleep infinity"]
        self.process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if self.process.stdout.readline() != "ready\n":
            raise OSError(self.process.communicate()[1].strip())

    def enter(self):
        """What to put in front of a command that shall run there."""
        return ["nsenter", f"--target={self.process.pid}", "--net", "--uts"]

    def ip(self, *arguments):
        done = subprocess.run([*self.enter(), "ip", *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def end(self):
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def two_hosts():
    hosts = []
    try:
        for name in NAMES:
            hosts.append(Host(name))
        hosts[0].ip("link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(hosts[1].process.pid))
        for host, address in zip(hosts, ADDRESSES):
            host.ip("address", "add", f"{address}/24", "dev", "cable")
            host.ip("link", "set", "cable", "up")
            host.ip("link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            host.end()


def started_on(hosts):
    return {"before": lambda rank: hosts[rank].enter(), "host": ADDRESSES[0], "port": 29500}


def test_two_machines_learn_what_one_process_learns():
    with scratch() as folder, two_hosts() as hosts:
        folder = pathlib.Path(folder)
        for size in (1, 2):
            flags = training_flags(folder / str(size), "--batch_invariant", steps=5, batch=2 // size)
            text = (
                run_ok(TRAINER, 2, lambda rank: flags, **started_on(hosts)) if size == 2 else run_alone(TRAINER, *flags)
            )
            assert f"Num processes = {size}\n" in text, text
        assert (folder / "1" / NATIVE).read_bytes() == (folder / "2" / NATIVE).read_bytes()


def test_a_cut_cable_stops_both():
    """With the limits that are set unless a flag says otherwise."""
    with scratch() as folder, two_hosts() as hosts:
        group = Processes(TRAINER, 2, lambda rank: training_flags(folder, steps=100000), **started_on(hosts))
        group.wait_for_line(0, "Steps 1/")
        hosts[1].ip("link", "set", "cable", "down")
        cut = time.monotonic()
        results = group.wait(60)
        seconds = time.monotonic() - cut
        print(f"both stopped {seconds:.1f} s after the cut")
        assert seconds < 30, seconds
        expected = {
            0: "lost rank 1 on downstairs, which has been silent for 15 s",
            1: "lost the store at 10.77.0.1:29500, which rank 0 serves",
        }
        for rank, (status, out, err) in results.items():
            assert status == 1 and err.count("\n") == 1, f"rank {rank}: {status}\n{out}\n{err}"
            assert f"error: rank {rank}: {expected[rank]}" in err, err


def why_not():
    """Why this machine cannot play two, or nothing."""
    missing = [tool for tool in ("unshare", "nsenter", "ip", "hostname") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)}: not found; hint: apt-get install iproute2 util-linux hostname"
    try:
        with two_hosts():
            return None
    except OSError as error:
        user = "root" if os.geteuid() == 0 else "not root"
        return f"network namespaces are denied here ({user}): {error}"


if __name__ == "__main__":
    reason = why_not()
    if reason:
        print(f"SKIPPED: {pathlib.Path(__file__).name}: {reason}")
        sys.exit(77)
    main(globals())
