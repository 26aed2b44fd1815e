# SPDX-License-Identifier: Apache-2.0
"""What text_to_image offers beside the pictures: settings in the file and back, LoRA files named in
the prompt, grids, and errors that help."""

import json
import pathlib
import shutil
import struct
import zlib

from support import FACTOR, MODEL, draw, main, read_latents, run, run_ok, scratch, train


def text_chunk(path, key=b"parameters"):
    data, at = pathlib.Path(path).read_bytes(), 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        if kind == b"tEXt" and body.startswith(key + b"\0"):
            return body[len(key) + 1 :].decode("latin-1")
        at += size + 12
    return None


def write_png(path, text):
    """One grey pixel with settings, as other programs write them."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pathlib.Path(path).write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tEXt", b"parameters\0" + text.encode("latin-1"))
        + chunk(b"IDAT", zlib.compress(b"\0\x80"))
        + chunk(b"IEND", b"")
    )


def again(folder, png, *more):
    """The picture that a PNG's settings give."""
    run_ok(
        "text_to_image",
        "--pretrained_model_name_or_path",
        MODEL,
        "--device",
        "cpu",
        "--from_png",
        png,
        "--output",
        folder / "again.png",
        *more,
    )
    return (folder / "again.png").read_bytes()


def fails(status, *expected, arguments):
    done = run("text_to_image", "--pretrained_model_name_or_path", MODEL, "--device", "cpu", *arguments)
    assert done.returncode == status, (done.returncode, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for text in expected:
        assert text in done.stderr, (text, done.stderr)


def test_a_picture_draws_itself_again():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        lora = folder / "fruit, red.safetensors"
        train(folder / "out", "--learning_rate", "0.02")
        shutil.copy(folder / "out/lightlora.safetensors", lora)
        draw(
            folder / "x.png",
            "--prompt",
            "a (red:1.3) apple, new: [small]",
            "--negative_prompt",
            "blurry, grey",
            "--seed",
            7,
            "--guidance_scale",
            5.25,
            "--scheduler",
            "euler_ancestral",
            "--lora",
            f"{lora}:0.75",
            "--clip_skip",
            1,
        )
        text = text_chunk(folder / "x.png")
        assert text.startswith(
            "a (red:1.3) apple, new: [small] <lora:fruit, red:0.75>\n"
            "Negative prompt: blurry, grey\nSteps: 4, Sampler: Euler a, CFG scale: 5.25, "
            "Seed: 7, Size: 64x64, Model: base, Clip skip: 2, LoRA files: "
        ), text
        assert again(folder, folder / "x.png") == (folder / "x.png").read_bytes()
        other = again(folder, folder / "x.png", "--seed", 8)
        assert "Seed: 8, " in text_chunk(folder / "again.png") and other != (folder / "x.png").read_bytes()


def test_one_picture_of_a_batch_draws_itself_again():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        draw(
            folder / "x.png",
            "--prompt",
            "a cat",
            "--seed",
            3,
            "--num_images_per_prompt",
            3,
            "--batch_size",
            2,
            "--scheduler",
            "ddpm",
            "--grid",
        )
        assert sorted(path.name for path in folder.iterdir()) == ["x-0.png", "x-1.png", "x-2.png", "x-grid.png"]
        assert text_chunk(folder / "x-1.png").count("Batch index: 1/3") == 1
        again(folder, folder / "x-1.png", "--save_latents", folder / "one.safetensors")
        assert text_chunk(folder / "again.png") == text_chunk(folder / "x-1.png")
        draw(
            folder / "y.png",
            "--prompt",
            "a cat",
            "--seed",
            3,
            "--num_images_per_prompt",
            3,
            "--scheduler",
            "ddpm",
            "--save_latents",
            folder / "all.safetensors",
        )
        _, one = read_latents(folder / "one.safetensors")["latents"]
        _, whole = read_latents(folder / "all.safetensors")["latents"]
        row = whole[len(one) : 2 * len(one)]
        # A batch and a single picture are summed in another order.
        assert max(abs(a - b) for a, b in zip(one, row)) < 1e-3 * max(map(abs, row))


def test_settings_of_a1111_are_read():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        write_png(
            folder / "a.png",
            "a red apple\non a table\nNegative prompt: blurry,\nbad\nSteps: 3, "
            "Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 11, Size: 32x64, Model hash: 6ce0161689, "
            'Model: v1-5-pruned, Clip skip: 2, Hashes: {"model": "6ce0161689"}, Version: v1.6.0',
        )
        output = run_ok(
            "text_to_image",
            "--pretrained_model_name_or_path",
            MODEL,
            "--device",
            "cpu",
            "--from_png",
            folder / "a.png",
            "--output",
            folder / "b.png",
        )
        assert "not used: Model hash, Hashes" in output, output
        text = text_chunk(folder / "b.png")
        assert text.startswith(
            "a red apple\non a table\nNegative prompt: blurry,\nbad\nSteps: 3, Sampler: DPM++ 2M, "
            "Schedule type: Karras, CFG scale: 7, Seed: 11, Size: 32x64, "
        ), text
        assert "Clip skip: 2" in text
        write_png(folder / "c.png", "a cat\nSteps: 3, Sampler: DPM++ SDE, CFG scale: 7, Seed: 1, Size: 64x64")
        fails(1, "c.png", "DPM++ SDE", "--scheduler", arguments=["--from_png", folder / "c.png", "--output", "x.png"])
        write_png(folder / "d.png", "a cat")
        fails(1, "d.png", "Steps: 20", arguments=["--from_png", folder / "d.png", "--output", "x.png"])
        shutil.copy(MODEL.parent / "teddy_bear/0_purple.png", folder / "e.png")
        fails(1, "e.png", "'parameters'", arguments=["--from_png", folder / "e.png", "--output", "x.png"])


def test_a_prompt_names_lora_files():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "out", "--learning_rate", "0.02")
        (folder / "loras/sub").mkdir(parents=True)
        for name in ["teddy", "sub/fruit"]:
            shutil.copy(folder / "out/lightlora.safetensors", folder / f"loras/{name}.safetensors")
        plain = ["--seed", 1, "--lora_dir", folder / "loras"]
        latents = {}
        for key, prompt, more in [
            ("base", "a bear", []),
            ("tag", "a <lora:teddy:0.5> bear", []),
            ("flag", "a bear", ["--lora", f"{folder}/loras/teddy.safetensors:0.5"]),
            ("sub", "<lora:sub/fruit:0.5>a bear", []),
            ("off", "a bear<lora:fruit:0>", []),
        ]:
            draw(folder / "x.png", "--prompt", prompt, *plain, *more, "--save_latents", folder / "l.safetensors")
            latents[key] = read_latents(folder / "l.safetensors")["latents"][1]
        # Links that lead back, to themselves and to nothing are no endless search.
        (folder / "loras/sub/back").symlink_to(folder / "loras")
        (folder / "loras/self").symlink_to("self")
        (folder / "loras/sub/none").symlink_to("nothing")
        tagged = ["--prompt", "a <lora:teddy:0.5> bear", *plain]
        draw(folder / "x.png", *tagged, "--save_latents", folder / "l.safetensors")
        assert read_latents(folder / "l.safetensors")["latents"][1] == latents["tag"]
        assert latents["tag"] == latents["flag"] == latents["sub"] != latents["base"] == latents["off"]
        arguments = ["--output", folder / "x.png", "--lora_dir", folder / "loras", "--prompt"]
        fails(1, "<lora:tedy>", "did you mean 'teddy'?", arguments=[*arguments, "<lora:tedy:1> a"])
        fails(1, "<lora:zzz>", "there are fruit, teddy", arguments=[*arguments, "<lora:zzz> a"])
        fails(2, "<lora:teddy:x>", "one number", arguments=[*arguments, "<lora:teddy:x> a"])
        fails(1, "--lora_dir", arguments=["--output", folder / "x.png", "--prompt", "<lora:teddy>"])


