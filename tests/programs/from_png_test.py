# SPDX-License-Identifier: Apache-2.0
"""--from_png: a flag takes the place of the picture's setting of that name, and LoRA files are one setting."""

import pathlib
import re
import shutil

from support import MODEL, draw, main, read_latents, run, run_ok, scratch, train

BIG = 2**64 - 1


def again(folder, png, *more):
    """(latents, output) of what a PNG's settings give with these flags."""
    output = run_ok(
        "text_to_image",
        "--pretrained_model_name_or_path",
        MODEL,
        "--device",
        "cpu",
        "--from_png",
        png,
        "--output",
        folder / "again.png",
        "--save_latents",
        folder / "again.safetensors",
        *more,
    )
    return read_latents(folder / "again.safetensors")["latents"][1], output


def drawn(folder, *more):
    draw(folder / "plain.png", "--save_latents", folder / "plain.safetensors", *more)
    return read_latents(folder / "plain.safetensors")["latents"][1]


def test_lora_files_are_one_setting():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "out", "--learning_rate", "0.02", "--train_text_encoder", "--variant", "classic")
        lora = folder / "out/lightlora.safetensors"
        for name in ["a", "b", "c; d"]:
            (folder / name).mkdir()
        shutil.copy(lora, folder / "a/t.safetensors")
        shutil.copy(lora, folder / "c; d/t.safetensors")
        run_ok("convert_lora", "--input", f"{lora}:-1", "--output", folder / "b/t.safetensors", "--to", "native")
        seeded = ["--prompt", "a bear", "--seed", 7]
        base = drawn(folder, *seeded)
        half = drawn(folder, *seeded, "--lora", f"{folder}/a/t.safetensors:0.5")
        shutil.copy(folder / "plain.png", folder / "x.png")
        assert half != base
        # --lora takes the place of the picture's files, also of itself.
        more = drawn(folder, *seeded, "--lora", f"{folder}/a/t.safetensors:0.9")
        assert again(folder, folder / "x.png", "--lora", f"{folder}/a/t.safetensors:0.9")[0] == more != half
        # Another prompt leaves them.
        other = ["--prompt", "a red apple", "--seed", 7, "--lora", f"{folder}/a/t.safetensors:0.5"]
        assert again(folder, folder / "x.png", "--prompt", "a red apple")[0] == drawn(folder, *other)
        # Two files of one name are two files, and what stands in a name does not matter.
        two = ["--lora", f"{folder}/a/t.safetensors:0.5", "--lora", f"{folder}/b/t.safetensors:0.5"]
        drawn(folder, *seeded, *two)
        shutil.copy(folder / "plain.png", folder / "y.png")
        again(folder, folder / "y.png")
        assert (folder / "again.png").read_bytes() == (folder / "y.png").read_bytes()
        drawn(folder, *seeded, "--lora", f"{folder}/c; d/t.safetensors:0.5")
        shutil.copy(folder / "plain.png", folder / "z.png")
        assert again(folder, folder / "z.png")[0] == half
        # A1111's two weights: the text encoder's, then the UNet's.
        tagged = ["--lora_dir", folder / "a", "--seed", 7, "--prompt"]
        assert drawn(folder, *tagged, "a bear<lora:t:0.5:0.5>") == half
        assert drawn(folder, *tagged, "a bear<lora:t:te=0:unet=0>") == base
        unet_only = drawn(folder, *tagged, "a bear<lora:t:0:0.5>")
        assert unet_only not in (half, base)
        shutil.copy(folder / "plain.png", folder / "w.png")
        assert again(folder, folder / "w.png")[0] == unet_only


def test_a_flag_is_never_refused_for_a_setting_of_the_picture():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        drawn(folder, "--prompt", "a cat", "--seed", 3, "--scheduler", "euler", "--use_karras_sigmas")
        shutil.copy(folder / "plain.png", folder / "karras.png")
        latents, output = again(folder, folder / "karras.png", "--scheduler", "ddim")
        assert "use_karras_sigmas (--scheduler is given)" in output, output
        assert latents == drawn(folder, "--prompt", "a cat", "--seed", 3, "--scheduler", "ddim")
        output = again(folder, folder / "karras.png", "--seeds", "1,-1")[1]
        seeds = re.findall(r"picture: \S+ \(seed (\d+)\)", output)
        assert len(seeds) == 2 and seeds[0] == "1", output
        # A picture that began with latents of a file: another seed means other noise.
        start = drawn(folder, "--prompt", "a cat", "--initial_latents", folder / "plain.safetensors", "--seed", 3)
        shutil.copy(folder / "plain.png", folder / "given.png")
        latents, output = again(folder, folder / "given.png", "--seed", 4)
        assert latents == drawn(folder, "--prompt", "a cat", "--seed", 4) != start, output


def sheet(folder, name, *more):
    """(bytes, output) of a sheet; what its settings are from stands in its text too."""
    path = folder / f"{name}.png"
    flags = ["--pretrained_model_name_or_path", MODEL, "--device", "cpu", "--output", path]
    output = run_ok("text_to_image", *flags, *more)
    return path.read_bytes(), output


