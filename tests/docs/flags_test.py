# SPDX-License-Identifier: Apache-2.0
"""Every flag that a shell block of the documentation gives to one of our programs exists in its --help."""

import os
import re
import shlex
import subprocess
from pathlib import Path

SOURCE = Path(os.environ["LIGHTLORA_SOURCE_DIR"])
BIN = Path(os.environ["LIGHTLORA_BIN"])


def commands(text):
    """(program, words) of each call of build/bin/NAME in the shell blocks of a page."""
    for block in re.findall(r"^```(?:sh|bash)\s*$(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for i, word in enumerate(words):
                if word.startswith("build/bin/"):
                    yield word.removeprefix("build/bin/"), words[i + 1 :]


def help_of(program):
    done = subprocess.run([BIN / program, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, f"'{program} --help': expected exit 0, got {done.returncode}: {done.stderr}"
    return set(re.findall(r"--[A-Za-z0-9][A-Za-z0-9_-]*", done.stdout))


def main():
    known, checked = {}, 0
    pages = [
        SOURCE / "README.md",
        *sorted((SOURCE / "docs").glob("*.md")),
        *sorted((SOURCE / "examples").rglob("README.md")),
    ]
    for page in pages:
        for program, words in commands(page.read_text()):
            known.setdefault(program, {f.replace("-", "_") for f in help_of(program)})
            for word in words:
                flag = word.split("=")[0]
                if flag.startswith("--"):
                    assert flag.replace("-", "_") in known[program], f"'{page.name}': {program} has no {flag}"
                    checked += 1
    assert checked > 0, "expected flags in the documentation, got none"
    print(f"{checked} flags of {len(known)} programs exist")


main()
