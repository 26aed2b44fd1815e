# SPDX-License-Identifier: Apache-2.0
"""Runs programs on files from strangers: one table for each kind of file, one promise for all of them.

The promise: exit status 1 and one line on standard error, which names the file; no signal, a limit on time, at
most 300 MB more memory than an honest run of the same program, and nothing written but what the user named.
"""

import dataclasses
import os
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

from support import BIN, MODEL, SUBJECT

MOST_MEGABYTES = 300
MOST_SECONDS = 30


@dataclasses.dataclass
class Case:
    """One hostile input. `make` writes it into a folder, and returns the program's arguments."""

    name: str
    program: str
    make: Callable
    says: tuple = ()  # each of these is in the one line
    status: int | tuple = 1  # one of these
    seconds: int = MOST_SECONDS
    megabytes: int = MOST_MEGABYTES
    options: dict = dataclasses.field(default_factory=dict)
    missing: Callable = lambda out: ""  # what the output lacks, if the case is to succeed


@dataclasses.dataclass
class Ended:
    status: int
    out: str
    err: bytes
    megabytes: float
    late: bool


def run_measured(program, arguments, seconds, cwd=None, limits=None, env=None, stdout=None):
    """Runs a program to its end or for so many seconds; its peak memory is measured by the kernel."""

    def prepare():
        for what, most in (limits or {}).items():
            resource.setrlimit(what, (most, most))

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [str(BIN / program), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=stdout or out,
            stderr=err,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            preexec_fn=prepare if limits else None,
        )
        late = threading.Event()

        def stop():
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        text = out.read().decode(errors="surrogateescape")
        return Ended(process.returncode, text, err.read(), usage.ru_maxrss / 1024, late.is_set())


BASELINES = {}


def baseline(program):
    """Memory of an honest run, in MB."""
    if program not in BASELINES:
        with tempfile.TemporaryDirectory(prefix="lightlora-") as folder:
            ended = run_measured(program, honest_arguments(program, pathlib.Path(folder)), seconds=300)
        assert ended.status == 0, (program, ended)
        BASELINES[program] = ended.megabytes
    return BASELINES[program]


def honest_arguments(program, folder):
    if program == "text_to_image":
        return [*drawing(MODEL), "--output", folder / "honest.png"]
    if program in ("train_dreambooth_lora", "textual_inversion"):
        return training(program, MODEL, SUBJECT, folder / "honest")
    return ["--version"]


def drawing(model):
    flags = ["--pretrained_model_name_or_path", model, "--device", "cpu", "--prompt", "a cat", "--seed", 1]
    return [*flags, "--num_inference_steps", 1]


def training(program, model, pictures, output):
    inverts = program == "textual_inversion"
    flags = ["--pretrained_model_name_or_path", model, "--output_dir", output, "--device", "cpu"]
    flags += ["--train_data_dir" if inverts else "--instance_data_dir", pictures, "--max_train_steps", 1]
    if inverts:
        return [*flags, "--placeholder_token", "<x>", "--initializer_token", "bear", "--train_batch_size", 1]
    return [*flags, "--instance_prompt", "a sks bear", "--train_batch_size", 1]


