# SPDX-License-Identifier: Apache-2.0
"""The recipes of other package managers: Conan makes a package that a program can be built with, and the vcpkg port
says what the project says."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

SOURCE = pathlib.Path(os.environ["LIGHTLORA_SOURCE_DIR"])


def version():
    text = (SOURCE / "include/lightlora/config.h").read_text()
    return ".".join(re.findall(r"#define LIGHTLORA_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))


def check_vcpkg():
    port = SOURCE / "packaging/vcpkg/ports/lightlora"
    manifest = json.loads((port / "vcpkg.json").read_text())
    assert manifest["version"] == version() and manifest["license"] == "Apache-2.0", manifest
    options = set(re.findall(r"-D(\w+)=OFF", (port / "portfile.cmake").read_text()))
    project = (SOURCE / "CMakeLists.txt").read_text()
    parts = set(re.findall(r"option\((LIGHTLORA_BUILD_\w+)", project)) - {"LIGHTLORA_BUILD_HEADER_ONLY"}
    assert options == parts, options ^ parts


def conan():
    """Conan's command, if it is installed."""
    beside = pathlib.Path(sys.executable).with_name("conan")
    return str(beside) if beside.exists() else shutil.which("conan")


def check_conan(command, home):
    environment = {**os.environ, "CONAN_HOME": str(home)}

    def run(*arguments):
        done = subprocess.run([command, *arguments], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    run("profile", "detect")
    text = run("create", str(SOURCE / "packaging/conan"), "--test-folder", str(home / "test_package"))
    assert re.search(rf"^4 {re.escape(version())}$", text, re.MULTILINE), text[-3000:]


def main():
    check_vcpkg()
    command = conan()
    if command is None:
        print("skipped: conan is not installed (pip install conan); the vcpkg port agrees with the project")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        # Conan builds the test where its folder is.
        shutil.copytree(SOURCE / "packaging/conan/test_package", pathlib.Path(folder) / "test_package")
        check_conan(command, pathlib.Path(folder))


if __name__ == "__main__":
    main()
