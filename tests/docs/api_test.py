# SPDX-License-Identifier: Apache-2.0
"""Every public class, function and option of the library has a comment: Doxygen, as the site runs it, has
nothing to say, but for members that say everything themselves (see `speaks_for_itself`)."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(os.environ["LIGHTLORA_SOURCE_DIR"])
WARNING = re.compile(r"(.*?):(\d+): warning: (.*) is not documented")


def speaks_for_itself(warning):
    """Constants, aliases, constructors, overriders and members of one line; the table of a variant's options."""
    file, line, what = WARNING.match(warning).groups()
    if " of class " not in what and " of struct " not in what:
        return False
    member, owner = re.match(r"Member ([~\w]+).* of (?:class|struct) (.*)", what).groups()
    text = Path(file).read_text().splitlines()[int(line) - 1]
    owner = re.sub(r"<.*", "", owner).strip().rpartition("::")[2]
    return (
        member in (owner, "fields")
        or "(typedef)" in what
        or bool(re.search(r"static constexpr|\boverride\b|= default|= 0;|^\s*using |\{.*\}$", text))
    )


if __name__ == "__main__":
    if not shutil.which("doxygen"):
        print("doxygen is not installed (scripts/bootstrap.sh --tests installs it)")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        settings = (SOURCE / "docs/Doxyfile").read_text() + f"\nOUTPUT_DIRECTORY = {folder}\n"
        done = subprocess.run(["doxygen", "-"], input=settings, cwd=SOURCE, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        pages = list(Path(folder).glob("reference/*.html"))
        assert any("PatchedImpl" in page.name for page in pages), "expected a page for PatchedImpl, got none"
    warnings = [line for line in done.stderr.splitlines() if WARNING.match(line)]
    problems = [line for line in warnings if not speaks_for_itself(line)]
    print("\n".join(problems) or f"{len(pages)} pages, no undocumented public name")
    sys.exit(1 if problems else 0)
