#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes completions of every program's flags and their choices, for bash and zsh, from its --help.

scripts/release/make_completion.py build/bin build/share
"""

import pathlib
import sys

from program_help import PROGRAMS, Flag, Help, help_of


def bash(program: Help) -> str:
    cases = []
    for flag in program.flags:
        if flag.choices:
            cases.append(f"    {names(flag)}) COMPREPLY=($(compgen -W '{' '.join(flag.choices)}' -- \"$word\")) ;;")
        elif flag.takes_file:
            cases.append(
                f'    {names(flag)}) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$word")) ;;'
            )
        elif flag.value:
            cases.append(f"    {names(flag)}) ;;")
    flags = " ".join(flag.name for flag in program.flags)
    lines = "\n".join(cases)
    return f"""# bash completion of {program.name} {program.version}
_lightlora_{program.name}() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}}
  COMPREPLY=()
  case $before in
{lines}
    *) COMPREPLY=($(compgen -W '{flags}' -- "$word")) ;;
  esac
}}
complete -F _lightlora_{program.name} {program.name}
"""


def names(flag: Flag) -> str:
    both = [flag.name, "--" + flag.name[2:].replace("_", "-")]
    return "|".join(dict.fromkeys(both))


def zsh_text(text: str) -> str:
    for plain in "\\[]:'":
        text = text.replace(plain, "'\\''" if plain == "'" else "\\" + plain)
    return text


def zsh(program: Help) -> str:
    out = [f"#compdef {program.name}", f"# zsh completion of {program.name} {program.version}", "_arguments \\"]
    for flag in program.flags:
        repeats = "*" if "repeat" in flag.description else ""
        action = ""
        if flag.choices:
            action = f":value:({' '.join(flag.choices)})"
        elif flag.takes_file:
            action = ":file:_files"
        elif flag.value:
            action = ":value:" * len(flag.value.split())
        out.append(f"  '{repeats}{flag.name}[{zsh_text(flag.description)}]{action}' \\")
    return "\n".join(out).rstrip(" \\") + "\n"


def write_all(programs: pathlib.Path, share: pathlib.Path) -> None:
    for folder, write, prefix in [("bash-completion/completions", bash, ""), ("zsh/site-functions", zsh, "_")]:
        (share / folder).mkdir(parents=True, exist_ok=True)
        for name in PROGRAMS:
            (share / folder / (prefix + name)).write_text(write(help_of(programs, name)))


def main() -> None:
    write_all(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))


if __name__ == "__main__":
    main()
