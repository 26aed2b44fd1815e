#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what the programs are made of, as a CycloneDX bill of materials: the libraries that they load, as the loader
finds them, and what lies in the source.

scripts/release/sbom.py build/bin sbom.cdx.json
"""

import functools
import hashlib
import json
import pathlib
import re
import subprocess
import sys

from program_help import PROGRAMS

SOURCE = pathlib.Path(__file__).resolve().parents[2]
GCC = "GPL-3.0-or-later WITH GCC-exception-3.1"
LICENSES = {  # by Debian package; the archive holds each one's own text
    "libpng16-16": "libpng-2.0",
    "libjpeg62-turbo": "IJG AND BSD-3-Clause AND Zlib",
    "libwebp7": "BSD-3-Clause",
    "libexif12": "LGPL-2.1-or-later",
    "libutf8proc2": "MIT",
    "libtomlplusplus3": "MIT",
    "libfreetype6": "FTL OR GPL-2.0-or-later",
    "libbrotli1": "MIT",
    "libbz2-1.0": "bzip2-1.0.6",
    "zlib1g": "Zlib",
    "libstdc++6": GCC,
    "libgcc-s1": GCC,
    "libgomp1": GCC,
    "libc6": "LGPL-2.1-or-later",
    "nlohmann-json3-dev": "MIT",
    "libcli11-dev": "BSD-3-Clause",
    "libstb-dev": "MIT OR Unlicense",
}
HEADER_ONLY = ["nlohmann-json3-dev", "libcli11-dev", "libstb-dev"]
BUNDLED = [  # folder below examples/stable_diffusion/assets, what it is, license
    ("clip_tokenizer", "CLIP's byte pairs, of OpenAI", "MIT"),
    ("base", "A small model made from Noto Color Emoji", "Apache-2.0"),
    ("hypernetwork", "A small network made from Noto Color Emoji", "Apache-2.0"),
    ("measures", "Vectors of Noto Color Emoji", "Apache-2.0"),
    ("teddy_bear", "Pictures made from Noto Color Emoji", "Apache-2.0"),
]


def run(*command: object) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


@functools.cache
def loaded_libraries(programs: tuple[pathlib.Path, ...]) -> dict[str, pathlib.Path]:
    """By the name under which they are loaded."""
    found = {}
    for program in programs:
        for name, path in re.findall(r"^\s*(\S+) => (/\S+)", run("ldd", program), re.MULTILINE):
            found[name] = pathlib.Path(path).resolve()
    return dict(sorted(found.items()))


def debian_packages(paths: list[pathlib.Path]) -> dict[str, str]:
    """The packages that files are of. /lib is /usr/lib in today's Debian, and was not."""
    spellings = {spelling: str(path) for path in paths for spelling in (str(path), str(path).removeprefix("/usr"))}
    done = subprocess.run(["dpkg-query", "-S", *spellings], capture_output=True, text=True)
    lines = re.findall(r"^([^:,\s]+)(?::\S+)?: (/\S+)$", done.stdout, re.MULTILINE)
    return {spellings[path]: package for package, path in lines if path in spellings}


def debian_component(package: str) -> dict:
    version, architecture = run("dpkg-query", "-W", "-f=${Version} ${Architecture}", package).split()[:2]
    return component(package, version, LICENSES.get(package), f"pkg:deb/debian/{package}@{version}?arch={architecture}")


@functools.cache
def wheel_component(path: pathlib.Path) -> dict:
    """Of a library in a Python wheel: the part of the path behind site-packages names it."""
    packages = next(parent for parent in path.parents if parent.name == "site-packages")
    inside = path.relative_to(packages).as_posix()
    for record in packages.glob("*.dist-info/RECORD"):
        if f"\n{inside}," not in "\n" + record.read_text():
            continue
        name, version = record.parent.name.removesuffix(".dist-info").rsplit("-", 1)
        license = "BSD-3-Clause" if name == "torch" else "LicenseRef-NVIDIA-CUDA-EULA"
        return component(name, version, license, f"pkg:pypi/{name.replace('_', '-')}@{version}")
    raise SystemExit(f"'{path}': expected a file of an installed wheel, got none; hint: is the environment complete?")


def component(name: str, version: str, license: str | None, purl: str = "", **more: object) -> dict:
    result: dict = {"type": "library", "bom-ref": purl or f"{name}@{version}", "name": name, "version": version}
    if license:
        is_expression = " " in license
        result["licenses"] = [
            {"expression": license}
            if is_expression
            else {"license": {"name" if license.startswith("LicenseRef") else "id": license}}
        ]
    if purl:
        result["purl"] = purl
    return result | more


def bundled_component(folder: str, description: str, license: str, version: str) -> dict:
    digest = hashlib.sha256()
    for file in sorted((SOURCE / "examples/stable_diffusion/assets" / folder).rglob("*")):
        if file.is_file():
            digest.update(file.read_bytes())
    return component(
        folder,
        version,
        license,
        type="data",
        description=description,
        hashes=[{"alg": "SHA-256", "content": digest.hexdigest()}],
    )


def project_version() -> str:
    text = (SOURCE / "include/lightlora/config.h").read_text()
    return ".".join(re.findall(r"#define LIGHTLORA_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))


def bill(programs: list[pathlib.Path]) -> dict:
    version = project_version()
    components: dict[str, dict] = {}
    libraries = list(loaded_libraries(tuple(programs)).values())
    packages = debian_packages(libraries)
    for path in libraries:
        package = packages.get(str(path))
        found = debian_component(package) if package else wheel_component(path)
        components[found["bom-ref"]] = found
    for package in HEADER_ONLY:
        found = debian_component(package)
        components[found["bom-ref"]] = found
    for folder, description, license in BUNDLED:
        found = bundled_component(folder, description, license, version)
        components[found["bom-ref"]] = found
    whole = component("lightlora", version, "Apache-2.0", type="application")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": whole},
        "components": [components[key] for key in sorted(components)],
        "dependencies": [{"ref": whole["bom-ref"], "dependsOn": sorted(components)}],
    }


def main() -> None:
    folder, output = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    text = json.dumps(bill([folder / name for name in PROGRAMS]), indent=2)
    output.write_text(text + "\n")


if __name__ == "__main__":
    main()
