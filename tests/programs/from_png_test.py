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


if __name__ == "__main__":
    main(globals())
