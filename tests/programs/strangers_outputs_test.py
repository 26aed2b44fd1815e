# SPDX-License-Identifier: Apache-2.0
"""Outputs that cannot be written are said before the work; pipes, terminals, disks and memory that end are one line."""

import os
import pathlib
import pty
import resource
import shutil
import signal
import stat
import subprocess
import time

from strangers_adapters import native
from strangers_support import (
    Case,
    baseline,
    drawing,
    entries,
    run_measured,
    run_tests_and_cases,
    training,
    what_is_wrong_with_line,
)
from support import BIN, MODEL, SUBJECT

RESULTS = ("lightlora.safetensors", "pytorch_lora_weights.safetensors")


def draws(*more, output=None):
    """Only the options: what is wrong is found before the model is read."""
    return lambda folder, out: [*drawing(MODEL), "--output", (output or (lambda f: out))(folder), *more]


def converts(output, to="kohya"):
    return lambda folder: ["--input", native(folder), "--to", to, "--output", output(folder)]


def made(path, kind):
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("mine")
    return path


def trains(*more, before=None, program="train_dreambooth_lora"):
    def arguments(folder, out):
        if before:
            out.mkdir()
            before(out)
        return [*training(program, MODEL, SUBJECT, out), *more]

    return arguments


def called(name):
    """A word that no program would read from the file."""
    return lambda folder, out: [*training("textual_inversion", MODEL, SUBJECT, out), "--placeholder_token=" + name]


def among_its_pictures(program):
    """Its contact sheet would be one of the next run's pictures."""

    def arguments(folder, out):
        shutil.copytree(SUBJECT, folder / "data")
        return training(program, MODEL, folder / "data", folder / "data/../data")

    return arguments


def case(name, make, *says, program="text_to_image", **more):
    return Case(name, program, make, says, **more)