def test_a_sheet_shows_two_axes():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "out", "--learning_rate", "0.02")
        output = draw(
            folder / "x.png",
            "--prompt",
            "a cat",
            "--seed",
            1,
            "--lora",
            folder / "out/lightlora.safetensors",
            "--xy",
            "lora_weight=0,1",
            "--xy",
            "seed=1,2,3",
        )
        assert "sheet: " in output and [path.name for path in folder.glob("*.png")] == ["x.png"]
        text = text_chunk(folder / "x.png")
        assert 'X Type: LoRA weight, X Values: "0, 1", Y Type: Seed, Y Values: "1, 2, 3"' in text, text
        arguments = ["--prompt", "a", "--output", folder / "y.png", "--xy"]
        fails(2, "did you mean 'steps'?", arguments=[*arguments, "step=1"])
        fails(2, "a whole number from 1 for steps, got '0'", arguments=[*arguments, "steps=0"])
        fails(2, "NAME=V1,V2", arguments=[*arguments, "steps"])
        fails(2, "expected a --lora", arguments=[*arguments, "lora_weight=1"])
        assert not (folder / "y.png").exists()


def test_tokens_are_those_of_the_text_unless_weights_are_asked_for():
    def tokens(prompt, *more):
        output = run_ok(
            "text_to_image", "--pretrained_model_name_or_path", MODEL, "--prompt", prompt, "--print_tokens", *more
        )
        return [json.loads(line) for line in output.splitlines()]

    assert tokens("(red:1.2) apple") != tokens("red apple")
    assert tokens("(red:1.2) apple", "--prompt_syntax", "a1111") == tokens("red apple")
    assert len(tokens("red BREAK apple", "--prompt_syntax", "a1111")) == 2
    assert tokens("red BREAK apple", "--prompt_syntax", "a1111")[1] == tokens("apple")[0]


