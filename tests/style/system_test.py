# SPDX-License-Identifier: Apache-2.0
"""What is not C++ stands in few files: the size of a port to another system is the length of one list.

system_test.py          all rules; exit status 1 with the offenders if one is broken
"""

import os
import re
import sys
from pathlib import Path

from rules import run

SOURCE = Path(os.environ["LIGHTLORA_SOURCE_DIR"])
CODE = ["include", "examples", "benchmarks"]
SUFFIXES = {".h", ".cpp"}

# Headers of POSIX and Linux, functions of theirs that C++'s headers may bring along, and Linux' files.
HEADERS = re.compile(
    r"^\s*#\s*include\s+<((?:sys|arpa|net|netinet|linux)/[^>]+"
    r"|(?:dirent|dlfcn|execinfo|fcntl|fnmatch|ftw|glob|grp|netdb|poll|pthread|pwd|sched|semaphore|signal|spawn|strings"
    r"|syslog|termios|unistd)\.h)>",
    re.M,
)
FUNCTIONS = re.compile(
    r"\b(?:mkdtemp|mkstemp|setenv|unsetenv|popen|localtime_r|gmtime_r|fopencookie|fileno|realpath)\s*\("
)
FILES = re.compile(r'"/(?:proc|sys|dev)/')

# Each with what a port has to write in it.
PLACES = {
    "include/lightlora/detail/formats/mapped_file.h": "files that are read: regular ones only, mapped into memory",
    "include/lightlora/file_io_atomic-inl.h": "files that are written: beside their place, locked, synced, renamed",
    "examples/stable_diffusion/support/cli/interrupt.cpp": "signals: Ctrl-C, pipes and terminals that are gone",
    "examples/stable_diffusion/support/cli/process.cpp": "this process and its machine: number, memory, name, program",
    "examples/stable_diffusion/support/cli/standard_output.cpp": "the terminal, and an output that nobody reads",
    "examples/stable_diffusion/support/cuda/libraries.cpp": "libraries that are loaded while the program runs",
    "examples/stable_diffusion/support/distributed/store.cpp": "names and addresses of machines",
    "examples/stable_diffusion/support/fake_cuda/dry_memory.cpp": "addresses without memory, for --dry_run",
    "examples/stable_diffusion/support/files/disk.cpp": "folders: locks, permissions, temporary ones",
    "examples/stable_diffusion/support/files/scratch_mapping.cpp": "memory that a file on the disk holds",
    "examples/stable_diffusion/support/images/file.cpp": "pictures that are read: regular files only",
    "benchmarks/common/measure.h": "the processor's name, in results",
}

# Libraries that one file wraps for all others.
WRAPPED = {"toml++/": "examples/stable_diffusion/support/cli/toml_text.h"}


def files():
    for folder in CODE:
        for path in sorted((SOURCE / folder).rglob("*")):
            if path.suffix in SUFFIXES:
                yield path.relative_to(SOURCE).as_posix(), path.read_text()


def system_calls():
    """Only these files know the system, each of them does, and the page for a port lists them."""
    used = set()
    for path, text in files():
        found = [*HEADERS.findall(text), *FUNCTIONS.findall(text), *FILES.findall(text)]
        if not found:
            continue
        used.add(path)
        if path not in PLACES:
            yield f"{path}: {', '.join(sorted(set(found)))}; hint: use a function of one of the files that PLACES lists"
    for path in sorted(set(PLACES) - used):
        yield f"{path}: is listed here and needs nothing of the system"
    guide = (SOURCE / "CONTRIBUTING.md").read_text()
    for path in PLACES:
        if f"`{path}`" not in guide:
            yield f"CONTRIBUTING.md: names {path} nowhere, which a port has to write"


def wrapped_libraries():
    """What has to be said before a library is included is said once."""
    for path, text in files():
        for library, wrapper in WRAPPED.items():
            if f"#include <{library}" in text and path != wrapper:
                yield f"{path}: includes <{library}...>; hint: include {wrapper}"


# Streams of CUDA beside the current one, fenced on both sides; the simulated device has one stream, so it sees no race.
STREAMS = re.compile(r"\b(?:getStreamFromPool|getStreamFromExternal|CUDAStreamGuard|cudaStreamCreate\w*)\b")
OF_STREAMS = "examples/stable_diffusion/support/cuda/part/graph.cpp"


def cuda_streams():
    """One file has a second stream, so that nothing else needs to be checked for races between streams."""
    users = [path for path, text in files() if STREAMS.search(text)]
    for path in users:
        if path != OF_STREAMS:
            yield f"{path}: takes another CUDA stream; hint: {OF_STREAMS} is the only one that fences it"
    if OF_STREAMS not in users:
        yield f"{OF_STREAMS}: is said to take a stream and takes none"


RULES = [system_calls, wrapped_libraries, cuda_streams]


if __name__ == "__main__":
    sys.exit(run(RULES, sys.argv[1:]))
