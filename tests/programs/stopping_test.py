# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while drawing: every picture that was drawn is there, and the exit status tells of the stop."""

import pathlib
import signal
import subprocess
import time

from support import BIN, MODEL, main, scratch

IEND = b"IEND\xaeB`\x82"


def stop(folder, pattern, wanted, *arguments):
    """Starts a long run, sends SIGINT once so many files are there, and returns (status, output, errors)."""
    command = [BIN / "text_to_image", "--pretrained_model_name_or_path", MODEL, "--prompt", "a cat", "--seed", 1]
    command += ["--device", "cpu", "--num_inference_steps", 4, "--output", folder / "x.png", *arguments]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )
    start = time.time()
    while len(list(folder.glob(pattern))) < wanted and process.poll() is None and time.time() - start < 300:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def test_pictures_are_written_as_they_are_done():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        status, output, errors = stop(
            folder, "x-*.png", 2, "--num_images_per_prompt", 1000, "--batch_size", 1, "--grid"
        )
        assert status == 128 + signal.SIGINT and errors.count("\n") == 1, (status, errors)
        count = output.count("picture: ")
        assert 2 <= count < 1000 and f"stopped by request after {count} of 1000 pictures" in output, output
        for index in range(count):
            assert (folder / f"x-{index}.png").read_bytes().endswith(IEND), index
        assert not (folder / f"x-{count}.png").exists()
        assert (folder / "x-grid.png").read_bytes().endswith(IEND)
        assert not [path for path in folder.iterdir() if path.suffix != ".png"]


def test_a_sheet_has_the_rows_that_were_drawn():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        steps = ",".join(str(n) for n in range(1, 50))
        status, output, errors = stop(folder, "x.png", 1, "--xy", "seed=1,2", "--xy", f"steps={steps}")
        assert status == 128 + signal.SIGINT and "of 98 pictures" in output, (status, output, errors)
        assert (folder / "x.png").read_bytes().endswith(IEND)


main(globals())