def test_flags_that_play_no_part_are_named():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        draw(folder / "a.png", "--prompt", "a", "--seeds", "1,2", "--save_latents", folder / "two.safetensors")
        drawing = [folder / "x.png", "--prompt", "a cat", "--seed", 1]
        for flags, named in [
            (["--guidance_rescale", 0.7, "--guidance_scale", 1], "--guidance_rescale has no effect with a --guid"),
            (
                ["--initial_latents", folder / "two.safetensors", "--num_images_per_prompt", 3],
                "--num_images_per_prompt has no effect with --initial_latents, which are those of 2 pictures",
            ),
            (["--lora_dir", folder], "--lora_dir has no effect without a <lora:name> in the prompt"),
            (["--model_config", folder], "--model_config has no effect with a folder"),
            (["--prompt", "a <hypernet:anime:0.5> cat"], "'<hypernet:anime:0.5>' is not used"),
            (["--xy", "seed=1,2", "--batch_size", 2], "--batch_size has no effect with --xy"),
        ]:
            output = draw(*drawing, *flags)
            assert f"notice: {named}" in output, (flags, output)
        shutil.copy(MODEL.parent / "teddy_bear/0_purple.png", folder / "opaque.png")
        assert "transparency" not in draw(*drawing, "--image", folder / "opaque.png")
        (folder / "clear.gif").write_bytes(
            b"GIF89a\x40\0\x40\0\x81\0\0\xff\0\0\0\0\xff\0\0\0\0\0\0\x21\xf9\4\1\0\0\0\0"
            b"\x2c\0\0\0\0\2\0\1\0\0\2\2\x44\x0a\0\x3b"
        )
        output = draw(*drawing, "--image", folder / "clear.gif")
        assert f"notice: '{folder}/clear.gif': its transparency is dropped" in output, output
        # What one column uses is used.
        flags = ["--guidance_rescale", 0.7, "--xy", "guidance=1,5"]
        assert "has no effect" not in draw(*drawing, *flags)


def test_every_spelling_of_an_ending_counts():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name in ["x.jpg", "x.JPG", "x.Jpeg", "x.WEBP", "x.TIFF"]:
            fails(2, name, ".png", arguments=["--prompt", "a", "--output", folder / name])
        draw(folder / "X.PNG", "--prompt", "a", "--seeds", "1,2")
        assert sorted(path.name for path in folder.iterdir()) == ["X-0.PNG", "X-1.PNG"]


def test_errors_say_what_to_change():
    with scratch() as folder:
        arguments = ["--prompt", "a", "--output", pathlib.Path(folder) / "x.png"]
        near = (65 + FACTOR // 2) // FACTOR * FACTOR
        said = f"multiples of {FACTOR}, got 65 and 64; hint: {near} and 64"
        fails(2, said, arguments=[*arguments, "--height", 65])
        fails(2, "--prompt", arguments=["--output", "x.png"])
        fails(
            2,
            "--strength",
            "one of 4 steps",
            arguments=[
                *arguments,
                "--image",
                MODEL.parent / "teddy_bear/0_purple.png",
                "--strength",
                0.1,
                "--num_inference_steps",
                4,
            ],
        )
        fails(1, "none.png", arguments=[*arguments, "--image", "none.png"])
        fails(2, "--use_karras_sigmas", "euler", arguments=[*arguments, "--use_karras_sigmas"])
        fails(2, "whole numbers", arguments=[*arguments, "--seeds", "1,x"])
        fails(2, "from 0 to", arguments=[*arguments, "--clip_skip", 99])
        assert not list(pathlib.Path(folder).iterdir())


if __name__ == "__main__":
    main(globals())
