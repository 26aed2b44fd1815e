# SPDX-License-Identifier: Apache-2.0
"""The shape of the source: no include cycles, small files and functions, a small public face, short first pages.

shape_test.py           every rule; exit status 1 with the offenders if one is broken
"""

import ast
import json
import os
import re
import sys
from pathlib import Path

from rules import run

SOURCE = Path(os.environ["LIGHTLORA_SOURCE_DIR"])
INCLUDE = SOURCE / "include"
LONGEST_FILE, LONGEST_FUNCTION, MOST_PUBLIC_HEADERS = 400, 50, 16
LONGEST_README, LONGEST_EXAMPLE = 80, 60
CODE = ["include", "examples", "tests", "benchmarks", "scripts"]


def files(*suffixes):
    """Paths of our own files with these suffixes, relative to the source folder."""
    for folder in CODE:
        for path in sorted((SOURCE / folder).rglob("*")):
            if path.suffix in suffixes and "parity/data" not in path.as_posix():
                yield path.relative_to(SOURCE)


def includes(path):
    """What a file includes of this library, as `lightlora/...`."""
    return re.findall(r"^\s*#\s*include\s+<(lightlora/[^>]+)>", (SOURCE / path).read_text(), re.M)


def components(graph):
    """The strongly connected components of {node: nodes it points to} (Tarjan)."""
    order, low, stack, found = {}, {}, [], []

    def visit(node):
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            start = stack.index(node)
            found.append(set(stack[start:]))
            del stack[start:]

    for node in graph:
        if node not in order:
            visit(node)
    return found


def include_cycles():
    """A header and its own body, which may be in several files, include each other; no two headers do."""
    graph = {
        path.relative_to(INCLUDE).as_posix(): includes(path.relative_to(SOURCE))
        for path in sorted(INCLUDE.rglob("*.h"))
    }
    assert len(graph) > 20, f"'{INCLUDE}': expected the library's headers, got {len(graph)}"
    for component in components(graph):
        headers = {name for name in component if not name.endswith("-inl.h")}
        if len(headers) > 1 or (len(component) > 1 and not headers):
            yield f"{', '.join(sorted(component))}: include each other"


def long_files():
    for path in files(".h", ".cpp", ".py", ".sh"):
        lines = (SOURCE / path).read_text().count("\n")
        if lines > LONGEST_FILE:
            yield f"{path}: {lines} lines, of at most {LONGEST_FILE}"


def without_text(code):
    """C++ with its comments, strings and preprocessor lines blanked; every line keeps its number."""
    token = re.compile(
        r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|^[ \t]*#(?:\\\n|[^\n])*',
        re.S | re.M,
    )
    return token.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), code)


SCOPE = re.compile(r"\b(namespace|extern|enum)\b|\b(class|struct|union)\s+\w[^()]*$")


def kind_of_brace(code, head, at):
    """What the brace at `at` opens, by the text since the last statement: a scope, a function or something else."""
    text = code[head:at]
    if SCOPE.search(text):
        return "scope"
    name = re.sub(r"operator\W+|[!<>=]=", "", text.split("(")[0])
    is_function = ")" in text and "=" not in name and code[at - 1].isspace()
    return "function" if is_function else "other"


def cpp_functions(code):
    """(first line of the body, number of its lines) of each function; what lies in a function belongs to it."""
    code = without_text(code)
    braces, head = [], 0
    for at, char in enumerate(code):
        inside = any(kind == "function" for kind, _ in braces)
        if char == "{":
            kind = "other" if inside else kind_of_brace(code, head, at)
            braces.append((kind, at))
            if kind == "scope":
                head = at + 1
        elif char == "}" and braces:
            kind, start = braces.pop()
            if kind == "function":
                yield code.count("\n", 0, start) + 1, code.count("\n", start, at) + 1
            if kind != "other":
                head = at + 1
        elif char == ";" and not inside:
            head = at + 1