LONG = "x" * 300
TABLE = [
    case("a folder that is missing", draws(output=lambda f: f / "none/x.png"), "none/x.png"),
    case("a folder of that name", draws(output=lambda f: made(f / "x.png", "folder")), "x.png"),
    case("a pipe of that name", draws(output=lambda f: made(f / "x.png", "pipe")), "x.png"),
    case("a file in place of a folder", draws(output=lambda f: made(f / "file", "file") / "x.png"), "x.png"),
    case("a name that is too long", draws(output=lambda f: f / LONG), "xxx"),
    case("a name with a line feed in a missing folder", draws(output=lambda f: f / "a\nb/x.png"), "a\\nb"),
    case(
        "the second of several is a folder",
        draws("--num_images_per_prompt", 2, output=lambda f: made(f / "x-1.png", "folder").parent / "x.png"),
        "x-1.png",
    ),
    case(
        "one name for pictures and latents",
        lambda f, out: [*drawing(MODEL), "--output", out, "--save_latents", out],
        "--save_latents",
    ),
    case(
        "one name in two spellings",
        lambda f, out: [*drawing(MODEL), "--output", f / "y.png", "--save_latents", f / "../in/./y.png"],
        "--save_latents",
    ),
    case(
        "one name for a picture and the sheet",
        draws("--grid", "--num_images_per_prompt", 2, "--save_latents", "in/x-grid.png", output=lambda f: f / "x.png"),
        "x-grid.png",
    ),
    case("latents in a folder that is missing", draws("--save_latents", "none/l"), "none/l"),
    case("a model in a folder that is missing", draws("--merge_to", "none/m.safetensors"), "none/m.safetensors"),
    case(
        "more places than a sheet has",
        draws("--xy", "seed=" + ",".join(map(str, range(200)))),
        "--xy",
        "--allow_large",
        status=2,
    ),
    case(
        "pictures of 100,000 pixels on a side",
        draws("--height", 100_000, "--width", 100_000),
        "--allow_large",
        status=2,
    ),
    case("a thousand million pictures", draws("--num_images_per_prompt", 10**9), "--allow_large", status=2),
    case(
        "a batch of 1000",
        draws("--num_images_per_prompt", 1000, "--batch_size", 1000),
        "--batch_size",
        "--allow_large",
        status=2,
    ),
    case("a prompt of a megabyte", draws("--negative_prompt", "a" * 100_000), "--allow_large", status=2),
    *[
        case(f"{flag} {value}", trains(flag, value), flag, "--allow_large", program="train_dreambooth_lora", status=2)
        for flag, value in {
            "--resolution": 100_000,
            "--train_batch_size": 2**32,
            "--gradient_accumulation_steps": 2**32,
            "--num_validation_images": 10**6,
            "--num_class_images": 10**9,
            "--sample_batch_size": 10**9,
            "--instance_prompt": "a" * 100_000,
            "--validation_prompt": "a" * 100_000,
        }.items()
    ],
    case(
        "convert_lora into a folder that is missing", converts(lambda f: f / "none/x"), "none/x", program="convert_lora"
    ),
    case("convert_lora to a folder", converts(lambda f: made(f / "x", "folder")), "in/x", program="convert_lora"),
    case(
        "a PEFT folder that is a file",
        converts(lambda f: made(f / "x", "file"), "peft"),
        "in/x",
        program="convert_lora",
    ),
    case(
        "a PEFT folder below a file",
        converts(lambda f: made(f / "x", "file") / "y", "peft"),
        "in/x/y",
        program="convert_lora",
    ),
    *[
        case(
            f"training where {name} is a folder",
            trains(before=lambda out, name=name: made(out / name, "folder")),
            name,
            program="train_dreambooth_lora",
        )
        for name in (*RESULTS, "metrics.jsonl", "config.toml", "README.md")
    ],
    case(
        "training into a file",
        lambda f, out: training("train_dreambooth_lora", MODEL, SUBJECT, made(f / "x", "file")),
        "in/x",
        program="train_dreambooth_lora",
    ),
    *[
        case(
            f"{program} among its pictures",
            among_its_pictures(program),
            "in/data",
            "--output_dir",
            program=program,
            status=2,
        )
        for program in ("train_dreambooth_lora", "textual_inversion")
    ],
    *[
        case(f"a word called {name[:9]!r}", called(name), "--placeholder_token", program="textual_inversion", status=2)
        for name in ("", "  ", "a\x1b[2J", "a\nb", "\x7f", "\udcff", "a" * 257)
    ],
    case(
        "training below a file",
        lambda f, out: training("train_dreambooth_lora", MODEL, SUBJECT, made(f / "x", "file") / "y"),
        "in/x",
        program="train_dreambooth_lora",
    ),
    case(
        "a word where a folder is",
        trains(before=lambda out: made(out / "learned_embeds.safetensors", "folder"), program="textual_inversion"),
        "learned_embeds",
        program="textual_inversion",
    ),
    case(
        "a full disk while a LoRA is written",
        converts(lambda f: f / "x"),
        "in/x",
        program="convert_lora",
        options={"limits": {resource.RLIMIT_FSIZE: 1000}},
    ),
    case(
        "a full disk is said before the model is read",
        draws(output=lambda f: f / "x.png"),
        "in/x.png",
        "4096 bytes of free space",
        options={"limits": {resource.RLIMIT_FSIZE: 1000}},
    ),
    case(
        "pictures that no disk holds are said before the model is read",
        draws("--allow_large", "--num_images_per_prompt", 10**15, output=lambda f: f / "x.png"),
        "of free space",
    ),
    case(
        "a full disk while training",
        trains("--checkpointing_steps", 1),
        "out",
        program="train_dreambooth_lora",
        options={"limits": {resource.RLIMIT_FSIZE: 20_000}},
        seconds=120,
    ),
]


def start(arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(BIN / "train_dreambooth_lora"), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, **options)


def steps(folder, count):
    return [*training("train_dreambooth_lora", MODEL, SUBJECT, folder), "--max_train_steps", count]


def after_first_line(read):
    while not read(1).endswith(b"\n"):
        pass


