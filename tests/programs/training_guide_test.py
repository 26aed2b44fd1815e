# SPDX-License-Identifier: Apache-2.0
"""docs/training.md explains every flag of the trainer, and no flag that it lacks."""

import re

from support import SOURCE, main, run_ok

GUIDE = (SOURCE / "docs/training.md").read_text(encoding="utf-8")


def flags_in(text):
    return set(re.findall(r"--([a-z][a-z0-9_]+)", text))


def test_the_guide_explains_every_flag():
    missing = flags_in(run_ok("train_dreambooth_lora", "--help").split("\nEvery flag may")[0])
    assert len(missing) > 60, missing
    missing -= flags_in(GUIDE.split("## Every flag")[1])
    assert not missing, missing


def test_the_guide_names_no_flag_that_does_not_exist():
    # TensorBoard's own, and one that the guide names as refused.
    known = flags_in(run_ok("train_dreambooth_lora", "--help")) | {"logdir", "do_edm_style_training"}
    for program in ["text_to_image", "convert_lora", "textual_inversion"]:
        known |= flags_in(run_ok(program, "--help"))
    assert flags_in(GUIDE) - known == set()


def test_the_guide_has_measured_figures():
    assert "MEASURED" not in GUIDE


main(globals())
