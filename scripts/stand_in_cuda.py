#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lets the CUDA build of PyTorch, the only one on PyPI for Linux, be imported without CUDA's libraries.

    stand_in_cuda.py <folder torch/lib of an installed wheel>

`import torch` loads libtorch_cuda.so also where no GPU is, and the loader then asks for cuBLAS, cuDNN, NCCL and
so on: 2 GB of which a machine without a driver never runs an instruction. For each of them that is missing this
writes a stand-in of a few KB beside LibTorch: it has the names that LibTorch asks for, and each function returns
zero. LibTorch's search path has the real libraries first, so one that is installed later is used.
"""

import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# What `import torch` loads, and what belongs to CUDA. libcuda.so.1 is the driver's and asked for at run time only.
LOADED = ["libtorch_python.so", "libtorch_cuda.so", "libc10_cuda.so", "libtorch_nvshmem.so"]
CUDA = re.compile(r"(cu|nccl|nvshmem)")


def output_of(*command):
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def needed_libraries(library):
    return re.findall(r"\(NEEDED\).*\[(.+)\]", output_of("readelf", "-d", library))


def undefined_symbols(library):
    """(name, version or an empty text) of what a library expects from others."""
    for line in output_of("nm", "-D", "--undefined-only", "--with-symbol-versions", library).splitlines():
        name, _, version = line.split()[-1].partition("@")
        yield name, version


def defined_symbols(library):
    return {
        line.split()[-1].partition("@")[0] for line in output_of("nm", "-D", "--defined-only", library).splitlines()
    }


def version_homes(library):
    """{version: the library that defines it} of the symbols that a library expects from others."""
    homes, home = {}, ""
    for kind, name in re.findall(r"(File|Name): (\S+)", output_of("readelf", "-V", library)):
        if kind == "File":
            home = name
        elif home:
            homes[name] = home
    return homes


def write_library(path, names):
    """A shared library whose functions return zero; `names` are {version or an empty text: symbols}."""
    labels = [name for symbols in names.values() for name in sorted(symbols)]
    code = {"x86_64": "xor %eax, %eax\nret", "aarch64": "mov x0, #0\nret"}[platform.machine()]
    text = [
        ".text",
        *(f".globl {name}\n.type {name}, @function\n{name}:" for name in labels),
        code,
        '.section .note.GNU-stack,"",%progbits',
        "",
    ]
    script = [
        f"{version} {{ global: {'; '.join(sorted(symbols))}; }};" for version, symbols in names.items() if version
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, versions = Path(folder) / "stand_in.s", Path(folder) / "versions"
        source.write_text("\n".join(text))
        versions.write_text("\n".join(script))
        output_of(
            "cc",
            "-shared",
            "-nostdlib",
            f"-Wl,-soname,{path.name}",
            "-o",
            path,
            source,
            *([f"-Wl,--version-script={versions}"] if script else []),
        )


def main(folder):
    loaded = [folder / name for name in LOADED if (folder / name).exists()]
    real = [*folder.glob("*.so*"), *folder.parents[1].glob("nvidia/*/lib/lib*.so*")]
    there = {path.name for path in real}
    missing = sorted(
        {
            name
            for library in loaded
            for name in needed_libraries(library)
            if name not in there and CUDA.match(name.removeprefix("lib"))
        }
    )
    if not missing:
        return
    known = set().union(*map(defined_symbols, real))
    names = {library: {} for library in missing}
    for library in loaded:
        homes = version_homes(library)
        for name, version in undefined_symbols(library):
            if homes.get(version) in names:
                names[homes[version]].setdefault(version, set()).add(name)
            elif not version and name not in known and CUDA.match(name):
                names[missing[0]].setdefault("", set()).add(name)  # the loader searches all of them
    for library, symbols in names.items():
        write_library(folder / library, symbols)
    print(f"stand_in_cuda: wrote {', '.join(missing)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
