# SPDX-License-Identifier: Apache-2.0
"""The trainer's --help offers the variants that other programs' files can hold as factors, and every option of any variant:
the flags are made from what is registered, so that a new variant brings them along."""

import re

from support import SOURCE, main, run_ok

VARIANTS = SOURCE / "include/lightlora/variants"
# Their deltas are of full rank, or depend on the weights that they stand beside.
NOT_OFFERED = {"diag_oft", "lokr", "glora", "hira", "ia3", "shira", "oft"}


def help_of_trainer():
    return run_ok("train_dreambooth_lora", "--help").split("\nEvery flag may")[0]


def code_of_variants():
    return "\n".join(path.read_text() for path in sorted(VARIANTS.glob("*.h")))


def test_variants_with_factors_may_be_chosen():
    names = set(re.findall(r'kVariant = "(\w+)"', code_of_variants()))
    assert len(names) >= 18, names
    missing = {name for name in names if not re.search(rf"\b{name}\b", help_of_trainer())}
    assert missing == NOT_OFFERED, missing


def test_every_option_of_a_variant_is_a_flag_with_its_line():
    shown = " ".join(help_of_trainer().split())
    files = [path.read_text() for path in sorted(VARIANTS.glob("*.h"))]
    offered = [code for code in files if set(re.findall(r'kVariant = "(\w+)"', code)) - NOT_OFFERED]
    options = re.findall(r'\boption\(\s*"(\w+)",\s*&\w+::\w+,\s*"([^"]+)"', "\n".join(offered))
    assert len(options) >= 8, options
    for name in {name for name, _ in options}:
        assert re.search(rf"--{name}\b", shown), name
        # A flag of several variants has the line of the first.
        lines = [" ".join(line.split()) for other, line in options if other == name]
        assert any(line in shown for line in lines), (name, lines)


main(globals())
