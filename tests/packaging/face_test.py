# SPDX-License-Identifier: Apache-2.0
"""Nobody outside the library names what is private in it: neither headers nor names (tests/style/shape_test.py
counts the public headers and looks for include cycles)."""

import os
import re
import sys
from pathlib import Path

SOURCE = Path(os.environ["LIGHTLORA_SOURCE_DIR"])
PRIVATE = re.compile(
    r"lightlora/detail/|lightlora::detail\b|(?<![\w:])detail::(?:sha256|MappedFile|AtomicFile|NativeFields)"
)
# The one file that compiles the library is named by its users; tests of the library may look inside.
ALLOWED = "#include <lightlora/detail/source.h>"
OUTSIDE = ["README.md", "docs", "examples", "benchmarks", "tests/examples", "tests/programs", "tests/stable_diffusion"]


def outsiders():
    """Lines outside the library that name something private."""
    for entry in OUTSIDE:
        root = SOURCE / entry
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.suffix not in (".h", ".cpp", ".py", ".md", ".txt") or not path.is_file():
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if PRIVATE.search(line) and ALLOWED not in line:
                    yield f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"


def main():
    problems = list(outsiders())
    print("\n".join(f"expected public names of the library only, got {line}" for line in problems) or "ok")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
