# SPDX-License-Identifier: Apache-2.0
"""The library, its tests, the small examples and layer_benchmark need LibTorch and Catch2 alone.

Configures with the application switched off where its packages cannot be found, looks at everything that would
be compiled, and compiles one header. Building all of it takes minutes: `make test PRESET=library` does it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(os.environ["LIGHTLORA_SOURCE_DIR"])
APPLICATION = SOURCE / "examples/stable_diffusion"
PRESENT = {
    "library_tests",
    "layer_benchmark",
    "rows_benchmark",
    "thread_tests",
    "docs_blocks",
    "lightlora_compiled",
    *(path.stem for path in (SOURCE / "examples").glob("*.cpp")),
}
# What the headers of the application's packages begin with.
HEADERS = [
    "CLI/",
    "nlohmann/",
    "toml++/",
    "stb/",
    "webp/",
    "libexif/",
    "freetype2/",
    "png.h",
    "jpeglib.h",
    "zlib.h",
    "ft2build.h",
    "utf8proc.h",
]


def packages():
    """The packages that the application asks CMake for."""
    names = re.findall(r"^find_package\((\w+)", (APPLICATION / "CMakeLists.txt").read_text(), re.M)
    assert "nlohmann_json" in names and len(names) > 5, f"expected the application's packages, got {names}"
    return names


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def configure(build):
    run(
        "cmake",
        "-S",
        SOURCE,
        "-B",
        build,
        "-G",
        os.environ["CMAKE_GENERATOR"],
        "-DLIGHTLORA_BUILD_STABLE_DIFFUSION=OFF",
        f"-DTorch_DIR={os.environ['Torch_DIR']}",
        f"-DCMAKE_CXX_COMPILER={os.environ['CXX']}",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        *(f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in packages()),
    )


def check_targets(build):
    targets = {word.rstrip(":").split("/")[-1] for word in run("cmake", "--build", build, "--target", "help").split()}
    assert PRESENT <= targets, f"expected {PRESENT}, got none of {PRESENT - targets}"
    programs = {path.stem for path in (APPLICATION / "programs").glob("*.cpp")}
    assert programs and not programs & targets, f"expected no program of the application, got {programs & targets}"


def check_tests(build):
    tests = set(re.findall(r"Test +#\d+: (\S+)", run("ctest", "--test-dir", build, "-N")))
    parts = {name.split(".")[0] for name in tests}
    assert {"library", "examples", "packaging", "docs", "benchmarks"} <= parts, parts
    assert not {"programs", "stable_diffusion"} & parts and "benchmarks.step" not in tests, tests


def included(path, folders, seen):
    """Follows the includes of a file within this project; yields (file, header) for all others."""
    if path in seen:
        return
    seen.add(path)
    for name in re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.M):
        inner = next((place / name for place in [path.parent, *folders] if (place / name).is_file()), None)
        if inner is None:
            yield path, name
        else:
            yield from included(inner.resolve(), folders, seen)


def check_sources(commands):
    seen = set()
    for entry in commands:
        if not Path(entry["file"]).exists():  # the documentation's blocks, which the build writes
            continue
        folders = [Path(folder) for folder in re.findall(r"-I(\S+)", entry["command"])]
        for folder in folders:
            assert APPLICATION not in [folder, *folder.parents], f"{entry['file']}: {folder} is the application's"
        for path, name in included(Path(entry["file"]), [f for f in folders if SOURCE in [f, *f.parents]], seen):
            assert not name.startswith(tuple(HEADERS)), (
                f"{path}: includes {name}, a header of the application's packages"
            )
    assert len(seen) > 100, f"expected the whole library and its tests, got {len(seen)} files"
    assert not [path for path in seen if APPLICATION in path.parents], "a file of the application is included"
    return len(seen)


def main():
    with tempfile.TemporaryDirectory(prefix="lightlora-") as folder:
        build = Path(folder) / "build"
        configure(build)
        check_targets(build)
        check_tests(build)
        commands = json.loads((build / "compile_commands.json").read_text())
        seen = check_sources(commands)
        small = next(entry for entry in commands if entry["file"].endswith("headers/lightlora_options_h.cpp"))
        done = subprocess.run(small["command"], shell=True, cwd=small["directory"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    print(f"{len(commands)} translation units of {seen} files need LibTorch and Catch2 alone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