def test_training_outlives_the_reader_of_its_output(folder):
    process = start(steps(folder / "out", 3), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    after_first_line(process.stdout.read)
    process.stdout.close()  # as | head -1
    assert process.wait(120) == 0, process.stderr.read()
    assert process.stderr.read() == b""
    assert all((folder / "out" / name).is_file() for name in RESULTS)


def test_training_outlives_its_terminal(folder):
    parent, child = pty.openpty()
    process = start(steps(folder / "out", 3), stdout=child, stderr=child, start_new_session=True)
    os.close(child)
    after_first_line(lambda count: os.read(parent, count))
    os.close(parent)
    os.kill(process.pid, signal.SIGHUP)
    assert process.wait(120) == 0
    assert all((folder / "out" / name).is_file() for name in RESULTS)


def test_a_full_standard_output_is_a_failure(folder):
    for arguments in (["--help"], ["--version"], ["--input", native(folder), "--inspect"]):
        with open("/dev/full", "wb") as full:
            ended = run_measured("convert_lora", arguments, 60, stdout=full)
        assert ended.status == 1 and what_is_wrong_with_line(ended.err, ["standard output"]) == "", ended
    with open("/dev/full", "wb") as full:
        ended = run_measured("train_dreambooth_lora", steps(folder / "out", 1), 120, stdout=full)
    assert ended.status == 1 and what_is_wrong_with_line(ended.err, ["standard output"]) == "", ended
    assert all((folder / "out" / name).is_file() for name in RESULTS)


def test_a_closed_pipe_is_the_readers_own_wish(folder):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        ended = run_measured("convert_lora", ["--input", native(folder), "--inspect"], 60, stdout=closed)
    assert (ended.status, ended.err) == (0, b""), ended


def test_too_little_memory_is_one_line(folder):
    room = int((baseline("text_to_image") + 4000) * 2**20)  # address space, of which LibTorch takes most
    flags = [*drawing(MODEL), "--height", 4096, "--width", 4096, "--output", folder / "x.png"]
    ended = run_measured("text_to_image", flags, 120, limits={resource.RLIMIT_AS: room})
    assert ended.status == 1 and what_is_wrong_with_line(ended.err, ["memory"]) == "", ended
    assert not (folder / "x.png").exists()


def test_what_killed_runs_leave_is_cleared(folder):
    left = folder / ".lightlora-999999999-0.tmp"  # of a process that cannot be
    left.write_text("half a file")
    own = folder / ".lightlora-notes.tmp"
    own.write_text("mine")
    ended = run_measured("convert_lora", ["--input", native(folder), "--to", "kohya", "--output", folder / "x"], 60)
    assert ended.status == 0, ended
    assert not left.exists() and own.read_text() == "mine"


def test_a_link_stays_a_link_and_a_file_keeps_its_mode(folder):
    real, link = folder / "real", folder / "link"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to("real")
    ended = run_measured("convert_lora", ["--input", native(folder), "--to", "kohya", "--output", link], 60)
    assert ended.status == 0, ended
    assert link.is_symlink() and real.stat().st_size > 100 and stat.S_IMODE(real.stat().st_mode) == 0o640
    hanging = folder / "hanging"
    hanging.symlink_to("new")
    ended = run_measured("convert_lora", ["--input", native(folder), "--to", "kohya", "--output", hanging], 60)
    assert ended.status == 0 and hanging.is_symlink() and (folder / "new").is_file(), ended


def test_a_users_file_that_is_called_as_a_checkpoint_stays(folder):
    out = folder / "out"
    out.mkdir()
    (out / "checkpoint-1").write_text("mine")
    (out / "checkpoint-7").mkdir()
    (out / "checkpoint-7/notes").write_text("mine")
    (out / "contact_sheet.png.old").write_text("mine")
    flags = [*steps(out, 1), "--checkpointing_steps", 1, "--overwrite_output_dir"]
    ended = run_measured("train_dreambooth_lora", flags, 120)
    assert ended.status == 0 and "checkpoint-1" in ended.out, ended
    for name in ("checkpoint-1", "checkpoint-7/notes", "contact_sheet.png.old"):
        assert (out / name).read_text() == "mine", name


def test_files_of_other_runs_in_a_shared_folder_of_logs_stay(folder):
    logs, other = folder / "logs", folder / "logs/events.out.tfevents.1.other"
    logs.mkdir()
    other.write_text("of another run")
    flags = [*steps(folder / "out", 1), "--report_to", "tensorboard", "--overwrite_output_dir", "--logging_dir"]
    for where in ("../logs", logs, "logs"):
        ended = run_measured("train_dreambooth_lora", [*flags, where], 120)
        assert ended.status == 0 and other.read_text() == "of another run", ended
    ended = run_measured("train_dreambooth_lora", [*flags, "logs"], 120)
    assert ended.status == 0 and len(list((folder / "out/logs").iterdir())) == 1, ended


def test_a_killed_training_leaves_nothing_that_a_later_one_does_not_clear(folder):
    process = start([*steps(folder / "out", 100), "--checkpointing_steps", 1], stdout=subprocess.DEVNULL)
    while not list((folder / "out").glob("checkpoint-*")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    (folder / "out/.lightlora-999999999-3.tmp").write_text("half a file")
    flags = [*steps(folder / "out", 1), "--resume_from_checkpoint", "latest"]
    ended = run_measured("train_dreambooth_lora", flags, 120)
    assert ended.status == 0, ended
    left = [path for path in entries(folder / "out") if pathlib.Path(path).name.startswith(".")]
    assert not left, left


run_tests_and_cases(globals(), TABLE)
