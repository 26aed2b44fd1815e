#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes an archive of the programs that runs wherever it is unpacked: with the libraries that they load, glibc aside,
manual pages, completions, and a bill of materials. Needs cmake, for the paths in the programs.

scripts/release/make_release.py build/bin [dist]      # dist/lightlora-0.1.0-linux-x86_64.tar.gz
scripts/release/make_release.py --folder build/bin DIR  # the folder alone
"""

import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile

import make_completion
import make_man
import sbom
from program_help import PROGRAMS, help_of

# glibc is the system's: its loader, its libraries and its data files belong together.
GLIBC = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|util|pthread|resolv|anl|nsl))\.so\.\d+")


def set_paths(program: pathlib.Path) -> None:
    """Where a program looks for libraries: beside itself, wherever that is. CMake writes over the path that it made."""
    text = sbom.run("readelf", "-d", program)
    old = re.search(r"R(?:UN)?PATH\)\s+Library r(?:un)?path: \[(.*)\]", text)
    if old is None:
        raise SystemExit(f"'{program}': expected a program with a RUNPATH, got none")
    script = f'file(RPATH_CHANGE FILE "{program}" OLD_RPATH "{old[1]}" NEW_RPATH "\\$ORIGIN/../lib")\n'
    file = program.with_suffix(".cmake")
    file.write_text(script)
    sbom.run("cmake", "-P", file)
    file.unlink()


def copy_licenses(folder: pathlib.Path, bill: dict) -> None:
    folder.mkdir(parents=True)
    for part in bill["components"]:
        text = pathlib.Path("/usr/share/doc") / part["name"] / "copyright"
        if text.exists():
            shutil.copyfile(text, folder / f"{part['name']}.txt")


def wheel_licenses(folder: pathlib.Path, libraries: dict[str, pathlib.Path]) -> None:
    for path in libraries.values():
        packages = next((parent for parent in path.parents if parent.name == "site-packages"), None)
        if packages is None:
            continue
        part = sbom.wheel_component(path)
        info = packages / f"{part['name']}-{part['version']}.dist-info"
        for text in sorted(info.rglob("LICENSE*")) + sorted(info.rglob("License*")):
            if text.is_file():
                shutil.copyfile(text, folder / f"{part['name']}-{text.name}")


def stage(programs: pathlib.Path, target: pathlib.Path) -> None:
    for name in ("bin", "lib", "share/lightlora"):
        (target / name).mkdir(parents=True)
    for name in PROGRAMS:
        shutil.copy2(programs / name, target / "bin" / name, follow_symlinks=False)
        if not (target / "bin" / name).is_symlink():
            set_paths(target / "bin" / name)
    libraries = sbom.loaded_libraries(tuple(programs / name for name in PROGRAMS))
    for name, path in libraries.items():
        if not GLIBC.fullmatch(name):
            shutil.copy2(path, target / "lib" / name)
    shutil.copytree(
        sbom.SOURCE / "examples/stable_diffusion/assets/clip_tokenizer", target / "share/lightlora/clip_tokenizer"
    )
    bill = sbom.bill([programs / name for name in PROGRAMS])
    (target / "sbom.cdx.json").write_text(json.dumps(bill, indent=2) + "\n")
    for name in ("LICENSE", "README.md", "SECURITY.md", "CHANGELOG.md"):
        shutil.copyfile(sbom.SOURCE / name, target / name)
    copy_licenses(target / "licenses", bill)
    wheel_licenses(target / "licenses", libraries)
    pages = target / "share/man/man1"
    pages.mkdir(parents=True)
    for name in PROGRAMS:
        (pages / f"{name}.1").write_text(make_man.page(help_of(programs, name)))
    make_completion.write_all(programs, target / "share")


def pack(folder: pathlib.Path, archive: pathlib.Path) -> None:
    """The same bytes for the same files: sorted, without times and owners."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = int(os.environ.get("SOURCE_DATE_EPOCH", 0))
        return entry

    tar = archive.with_suffix("")
    with tarfile.open(tar, "w") as file:
        for path in [folder, *sorted(folder.rglob("*"))]:
            file.add(path, path.relative_to(folder.parent), recursive=False, filter=plain)
    subprocess.run(["gzip", "-n", "-6", "-f", str(tar)], check=True)


def main() -> None:
    if sys.argv[1] == "--folder":
        stage(pathlib.Path(sys.argv[2]).resolve(), pathlib.Path(sys.argv[3]).resolve())
        return
    programs = pathlib.Path(sys.argv[1]).resolve()
    dist = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "dist").resolve()
    name = f"lightlora-{sbom.project_version()}-linux-{platform.machine()}"
    shutil.rmtree(dist / name, ignore_errors=True)
    dist.mkdir(parents=True, exist_ok=True)
    stage(programs, dist / name)
    pack(dist / name, dist / f"{name}.tar.gz")
    print(dist / f"{name}.tar.gz")


if __name__ == "__main__":
    main()
