# SPDX-License-Identifier: Apache-2.0
"""Runs one Python test, or skips it with a printed reason if a package that it imports is not there.

Usage: run_python_test.py <test.py>. Exit status 77 means skipped, anything else is the test's own.

Only the packages of scripts/requirements-test.txt may be missing (PyPI was out of reach, or LibTorch
came from elsewhere). They are imported for real: PyTorch without its CUDA libraries can be found but
not loaded.
"""

import ast
import importlib
import pathlib
import runpy
import sys

OPTIONAL = {
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "numpy",
    "peft",
    "PIL",
    "safetensors",
    "tensorboard",
    "tokenizers",
    "torch",
    "transformers",
}


def imported_packages(source):
    """The top-level package names that the source imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def main():
    script = pathlib.Path(sys.argv[1])
    for name in sorted(imported_packages(script.read_text(encoding="utf-8")) & OPTIONAL):
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            print(
                f"SKIPPED: {script.name} needs the Python package {name}, which cannot be loaded here: {error}\n"
                "hint: scripts/bootstrap.sh --tests installs it"
            )
            return 77
    sys.path.insert(0, str(script.parent))
    sys.argv = sys.argv[1:]
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