def long_functions():
    for path in files(".h", ".cpp"):
        for line, count in cpp_functions((SOURCE / path).read_text()):
            if count > LONGEST_FUNCTION:
                yield f"{path}:{line}: a function of {count} lines, of at most {LONGEST_FUNCTION}"
    for path in files(".py"):
        for node in ast.walk(ast.parse((SOURCE / path).read_text())):
            if isinstance(node, ast.FunctionDef):
                count = node.end_lineno - node.lineno + 1
                if count > LONGEST_FUNCTION:
                    yield f"{path}:{node.lineno}: a function of {count} lines, of at most {LONGEST_FUNCTION}"


def public_headers():
    names = {path.name for path in (INCLUDE / "lightlora").glob("*.h") if not path.name.endswith("-inl.h")}
    if len(names) > MOST_PUBLIC_HEADERS:
        yield f"include/lightlora: {len(names)} public headers, of at most {MOST_PUBLIC_HEADERS}: {', '.join(sorted(names))}"
    variants = {
        f"variants/{path.name}"
        for path in (INCLUDE / "lightlora/variants").glob("*.h")
        if not path.name.endswith("-inl.h")
    }
    umbrella = set(includes("include/lightlora/lightlora.h"))
    umbrella |= set(includes("include/lightlora/variants/variants.h"))
    for name in sorted((names | variants) - {"lightlora.h"}):
        if f"lightlora/{name}" not in umbrella:
            yield f"include/lightlora/{name}: missing in lightlora.h; what is private belongs in detail/"


def private_includes():
    """detail/ is for the library itself and for its own tests."""
    for path in files(".h", ".cpp"):
        if path.parts[0] == "include" or path.parts[:2] in [("tests", "library"), ("tests", "fuzz")]:
            continue
        for name in includes(path):
            if name.startswith("lightlora/detail/"):
                yield f"{path}: includes the private {name}"


def listed_headers():
    """docs/api.md has one row for each public header, and none for anything else."""
    rows = re.findall(r"^\| `([^`]+\.h)` \|", (SOURCE / "docs/api.md").read_text(), re.M)
    public = {path.name for path in (INCLUDE / "lightlora").glob("*.h") if not path.name.endswith("-inl.h")}
    wanted = public - {"lightlora.h"} | {"variants/*.h"}
    for name in sorted(wanted - set(rows)):
        yield f"docs/api.md: no row for {name}"
    for name in sorted(set(rows) - wanted):
        yield f"docs/api.md: a row for {name}, which is no public header"
    for name in sorted({name for name in rows if rows.count(name) > 1}):
        yield f"docs/api.md: {rows.count(name)} rows for {name}"


def short_pages():
    """What somebody reads first fits on a few screens."""
    limits = {"README.md": LONGEST_README}
    limits |= {f"examples/{path.name}": LONGEST_EXAMPLE for path in (SOURCE / "examples").glob("*.cpp")}
    for path, most in sorted(limits.items()):
        count = len((SOURCE / path).read_text().splitlines())
        if count > most:
            yield f"{path}: {count} lines, of at most {most}"


def preset_filters():
    """The tests that a preset chooses by name are there."""
    names = [
        f"{path.parent.name}.{path.stem.removesuffix('_test')}"
        for folder in ("library", "stable_diffusion", "programs")
        for path in (SOURCE / "tests" / folder).glob("*_test.cpp")
    ]
    for preset in json.loads((SOURCE / "CMakePresets.json").read_text())["testPresets"]:
        pattern = preset.get("filter", {}).get("include", {}).get("name", "")
        for folder, titles in re.findall(r"(\w+)\\\.\(([^()]*)\)", pattern):
            for title in titles.split("|"):
                if not any(re.fullmatch(rf"{folder}\.{title}", name) for name in names):
                    yield f"CMakePresets.json: {preset['name']} asks for {folder}.{title}, which is no test"


RULES = [
    include_cycles,
    long_files,
    long_functions,
    public_headers,
    private_includes,
    listed_headers,
    short_pages,
    preset_filters,
]


if __name__ == "__main__":
    sys.exit(run(RULES, sys.argv[1:]))
