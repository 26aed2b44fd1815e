# SPDX-License-Identifier: Apache-2.0
"""text_to_image gives the latents and pictures of diffusers' SDXL pipelines: Euler as the folder's own scheduler and
the others, sizes, negative prompts and zeros for none, rescaled guidance, v with zero terminal SNR, clip skip, image to
image, and prompts with weights, BREAK and any length in both encoders. tests/parity/make_sdxl.py made the numbers."""

import json
import pathlib
import shutil

from PIL import Image
from support import SOURCE, distance, main, read_latents, run, run_ok, scratch

DATA = SOURCE / "tests/parity/data"
FOLDER = DATA / "pipeline_xl"
CASES = json.loads((FOLDER / "cases.json").read_text())
# fp32 on both sides, over up to 7 guided steps.
TOLERANCE = 1e-4


def arguments_of(flags):
    for name, value in flags.items():
        yield f"--{name}"
        # Two numbers of a pair are two arguments.
        pair = "size" in name or "crops" in name
        yield from value.split() if pair else [value]


def check(keys):
    assert keys, "no case of this name"
    expected = read_latents(FOLDER / "numbers.safetensors")
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for key in keys:
            flags, model = dict(CASES[key]), FOLDER
            if "scheduler_config" in flags:
                model = folder / key
                shutil.copytree(FOLDER, model)
                (model / "scheduler/scheduler_config.json").write_text(flags.pop("scheduler_config"))
            if "image" in flags:
                flags["image"] = str(DATA / flags["image"])
            run_ok(
                "text_to_image",
                "--pretrained_model_name_or_path",
                model,
                *arguments_of(flags),
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
            print(f"{key}: relative error {error:.2e}")
            assert error <= TOLERANCE, (key, error)
            if key + ".pictures" in expected and shape[0] == 1:
                _, pixels = expected[key + ".pictures"]
                drawn = Image.open(folder / "x.png").tobytes()
                assert len(drawn) == len(pixels)
                # Rounding to 8 bits may fall either way.
                assert max(abs(a - b * 255) for a, b in zip(drawn, pixels)) < 0.51, key


def test_negative_prompts_and_zeros_for_none_equal_diffusers():
    check(["zeros", "negative", "empty", "unguided"])


def test_sizes_and_their_negatives_equal_diffusers_with_euler_and_ddim():
    check(["sizes", "sizes_ddim", "some_sizes"])


def test_a_model_of_v_with_zero_terminal_snr_and_rescaled_guidance_equals_diffusers():
    check(["zero_snr_euler", "zero_snr_ddim"])


def test_guidance_in_a_part_of_the_steps_equals_diffusers():
    check([key for key in CASES if "limits" in key])


def test_other_schedulers_equal_diffusers():
    check([key for key in CASES if key.startswith("text_")])


def test_clip_skip_counts_as_in_diffusers():
    check(["clip_skip_0", "clip_skip_1"])


def test_weighted_long_and_broken_prompts_follow_a1111_in_both_encoders():
    check([key for key in CASES if key.startswith("prompt_")])


def test_image_to_image_equals_diffusers():
    check(["image_euler", "image_ddim"])


def test_tokens_are_printed_for_both_tokenizers():
    shown = run_ok(
        "text_to_image", "--pretrained_model_name_or_path", FOLDER, "--prompt", "a cat", "--print_tokens"
    ).splitlines()
    assert shown[0] == "tokenizer:" and shown[2] == "tokenizer_2:", shown
    first, second = json.loads(shown[1]), json.loads(shown[3])
    begin = first.index(first[-1]) + 1
    assert first[:begin] == second[:begin] and set(first[begin:]) == {first[-1]} and set(second[begin:]) == {0}


def test_a_picture_remembers_what_it_was_told():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        told = ["--original_size", 24, 40, "--negative_crops_coords_top_left", 1, 2, "--guidance_rescale", 0.5]
        told += ["--guidance_start", 0.25, "--guidance_end", 0.75]
        base = ["text_to_image", "--pretrained_model_name_or_path", FOLDER, "--device", "cpu"]
        prompt = ["--prompt", "a cat", "--num_inference_steps", 3, "--seed", 1]
        run_ok(*base, *prompt, *told, "--output", folder / "a.png")
        run_ok(*base, *prompt, "--output", folder / "plain.png")
        assert Image.open(folder / "plain.png").tobytes() != Image.open(folder / "a.png").tobytes()
        text = Image.open(folder / "a.png").text["parameters"]
        assert "Sampler: Euler," in text and "Original size: 24x40" in text and "Negative crop: 1x2" in text, text
        run_ok(*base, "--from_png", folder / "a.png", "--output", folder / "b.png")
        assert Image.open(folder / "b.png").tobytes() == Image.open(folder / "a.png").tobytes()


def test_sizes_are_refused_for_other_models():
    done = run(
        "text_to_image",
        "--pretrained_model_name_or_path",
        DATA / "pipeline",
        "--prompt",
        "a cat",
        "--original_size",
        8,
        8,
        "--output",
        "not-written.png",
    )
    assert done.returncode == 2 and "only SDXL is told about sizes" in done.stderr, done.stderr


def test_sizes_that_no_picture_has_are_refused_and_ones_without_effect_said():
    with scratch() as folder:
        base = ["text_to_image", "--pretrained_model_name_or_path", FOLDER, "--device", "cpu", "--prompt", "a cat"]
        base += ["--num_inference_steps", 1, "--output", pathlib.Path(folder) / "x.png"]
        for flag, numbers, least in [
            ("--original_size", (16, -4), 1),
            ("--target_size", (0, 16), 1),
            ("--crops_coords_top_left", (-1, 0), 0),
            ("--negative_original_size", (0, 0), 1),
        ]:
            done = run(*base, flag, *numbers)
            wrong = min(numbers)
            name = flag.replace("negative_", "")
            assert done.returncode == 2 and done.stderr.count("\n") == 1, done
            assert f"{name}: expected numbers from {least} on, got {wrong}" in done.stderr, done.stderr
        shown = run_ok(*base, "--guidance_scale", 1, "--negative_original_size", 8, 8)
        assert "--negative_original_size and its like has no effect with a --guidance_scale of 1" in shown, shown


main(globals())
