# SPDX-License-Identifier: Apache-2.0
"""Several processes of which one fails, differs or never comes: each of the others says so in one clear line."""

import pathlib
import re
import shutil
import signal
import time

from processes_support import Processes, clean_environment, training_flags
from support import SUBJECT, main, run, scratch

TRAINER = "train_dreambooth_lora"


def one_error(results, status=1):
    """{rank: its one line}, after all have failed with this status."""
    lines = {}
    for rank, (code, out, err) in results.items():
        assert code == status and err.count("\n") == 1, f"rank {rank}: {code}\n{out}\n{err}"
        lines[rank] = err.strip()
    return lines


def test_flags_that_differ_are_named_at_the_start():
    with scratch() as folder:
        rates = {0: 0.001, 1: 0.002}
        group = Processes(TRAINER, 2, lambda rank: training_flags(folder, "--learning_rate", rates[rank]))
        for rank, line in one_error(group.wait(), status=2).items():
            assert (
                f"error: rank {rank}: --learning_rate: expected the same on all ranks, got '0.001' on rank 0 "
                "and '0.002' on rank 1" in line
            ), line


def test_pictures_that_differ_are_found_at_the_start():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        shutil.copytree(SUBJECT, folder / "pictures")
        next((folder / "pictures").glob("*.png")).unlink()
        flags = {0: [], 1: ["--instance_data_dir", folder / "pictures"]}
        group = Processes(TRAINER, 2, lambda rank: training_flags(folder / "out", *flags[rank]))
        for line in one_error(group.wait(), status=2).values():
            assert "the pictures to train on: expected the same on all ranks" in line, line


def test_a_missing_rank_is_named():
    with scratch() as folder:
        group = Processes(TRAINER, 3, lambda rank: training_flags(folder, "--rendezvous_timeout", 8), ranks=(0, 2))
        for line in one_error(group.wait()).values():
            assert "expected 3 processes within 8 s, got none of rank 1" in line, line


def test_a_wrong_address_is_named():
    with scratch() as folder:
        flags = training_flags(folder, "--rendezvous_timeout", 2)
        nobody = Processes(TRAINER, 2, lambda rank: flags, ranks=[1], host="no-such-machine.invalid")
        silence = Processes(TRAINER, 2, lambda rank: flags, ranks=[1])
        line = one_error(nobody.wait())[1]
        assert "MASTER_ADDR 'no-such-machine.invalid': expected the machine of rank 0" in line, line
        line = one_error(silence.wait())[1]
        assert "expected rank 0's store within 2 s, got no answer" in line, line


def test_environment_that_makes_no_sense():
    with scratch() as folder:
        for variables, expected in (
            ({"WORLD_SIZE": "2"}, "RANK: expected it beside WORLD_SIZE=2"),
            ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK: expected less than WORLD_SIZE=2, got 2"),
            ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE: expected a whole number"),
        ):
            done = run(TRAINER, *training_flags(folder), env=clean_environment(**variables))
            assert done.returncode == 2 and expected in done.stderr, done.stderr


def test_a_killed_rank_stops_the_others():
    """Killed in its steps, wherever it happens to be; rank 0 serves the store that the others meet at."""
    for victim in (1, 0):
        with scratch() as folder:
            group = Processes(TRAINER, 3, lambda rank: training_flags(folder, steps=100000))
            group.wait_for_line(0, "Steps 1/")
            group.processes[victim].kill()
            killed = time.monotonic()
            results = group.wait(60)
            seconds = time.monotonic() - killed
            print(f"rank {victim} killed: the others stopped after {seconds:.1f} s")
            assert seconds < 30, seconds
            results.pop(victim)
            for rank, line in one_error(results).items():
                # The victim alone: whoever has not noticed yet is not lost.
                expected = "lost rank 1 on [^,]*, which ended without a word" if victim else "rank 0"
                assert f"error: rank {rank}: " in line and re.search(expected, line), line


def test_a_stopped_rank_counts_as_lost():
    with scratch() as folder:
        group = Processes(TRAINER, 3, lambda rank: training_flags(folder, "--heartbeat_timeout", 4, steps=100000))
        group.wait_for_line(0, "Steps 1/")
        group.processes[2].send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        lines = []
        for rank in (0, 1):
            _, err = group.processes[rank].communicate(timeout=60)
            assert group.processes[rank].returncode == 1 and err.count("\n") == 1, err
            lines.append(err)
        seconds = time.monotonic() - stopped
        print(f"rank 2 stopped by a signal: the others ended after {seconds:.1f} s")
        assert seconds < 30, seconds
        assert all("rank 2 on" in line and "silent for 4 s" in line for line in lines), lines
        group.processes[2].kill()
        group.processes[2].communicate()


def test_a_rank_that_fails_says_why_to_all():
    """Rank 0 cannot write its next checkpoint, whose folder is gone: the others repeat its words."""
    with scratch() as folder:
        folder = pathlib.Path(folder)
        flags = training_flags(folder / "out", "--checkpointing_steps", 2, steps=100000)
        group = Processes(TRAINER, 2, lambda rank: flags)
        group.wait_for_line(0, "Steps 1/")
        (folder / "out").rename(folder / "elsewhere")
        lines = one_error(group.wait())
        assert f"rank 0: '{folder / 'out'}" in lines[0], lines
        assert "rank 1: rank 0 on" in lines[1] and lines[1].endswith("stopped: " + lines[0].split("rank 0: ")[1]), lines


if __name__ == "__main__":
    main(globals())
