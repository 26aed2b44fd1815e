# SPDX-License-Identifier: Apache-2.0
"""No public name of the library is without a comment: Doxygen, as the site runs it, has nothing to say."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(os.environ["LIGHTLORA_SOURCE_DIR"])
if not shutil.which("doxygen"):
    print("doxygen is not installed (scripts/bootstrap.sh --tests installs it)")
    sys.exit(77)

with tempfile.TemporaryDirectory() as folder:
    settings = (SOURCE / "docs/Doxyfile").read_text() + f"\nOUTPUT_DIRECTORY = {folder}\n"
    done = subprocess.run(["doxygen", "-"], input=settings, cwd=SOURCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(Path(folder).glob("reference/*.html"))
    assert any("PatchedImpl" in page.name for page in pages), "expected a page for PatchedImpl, got none"
problems = [line for line in done.stderr.splitlines() if "is not documented" in line]
print("\n".join(problems) or f"{len(pages)} pages, no undocumented public name")
sys.exit(1 if problems else 0)
