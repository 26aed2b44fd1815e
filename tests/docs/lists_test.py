# SPDX-License-Identifier: Apache-2.0
"""Lists and tables of the site's pages stand alone: Markdown as the site renders it joins a list or a table that
follows a line of text to that paragraph."""

import os
import re
from pathlib import Path

SOURCE = Path(os.environ["LIGHTLORA_SOURCE_DIR"])
MARK = re.compile(r"([-*+]|\d+\.) ")


def joined(page):
    """(number, line) of each list mark or table that is directly below a paragraph."""
    fenced, before, in_list = False, "", False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            fenced, before = not fenced, ""
            continue
        if fenced:
            continue
        starts = bool(MARK.match(line)) or line.startswith("|")
        text = before.strip() and not before.startswith(("#", "|", "<"))
        if starts and text and not in_list:
            yield number, line
        if not line.strip():
            in_list = False
        elif MARK.match(line):
            in_list = True
        before = line


def main():
    pages, found = sorted((SOURCE / "docs").rglob("*.md")), []
    for page in pages:
        found += [f"{page.relative_to(SOURCE)}:{number}: {line[:60]}" for number, line in joined(page)]
    assert len(pages) > 10 and not found, "expected an empty line above each list and table:\n" + "\n".join(found)
    print(f"{len(pages)} pages")


main()