def entries(folder):
    """Every path below a folder, with sizes of files: what a program wrote shows as a difference."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = pathlib.Path(parent, name)
            status = path.lstat()
            found[str(path.relative_to(folder))] = (status.st_mode, status.st_size if name in files else 0)
    return found


def check(case):
    """Runs one case; returns what was wrong, or an empty text."""
    with tempfile.TemporaryDirectory(prefix="lightlora-") as parent:
        folder = pathlib.Path(parent, "in")
        folder.mkdir()
        allowed = pathlib.Path(parent, "out")  # the only place that a case names for output
        arguments = case.make(folder, allowed) if case.make.__code__.co_argcount == 2 else case.make(folder)

        def elsewhere():
            return {path: what for path, what in entries(parent).items() if path != "out" and path[:4] != "out/"}

        before = elsewhere()
        ended = run_measured(case.program, arguments, case.seconds, cwd=parent, **case.options)
        after = elsewhere()
        if ended.late:
            return f"still ran after {case.seconds} s, with {ended.megabytes:.0f} MB"
        if ended.status not in (case.status if isinstance(case.status, tuple) else (case.status,)):
            return f"ended with {ended.status}: {ended.err[:300]!r} {ended.out[-200:]!r}"
        more = ended.megabytes - baseline(case.program)
        if more > case.megabytes:
            return f"took {more:.0f} MB more than an honest run"
        if after != before:
            return f"wrote elsewhere: {sorted(set(after) ^ set(before)) or 'a file has changed'}"
        wrong = what_is_wrong_with_output(ended.out)
        return wrong or (what_is_wrong_with_line(ended.err, case.says) if ended.status else case.missing(allowed))


def what_is_wrong_with_output(text):
    """Lines for people or programs: nothing that a terminal would obey, and no bytes that are no UTF-8."""
    bad = [c for c in text if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or 0xDC80 <= ord(c) <= 0xDCFF)]
    return f"{bad[:5]!r} on standard output: {text[:500]!r}" if bad else ""


def what_is_wrong_with_line(error, says):
    try:
        text = error.decode()
    except UnicodeDecodeError:
        return f"no UTF-8: {error!r}"
    if not text.endswith("\n") or text.count("\n") != 1:
        return f"more or less than one line: {text[:500]!r}"
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text[:-1]):
        return f"control characters: {text[:500]!r}"
    if len(text) > 2000:
        return f"a line of {len(text)} characters"
    for bare in ("stoul", "map::at", "json.exception", "basic_string", "vector::", "_M_", "INTERNAL ASSERT"):
        if bare in text:
            return f"bare words of a library: {text!r}"
    missing = [part for part in says if part not in text]
    return f"expected {missing} in {text!r}" if missing else ""


def run_cases(cases):
    """Runs a table and ends the process: with status 1 if a case failed, after all have run."""
    only = sys.argv[1:]
    cases = [case for case in cases if not only or any(part in case.name for part in only)]
    failures = 0
    for case in cases:
        wrong = check(case)
        print(f"{'FAILED' if wrong else 'ok'}: {case.name}{': ' + wrong if wrong else ''}", flush=True)
        failures += bool(wrong)
    print(f"{len(cases) - failures} passed, {failures} failed")
    sys.exit(1 if failures else 0)


def run_tests_and_cases(names, cases):
    """Runs the functions test_... of a module's names, each with a folder of its own, and then a table."""
    for name, test in list(names.items()):
        if name.startswith("test_"):
            with tempfile.TemporaryDirectory(prefix="lightlora-") as place:
                test(pathlib.Path(place))
            print("ok:", name, flush=True)
    run_cases(cases)


# Files.


def fifo(path):
    os.mkfifo(path)
    return path


def zeros(path):
    """A link to a file without end."""
    path.symlink_to("/dev/zero")
    return path


def safetensors(path, tensors, metadata=None):
    """{name: (dtype, shape, bytes)} as a file."""
    parts, data = [], b""
    if metadata:
        parts.append('"__metadata__":' + json_text(metadata))
    for name, (dtype, shape, values) in tensors.items():
        entry = f'{{"dtype":"{dtype}","shape":{list(shape)},"data_offsets":[{len(data)},{len(data) + len(values)}]}}'
        parts.append(json_text(name) + ":" + entry)
        data += values
    header = ("{" + ",".join(parts) + "}").encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def json_text(value):
    import json

    return json.dumps(value)


def floats(*shape, value=0.01):
    count = 1
    for size in shape:
        count *= size
    return ("F32", shape, struct.pack("<f", value) * count)


def model_folder(folder, changes=None):
    """The bundled model, its weights as links and its texts as files of its own."""
    target = pathlib.Path(folder, "model")
    for path in MODEL.rglob("*"):
        to = target / path.relative_to(MODEL)
        if path.is_dir():
            to.mkdir(parents=True, exist_ok=True)
        elif path.suffix == ".safetensors":
            to.parent.mkdir(parents=True, exist_ok=True)
            to.symlink_to(path)
        else:
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
    for name, change in (changes or {}).items():
        path = target / name
        if callable(change):
            path.unlink(missing_ok=True)
            change(path)
        else:
            path.write_text(change)
    return target


def name_of(number):
    return signal.Signals(-number).name if number < 0 else str(number)
