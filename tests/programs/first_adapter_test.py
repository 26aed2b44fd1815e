# SPDX-License-Identifier: Apache-2.0
"""first_adapter prints exactly what its header comment promises."""

from support import SOURCE, main, run, scratch


def test_output_is_the_one_in_the_comment():
    source = (SOURCE / "examples/first_adapter.cpp").read_text()
    promised = [line[5:] for line in source.splitlines() if line.startswith("//   ")]
    with scratch() as folder:
        done = run("first_adapter", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert len(promised) == 3 and done.stdout.splitlines() == promised, (promised, done.stdout)


main(globals())
