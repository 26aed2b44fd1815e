# SPDX-License-Identifier: Apache-2.0
"""What a program's --help says, as data: its flags come from the program's own definitions, so that the pages and
completions made from this cannot differ from them."""

import dataclasses
import functools
import pathlib
import re
import subprocess

PROGRAMS = [
    "text_to_image",
    "train_dreambooth_lora",
    "train_dreambooth_lora_sdxl",
    "textual_inversion",
    "train_hypernetwork",
    "personalize",
    "convert_lora",
    "before_after",
]
_FLAG = re.compile(r"  (?:(-\w), )?(--\w+)(?: (\S.*?))?(?:  +(\S.*))?$")
_PATHS = re.compile(
    r"(_dir|_path|_to|_from|_png|_file|config|input|output|base|lora|embeds|image|latents|_prompts|pictures)$"
)
_TYPES = {"INT", "UINT", "FLOAT", "TEXT"}


@dataclasses.dataclass
class Flag:
    name: str
    short: str
    value: str  # "TEXT", "INT INT", "a|b"; empty for a switch
    description: str
    group: str

    @property
    def choices(self) -> list[str]:
        return [] if not self.value or self.value.split()[0] in _TYPES else self.value.split("|")

    @property
    def takes_file(self) -> bool:
        return self.value == "TEXT" and bool(_PATHS.search(self.name))


@dataclasses.dataclass
class Help:
    name: str
    version: str
    purpose: str
    usage: str
    flags: list[Flag]
    notes: str
    example: str


def parse_help(text: str) -> Help:
    lines = text.splitlines()
    first = re.fullmatch(r"(\w+) \(lightlora\) (\S+): (.*)", lines[0])
    assert first and lines[2].startswith("Usage: "), lines[:3]
    name, version, purpose = first.groups()
    flags: list[Flag] = []
    group = notes = example = ""
    for line in lines[3:]:
        flag = _FLAG.fullmatch(line)
        if re.fullmatch(r"[A-Z][^-].*:", line) and not example:
            group = line[:-1]
            notes = notes if group != "Example" else notes
        elif group == "Example":
            example += line.strip() + "\n"
        elif flag:
            short, long, value, description = flag.groups()
            flags.append(Flag(long, short or "", value or "", description or "", group))
        elif line.startswith(" " * 36) and flags:
            flags[-1].description = f"{flags[-1].description} {line.strip()}".strip()
        elif line.strip():
            notes += line.strip() + "\n"
    return Help(name, version, purpose, lines[2].removeprefix("Usage: "), flags, notes.strip(), example.strip())


@functools.cache
def help_of(folder: pathlib.Path, program: str) -> Help:
    done = subprocess.run([folder / program, "--help"], capture_output=True, text=True, check=True)
    return parse_help(done.stdout)