def test_an_axis_takes_the_place_of_what_it_contradicts():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        cat = ["--prompt", "a cat", "--num_inference_steps", 4]
        seeds = sheet(folder, "seeds", *cat, "--xy", "seed=4,5")[0]
        drawn(folder, "--prompt", "a cat", "--seed", 3)
        drawn(folder, "--prompt", "a cat", "--seed", 3, "--initial_latents", folder / "plain.safetensors")
        shutil.copy(folder / "plain.png", folder / "given.png")
        again_seeds, output = sheet(folder, "again", "--from_png", folder / "given.png", "--xy", "seed=4,5")
        assert again_seeds == seeds and "initial_latents (--xy is given)" in output, output
        draw(folder / "batch.png", "--prompt", "a cat", "--seed", 3, "--num_images_per_prompt", 2)
        again_seeds, output = sheet(folder, "again", "--from_png", folder / "batch-1.png", "--xy", "seed=4,5")
        assert again_seeds == seeds and "Batch index (--xy is given)" in output, output
        # Noise levels that one of the samplers does not know.
        drawn(folder, "--prompt", "a cat", "--seed", 3, "--scheduler", "euler", "--use_karras_sigmas")
        samplers = ["--xy", "scheduler=ddim,euler"]
        plain = sheet(folder, "samplers", *cat, "--seed", 3, *samplers)[0]
        karras, output = sheet(folder, "again", "--from_png", folder / "plain.png", *samplers)
        assert karras == plain and "use_karras_sigmas (--xy is given)" in output, output
        # What was asked for twice is no picture's fault.
        latents = ["--initial_latents", folder / "plain.safetensors"]
        done = run(
            "text_to_image",
            "--pretrained_model_name_or_path",
            MODEL,
            *cat,
            *latents,
            "--xy",
            "seed=1,2",
            "--output",
            folder / "x.png",
        )
        assert done.returncode == 2 and "--xy" in done.stderr and "--initial_latents" in done.stderr, done


def test_what_this_model_or_sampler_does_not_know_is_named():
    import generation_test

    with scratch() as folder:
        folder = pathlib.Path(folder)
        settings = "a cat\nSteps: 4, Sampler: Euler a, {}CFG scale: 7.5, Seed: 1, Size: 64x64{}"
        plain = ["--prompt", "a cat", "--seed", 1, "--scheduler", "euler_ancestral"]
        expected = drawn(folder, *plain)
        for extra, named in [
            (("Schedule type: Karras, ", ""), "use_karras_sigmas (euler_ancestral has none)"),
            (("", ", Original size: 1024x1024, Negative target size: 64x64"), "what SDXL was told about sizes"),
        ]:
            generation_test.write_png(folder / "a.png", settings.format(*extra))
            latents, output = again(folder, folder / "a.png")
            assert latents == expected and named in output, output
        # Guidance cannot end before it begins.
        generation_test.write_png(folder / "a.png", settings.format("", ", CFG end: 0.5"))
        latents, output = again(folder, folder / "a.png", "--guidance_start", 0.75)
        assert "guidance_end (--guidance_start is given)" in output, output
        assert latents == drawn(folder, *plain, "--guidance_start", 0.75)


def test_one_of_several_pictures_from_given_latents_draws_itself_again():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        draw(folder / "x.png", "--prompt", "a", "--seeds", "1,2", "--save_latents", folder / "noise.safetensors")
        draw(
            folder / "one.png",
            *["--prompt", "a cat", "--seed", 3, "--batch_size", 1, "--save_latents", folder / "both.safetensors"],
            *["--initial_latents", folder / "noise.safetensors"],
        )
        latents = again(folder, folder / "one-1.png")[0]
        both = read_latents(folder / "both.safetensors")["latents"][1]
        assert latents == both[len(latents) :], "the second picture's"


def test_seeds_end_at_two_to_the_64_and_begin_at_a_new_one():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        first = drawn(folder, "--prompt", "a cat", "--seed", BIG)
        shutil.copy(folder / "plain.png", folder / "big.png")
        latents, output = again(folder, folder / "big.png")
        assert latents == first and f"(seed {BIG})" in output, output
        seeds = []
        for name in ["a", "b"]:
            output = draw(folder / f"{name}.png", "--prompt", "a cat", "--seed", -1)
            seeds.append(int(re.search(r"\(seed (\d+)\)", output)[1]))
        assert seeds[0] != seeds[1]
        again(folder, folder / "b.png")
        assert (folder / "again.png").read_bytes() == (folder / "b.png").read_bytes()
        output = draw(folder / "sheet.png", "--prompt", "a cat", "--xy", "seed=1,-1")
        for seed in ["-2", "1.5", str(BIG + 1), "x"]:
            done = run("text_to_image", "--pretrained_model_name_or_path", MODEL, "--prompt", "a", "--seed", seed)
            assert done.returncode == 2 and "--seed" in done.stderr and seed in done.stderr, done


def test_a1111_lines_behind_the_settings_are_named():
    import generation_test

    with scratch() as folder:
        folder = pathlib.Path(folder)
        generation_test.write_png(
            folder / "a.png",
            "a cat\nSteps: 2, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 64x64\nTemplate: a __animal__",
        )
        output = again(folder, folder / "a.png")[1]
        assert "not used: Template" in output, output


def test_an_axis_takes_the_place_of_what_nobody_knows():
    import generation_test

    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name, field, axis in [
            ("a", "Sampler: Restart", "scheduler=ddim,euler"),
            ("b", "Clip skip: 99", "clip_skip=0,1"),
            ("c", "CFG scale: x", "guidance=1,2"),
            ("d", "Seed: 1.5", "seed=1,2"),
        ]:
            generation_test.write_png(folder / f"{name}.png", f"a cat\nSteps: 1, Size: 64x64, Seed: 1, {field}")
            sheet(folder, name + "-sheet", "--from_png", folder / f"{name}.png", "--xy", axis)


if __name__ == "__main__":
    main(globals())
