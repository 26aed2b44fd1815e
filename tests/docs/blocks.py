# SPDX-License-Identifier: Apache-2.0
"""Writes one C++ file that holds every C++ block of the documentation, to be compiled and run.

    blocks.py OUT.cpp PAGE.md...

Each block becomes a function in which the objects of prelude.h exist: `model`, `x`, `target`. A comment in
front of a block says what else it needs:

    <!-- needs: lora -->    one of the names in NEEDS
    <!-- program -->        a whole program with its own main and all the includes that it needs: it becomes a
                            file of its own beside OUT.cpp, program_<number>.cpp
"""

import re
import sys
from pathlib import Path

NEEDS = {
    "lora": 'auto lora = lightlora::patch<lightlora::LightLoRA>(*model, 4, {"to_q", "to_k"});',
    "unet": "DocsUNet model;",
    "unet lora": 'DocsUNet model;\n  auto lora = lightlora::patch<lightlora::LightLoRA>(*model, 4, {"to_q", "to_k"});',
    "tuned": "DocsNet tuned = docs_tuned(model);",
    "file": 'docs_net_file("adapter.safetensors");\n  DocsPlainNet model;\n  x = torch::randn({32, 64});',
}
FENCE = re.compile(r"^```cpp\s*$(.*?)^```\s*$", re.M | re.S)


def note_before(text, start):
    """The HTML comment in the line above a block, or nothing."""
    lines = text[:start].rstrip().splitlines()
    found = re.fullmatch(r"<!-- (needs: (.+)|program) -->", lines[-1]) if lines else None
    return found.group(1) if found else ""


def blocks(page):
    text = page.read_text()
    assert text.count("```cpp") == len(FENCE.findall(text)), f"'{page}': a C++ block without its end"
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        yield line, match.group(1).strip("\n"), note_before(text, match.start())


def function(index, page, line, code, note):
    """One block as a function `block_<index>` that returns 0 if it worked."""
    place = f'#line {line} "{page.name}"\n'
    code = re.sub(r"^#include .*$", "", code, flags=re.M)  # prelude.h includes everything
    setup = NEEDS[note[len("needs: ") :]] if note else ""
    return (
        f"static int run_{index}() {{\n  DOCS_OBJECTS\n  {{\n  {setup}\n{{\n{place}{code}\n}}\n  }}\n  return 0;\n}}\n"
    )


def program(number, page, line, code):
    """A whole program as a file whose main is called program_<number>::run."""
    assert "int main()" in code, f"'{page}:{line}': expected a program with int main()"
    includes, rest = re.fullmatch(r"((?:#include [^\n]*\n|\n)*)(.*)", code, re.S).groups()
    rest = rest.replace("int main()", "int run()")
    start = line + includes.count("\n")
    return (
        f'#line {line} "{page.name}"\n{includes}namespace program_{number} {{\n#line {start} "{page.name}"\n'
        f"{rest}\n}}  // namespace program_{number}\n"
    )


def main(out, pages):
    parts, table, programs = ['#include "prelude.h"\n'], [], 0
    for page in pages:
        for line, code, note in blocks(page):
            if note == "program":
                (out.parent / f"program_{programs}.cpp").write_text(program(programs, page, line, code))
                parts.append(
                    f"namespace program_{programs} {{ int run(); }}\n"
                    f"static int run_{len(table)}() {{ return program_{programs}::run(); }}\n"
                )
                programs += 1
            else:
                parts.append(function(len(table), page, line, code, note))
            table.append(f'{{"{page.name}:{line}", run_{len(table)}}}')
    assert table, "expected C++ blocks in the documentation, got none"
    parts.append(f"int main() {{ return docs_run({{{', '.join(table)}}}); }}\n")
    out.write_text("".join(parts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(page) for page in sys.argv[2:]])
