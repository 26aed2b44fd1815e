# SPDX-License-Identifier: Apache-2.0
"""The library's face: few public headers, all of them in the umbrella, no cycles behind them, and nobody
outside the library who reaches past them."""

import os
import re
import sys
from pathlib import Path

SOURCE = Path(os.environ["LIGHTLORA_SOURCE_DIR"])
LIBRARY = SOURCE / "include/lightlora"
MOST_HEADERS = 16
PRIVATE = re.compile(r"lightlora/detail/|lightlora::detail\b|(?<![\w:])detail::(?:sha256|MappedFile|AtomicFile|NativeFields)")
# The one file that compiles the library is named by its users; tests of the library may look inside.
ALLOWED = "#include <lightlora/detail/source.h>"
OUTSIDE = ["README.md", "docs", "examples", "benchmarks", "tests/examples", "tests/programs", "tests/stable_diffusion"]


def headers():
    return sorted(path.relative_to(LIBRARY).as_posix() for path in LIBRARY.rglob("*.h"))


def public(names):
    return [name for name in names if not name.startswith("detail/") and not name.endswith("-inl.h")]


def home(name):
    """The header that a body belongs to: x.h for x-inl.h, and for x_part-inl.h if there is no x_part.h."""
    stem = name.removesuffix("-inl.h").removesuffix(".h")
    while name.endswith("-inl.h") and not (LIBRARY / (stem + ".h")).exists():
        stem = stem.rpartition("_")[0]
        assert stem, f"'{name}': expected a header that it belongs to, got none"
    return stem + ".h"


def include_graph(names):
    """What each header includes, its bodies taken as parts of it."""
    graph = {home(name): set() for name in names}
    for name in names:
        found = re.findall(r"^#include <lightlora/(.*)>", (LIBRARY / name).read_text(), re.M)
        graph[home(name)] |= {home(other) for other in found} - {home(name)}
    return graph


def cycles(graph):
    """Strongly connected components of more than one header (Tarjan)."""
    index, low, stack, result = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                result.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return result


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
    names = headers()
    top = [name for name in public(names) if "/" not in name and name != "lightlora.h"]
    umbrella = set(re.findall(r"^#include <lightlora/(.*)>", (LIBRARY / "lightlora.h").read_text(), re.M))
    problems = [f"expected at most {MOST_HEADERS} public headers, got {len(top)}"] * (len(top) > MOST_HEADERS)
    problems += [f"lightlora.h: expected to include {name}" for name in top if name not in umbrella]
    problems += [f"expected no include cycle, got {' <-> '.join(cycle)}"
                 for cycle in cycles(include_graph(names))]
    problems += [f"expected public names of the library only, got {line}" for line in outsiders()]
    print("\n".join(problems) or f"{len(top)} public headers beside the variants, no cycle")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
