# SPDX-License-Identifier: Apache-2.0
"""Every small example prints exactly what its header comment promises."""

import os
import pathlib
import subprocess
import tempfile

BIN = pathlib.Path(os.environ["LIGHTLORA_BIN"])
EXAMPLES = pathlib.Path(os.environ["LIGHTLORA_SOURCE_DIR"]) / "examples"


def main():
    sources = sorted(EXAMPLES.glob("*.cpp"))
    assert sources, f"'{EXAMPLES}': expected examples, got none"
    for source in sources:
        promised = [line[5:] for line in source.read_text().splitlines() if line.startswith("//   ")]
        assert promised, f"'{source.name}': expected its output in the header comment, got none"
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([BIN / source.stem], capture_output=True, text=True, cwd=folder, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == promised, (source.name, promised, done.stdout)


main()
