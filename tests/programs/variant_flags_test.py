# SPDX-License-Identifier: Apache-2.0
"""The trainer's --help offers every variant and every option of any: the flags are made from what is registered, so that a new
variant brings them along. What diffusers' files cannot hold as factors is saved in full, and cut where a rank is given."""

import pathlib
import re

from support import SOURCE, main, run_ok, scratch, train

VARIANTS = SOURCE / "include/lightlora/variants"
DIFFUSERS = "pytorch_lora_weights.safetensors"


def help_of_trainer():
    return run_ok("train_dreambooth_lora", "--help").split("\nEvery flag may")[0]


def code_of_variants():
    return "\n".join(path.read_text() for path in sorted(VARIANTS.glob("*.h")))


def test_every_variant_may_be_chosen():
    names = set(re.findall(r'kVariant = "(\w+)"', code_of_variants()))
    assert len(names) >= 20, names
    missing = {name for name in names if not re.search(rf"\b{name}\b", help_of_trainer())}
    assert not missing, missing


def test_every_option_of_a_variant_is_a_flag_with_its_line():
    shown = " ".join(help_of_trainer().split())
    files = [path.read_text() for path in sorted(VARIANTS.glob("*.h"))]
    options = re.findall(r'\boption\(\s*"(\w+)",\s*&\w+::\w+,\s*"([^"]+)"', "\n".join(files))
    assert len(options) >= 20, options
    for name in {name for name, _ in options}:
        assert re.search(rf"--{name}\b", shown), name
        # A flag of several variants has the line of the first.
        lines = [" ".join(line.split()) for other, line in options if other == name]
        assert any(line in shown for line in lines), (name, lines)


def test_a_variant_without_factors_is_saved_in_full_and_cut_on_request():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        printed = train(folder / "full", "--variant", "hira", steps=1)
        assert "notice: hira has no low-rank factors for pytorch_lora_weights.safetensors" in printed, printed
        assert (folder / "full/lightlora.safetensors").exists()
        assert not (folder / "full" / DIFFUSERS).exists()
        printed = train(folder / "cut", "--variant", "diag_oft", "--split_rank", 2, steps=1)
        assert "has no low-rank factors" not in printed, printed
        assert (folder / "cut" / DIFFUSERS).exists()


def test_ranks_by_timestep_and_by_budget_train_and_go_on():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "tlora", "--variant", "tlora", "--min_rank", 1, steps=2)
        budget = ["--variant", "adalora", "--target_r", 1, "--tfinal", 1]
        train(folder / "whole", *budget, "--checkpointing_steps", 2, steps=4)
        train(folder / "parts", *budget, "--checkpointing_steps", 2, steps=4)
        # The same run from its middle ends with the same bytes.
        train(folder / "parts", *budget, "--resume_from_checkpoint", "checkpoint-2", steps=4)
        name = "lightlora.safetensors"
        assert (folder / "whole" / name).read_bytes() == (folder / "parts" / name).read_bytes()


def test_norms_and_biases_train_beside_the_adapters():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "a", "--train_norms", "--train_biases", steps=2)
        assert (folder / "a" / DIFFUSERS).exists()
        out = folder / "kohya.safetensors"
        run_ok("convert_lora", "--input", folder / "a/lightlora.safetensors", "--output", out, "--to", "kohya")
        names = out.read_bytes()
        for ending in [b".w_norm", b".b_norm", b".diff_b"]:
            assert ending in names, ending
        printed = run_ok("convert_lora", "--input", out, "--output", folder / "d", "--to", "diffusers")
        assert "notice: the diffusers format has no names for norms and biases" in printed, printed


main(globals())
