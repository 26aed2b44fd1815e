# SPDX-License-Identifier: Apache-2.0
"""The installed lightlora.pc finds the headers and LibTorch, wherever the install folder was moved to."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BUILD = Path(os.environ["LIGHTLORA_BIN"]).parent


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def main():
    if shutil.which("pkg-config") is None:
        print("SKIPPED: pkg-config is not installed")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "first"), Path(folder, "moved here")
        run("cmake", "--install", BUILD, "--prefix", first)
        first.rename(second)
        environment = {**os.environ, "PKG_CONFIG_PATH": str(second / "share/pkgconfig")}
        config = (Path(os.environ["LIGHTLORA_SOURCE_DIR"]) / "include/lightlora/config.h").read_text()
        expected = ".".join(re.findall(r"#define LIGHTLORA_VERSION_[A-Z]+ (\d+)$", config, re.M))
        version = run("pkg-config", "--modversion", "lightlora", env=environment).strip()
        assert version == expected and version.count(".") == 2, (version, expected)
        libraries = run("pkg-config", "--libs-only-L", "lightlora", env=environment).split()
        torch = Path(libraries[0].removeprefix("-L"))
        assert list(torch.glob("libtorch_cpu.*")), torch
        flags = run("pkg-config", "--cflags", "lightlora", env=environment)
        source = Path(folder, "main.cpp")
        source.write_text("#include <lightlora/options.h>\nint main() {}\n")
        # Whether every header is found; to compile them takes a minute.
        rule = run("sh", "-c", f"{os.environ.get('CXX', 'c++')} -M {flags.strip()} '{source}'")
        found = [word for word in rule.replace("\\ ", " ").split("\n") if "include/lightlora/options.h" in word]
        assert found and str(second) in found[0], rule[:500]
    print("ok")


main()
