#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a manual page for each program, from its --help.

scripts/release/make_man.py build/bin build/share/man/man1
"""

import pathlib
import sys

from program_help import PROGRAMS, Help, help_of


def roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def page(program: Help) -> str:
    out = [
        f'.TH {program.name.upper()} 1 "" "lightlora {program.version}" "lightlora"',
        ".SH NAME",
        f"{program.name} \\- {roff(program.purpose.rstrip('.'))}",
        ".SH SYNOPSIS",
        roff(program.usage),
    ]
    group = None
    for flag in program.flags:
        if flag.group != group:
            group = flag.group
            out.append(f".SH {group.upper()}")
        names = ", ".join(name for name in (flag.short, flag.name) if name)
        value = f" \\fI{roff(flag.value)}\\fR" if flag.value else ""
        out += [".TP", f"\\fB{roff(names)}\\fR{value}", roff(flag.description) or "\\&"]
    out += [".SH NOTES", roff(program.notes), ".SH EXIT STATUS"]
    out += ["0 on success, 1 on failure, with one line on standard error, 2 for flags that cannot be read."]
    out += [".SH EXAMPLE", ".nf", *(roff(line) for line in program.example.splitlines()), ".fi"]
    return "\n".join(out) + "\n"


def main() -> None:
    programs, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        (folder / f"{name}.1").write_text(page(help_of(programs, name)))


if __name__ == "__main__":
    main()
