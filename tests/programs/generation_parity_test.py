# SPDX-License-Identifier: Apache-2.0
"""text_to_image gives the latents and pictures of diffusers: schedulers, image to image, seeds for
each picture, clip skip, tiling, and prompts with weights, BREAK and any length.
tests/parity/make_generation.py made the numbers."""

import json
import pathlib

from PIL import Image
from support import SOURCE, distance, main, read_latents, run_ok, scratch

DATA = SOURCE / "tests/parity/data"
CASES = json.loads((DATA / "generation/cases.json").read_text())
# fp32 on both sides, over up to 9 guided steps; seen: 4e-6 at most.
TOLERANCE = 1e-4


def check(keys):
    assert keys, "no case of this name"
    expected = read_latents(DATA / "generation/numbers.safetensors")
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for key in keys:
            flags = dict(CASES[key])
            if "image" in flags:
                flags["image"] = DATA / flags["image"]
            arguments = [f"--{name}={value}" for name, value in flags.items()]
            run_ok(
                "text_to_image",
                "--pretrained_model_name_or_path",
                DATA / "pipeline",
                *arguments,
                "--device",
                "cpu",
                "--output",
                folder / "x.png",
                "--save_latents",
                folder / "x.safetensors",
            )
            shape, got = read_latents(folder / "x.safetensors")["latents"]
            wanted_shape, wanted = expected[key]
            assert shape == wanted_shape, (key, shape, wanted_shape)
            error = distance(got, wanted) / distance(wanted, [0] * len(wanted))
            assert error <= TOLERANCE, (key, error)
            if key + ".pictures" in expected:
                _, pixels = expected[key + ".pictures"]
                drawn = Image.open(folder / "x.png").tobytes()
                assert len(drawn) == len(pixels)
                # Rounding to 8 bits may fall either way.
                assert max(abs(a - b * 255) for a, b in zip(drawn, pixels)) < 0.51, key


def test_schedulers_equal_diffusers():
    check([key for key in CASES if key.startswith(("text_", "karras_"))])


def test_image_to_image_equals_diffusers_with_every_scheduler():
    check([key for key in CASES if key.startswith("image_")])


def test_weighted_long_and_broken_prompts_follow_a1111():
    check([key for key in CASES if key.startswith("prompt_")])


def test_a_seed_for_each_picture_equals_a_list_of_generators():
    check(["seeds"])


def test_clip_skip_equals_diffusers():
    check(["clip_skip_1", "clip_skip_2"])


def test_tiles_equal_diffusers_and_are_not_the_whole():
    check(["tiling", "no_tiling"])
    expected = read_latents(DATA / "generation/numbers.safetensors")
    assert expected["tiling.pictures"][1] != expected["no_tiling.pictures"][1]


main(globals())
