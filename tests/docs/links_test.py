# SPDX-License-Identifier: Apache-2.0
"""Every relative link of the documentation leads to a file and a heading that exist, and every path that the map of
the application names exists."""

import os
import re
from pathlib import Path

SOURCE = Path(os.environ["LIGHTLORA_SOURCE_DIR"])
DOOR = SOURCE / "examples/stable_diffusion/README.md"


def pages():
    return [
        *sorted(SOURCE.glob("*.md")),
        *sorted((SOURCE / "docs").rglob("*.md")),
        *sorted((SOURCE / "examples").rglob("*.md")),
    ]


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(page):
    """The headings of a page as GitHub and the site name them."""
    for title in re.findall(r"^#+ +(.+)$", without_code(page.read_text()), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        yield re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def check_links(page):
    """The number of relative links of a page."""
    count = 0
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        shown = page.relative_to(SOURCE)
        generated = path.startswith("reference/")  # by Doxygen, with the site
        assert generated or other.exists(), f"'{shown}': '{target}' does not exist"
        if anchor and not generated:
            assert anchor in anchors(other), f"'{shown}': '{target}': no such heading"
        count += 1
    return count


def check_door():
    """The number of paths that the application's map names."""
    names = [
        name for name in re.findall(r"`([\w/]+(?:/|\.h|\.cpp|\.sh)?)`", without_code(DOOR.read_text())) if "/" in name
    ]
    for name in names:
        assert (DOOR.parent / name).exists() or (SOURCE / name).exists(), f"'{DOOR.name}': '{name}' does not exist"
    return len(names)


def main():
    links, paths = sum(map(check_links, pages())), check_door()
    assert links > 50 and paths > 30, f"expected links and paths in the documentation, got {links} and {paths}"
    print(f"{links} links and {paths} paths of {len(pages())} pages exist")


main()
