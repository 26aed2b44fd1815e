# SPDX-License-Identifier: Apache-2.0
"""before_after writes its three pictures and the two measures."""

import pathlib
import re

from support import MODEL, SOURCE, SUBJECT, main, run_ok, scratch, train


def test_pictures_and_measures():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "lora", steps=1)
        output = run_ok(
            "before_after",
            "--pretrained_model_name_or_path",
            MODEL,
            "--lora",
            folder / "lora/lightlora.safetensors",
            "--prompt",
            "a sks bear on a blue background",
            "--prompt",
            "a sks bear",
            "--unmeasured_prompt",
            "a bear on a red background",
            "--seeds",
            1,
            "--num_inference_steps",
            2,
            "--save_pictures",
            "--subject_pictures",
            SUBJECT,
            "--output_dir",
            folder / "out",
            "--emoji_vectors",
            SOURCE / "examples/stable_diffusion/assets/measures/emoji.safetensors",
            "--emoji",
            "teddy bear",
            "--device",
            "cpu",
        )
        names = sorted(path.name for path in (folder / "out").iterdir())
        each = [f"{row}-{index}.png" for row in ["after", "before"] for index in [0, 1, 2]]
        assert names == sorted([*each, "after.png", "before.png", "contact_sheet.png"]), names
        assert (folder / "out/after-0.png").read_bytes() != (folder / "out/after-1.png").read_bytes()
        for row in ["before:", "after:"]:
            line = next(line for line in output.splitlines() if line.startswith(row))
            found = re.search(r"number \d+ of 974 emoji .* likeness (0\.\d{3}); .* [01] of 1 pictures", line)
            assert found and float(found[1]) < 1, line


def test_seeds_are_those_of_the_other_programs():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "lora", steps=1)
        flags = ["--pretrained_model_name_or_path", MODEL, "--lora", folder / "lora/lightlora.safetensors", "--prompt"]
        flags += ["a", "--seeds", 1, "--num_inference_steps", 1, "--device", "cpu", "--output_dir", folder / "out"]
        output = run_ok("before_after", *flags, "--seed", -1)
        seed = re.search(r"^seed: (\d+)$", output, re.MULTILINE)[1]
        first = (folder / "out/before.png").read_bytes()
        run_ok("before_after", *flags, "--seed", seed)
        assert (folder / "out/before.png").read_bytes() == first
        run_ok("before_after", *flags, "--seed", 2**64 - 1)
        assert (folder / "out/before.png").read_bytes() != first


main(globals())
