# SPDX-License-Identifier: Apache-2.0
"""Makes one site of the documentation of several versions.

    site_versions.py SITE VERSION

SITE holds a folder for each version, such as SITE/0.1; VERSION is the one that was just written there. Lists them all in
SITE/versions.json, from which every page offers the others, and leads from SITE/index.html to the newest. To publish,
put the folders of earlier versions beside the new one and call this again.
"""

import json
import re
import sys
from pathlib import Path

FORWARD = """<!DOCTYPE html>
<meta charset="utf-8">
<title>lightlora</title>
<meta http-equiv="refresh" content="0; url={newest}/">
<a href="{newest}/">The documentation of lightlora {newest}</a>
"""


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    site, version = Path(sys.argv[1]), sys.argv[2]
    if not (site / version / "index.html").is_file():
        sys.exit(f"'{site / version}': expected a page index.html, got none; hint: the folder is called as the version")
    versions = [path.parent.name for path in site.glob("*/index.html") if re.fullmatch(r"\d+\.\d+", path.parent.name)]
    versions.sort(key=lambda name: [int(part) for part in name.split(".")], reverse=True)
    listed = [
        {"version": name, "title": name, "aliases": ["latest"] if name == versions[0] else []} for name in versions
    ]
    (site / "versions.json").write_text(json.dumps(listed, indent=1) + "\n")
    (site / "index.html").write_text(FORWARD.format(newest=versions[0]))


if __name__ == "__main__":
    main()
