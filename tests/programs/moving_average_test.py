# SPDX-License-Identifier: Apache-2.0
"""--use_ema: what is saved is diffusers' moving average, also after a resume; the training itself stays as it was.
A validation says where, between no noise and nothing else, the loss lies."""

import array
import json
import pathlib
import shutil

import support
from support import main, read_safetensors, run, scratch

NATIVE = "lightlora.safetensors"
SMALL = ["--resolution", 32, "--train_batch_size", 1, "--checkpointing_steps", 1, "--learning_rate", 0.01]


def train(output, *more, steps):
    return support.train(output, *SMALL, *more, steps=steps)


def values(file):
    return array.array("f", read_safetensors(file)[1])


def test_the_files_hold_the_average_of_diffusers():
    steps = 4
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "plain", steps=steps)
        train(folder / "average", "--use_ema", "--ema_decay", 0.25, steps=steps)
        expected = None
        for done in range(1, steps + 1):
            now = values(folder / f"plain/checkpoint-{done}" / NATIVE)
            # diffusers' EMAModel.get_decay: none for the first update, then (1 + n) / (10 + n).
            decay = 0 if done == 1 else min(0.25, done / (9 + done))
            expected = now if done == 1 else [e - (1 - decay) * (e - v) for e, v in zip(expected, now)]
            for place in [f"checkpoint-{done}"] + ([""] if done == steps else []):
                found = values(folder / "average" / place / NATIVE)
                # fp32 rounding of values up to 1; seen: 6e-8.
                assert max(abs(a - b) for a, b in zip(found, expected)) < 1e-6, (done, place)
        assert values(folder / "average" / NATIVE) != values(folder / "plain" / NATIVE)
        # A decay of 0 is no average at all, but for the rounding of a - (a - v).
        train(folder / "none", "--use_ema", "--ema_decay", 0, steps=steps)
        found, expected = values(folder / "none" / NATIVE), values(folder / "plain" / NATIVE)
        assert max(abs(a - b) for a, b in zip(found, expected)) < 1e-6


def test_a_resumed_average_ends_with_the_same_bytes():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "whole", "--use_ema", steps=4)
        shutil.copytree(folder / "whole", folder / "half")
        for step in [3, 4]:
            shutil.rmtree(folder / f"half/checkpoint-{step}")
        text = train(folder / "half", "--use_ema", "--resume_from_checkpoint", "latest", steps=4)
        assert "at step 2 of 4" in text and "made with other settings" not in text, text
        for name in [NATIVE, "pytorch_lora_weights.safetensors", f"checkpoint-4/{NATIVE}"]:
            assert (folder / "half" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
        # Without the average the run goes on from what was trained, and not from the average.
        shutil.rmtree(folder / "half/checkpoint-4")
        train(folder / "plain", steps=4)
        train(folder / "half", "--resume_from_checkpoint", "checkpoint-3", steps=4)
        assert (folder / "half" / NATIVE).read_bytes() == (folder / "plain" / NATIVE).read_bytes()


def test_the_validation_loss_is_told_by_noise_level():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        train(output, "--validation_split", 0.2, "--validation_steps", 1, steps=1)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        entries = [entry for entry in lines if "validation_loss" in entry]
        names = [f"validation_loss_{level * 250}_{level * 250 + 249}" for level in range(4)]
        assert len(entries) == 2
        for entry in entries:
            levels = [entry[name] for name in names]
            # Eight samples, evenly spread: two in each quarter.
            assert abs(sum(levels) / 4 - entry["validation_loss"]) < 1e-6 * entry["validation_loss"], entry
            assert len(set(levels)) == 4, entry


def test_a_large_photo_trains_as_its_small_copy():
    from PIL import Image

    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name in ["large", "small"]:
            (folder / name).mkdir()
        losses = {}
        for index, picture in enumerate(sorted(support.SUBJECT.glob("*.png"))):
            with Image.open(picture) as image:
                rgb = image.convert("RGB")
            # Turned by its orientation mark, as telephones do: the sides of the file are exchanged.
            exif = Image.Exif()
            exif[0x0112] = 6
            huge = rgb.resize((1600, 1200), Image.Resampling.BICUBIC)
            huge.save(folder / f"large/{index}.jpg", quality=95, exif=exif)
            huge.transpose(Image.Transpose.ROTATE_270).resize((32, 42), Image.Resampling.LANCZOS).save(
                folder / f"small/{index}.png"
            )
        for name in ["large", "small"]:
            train(folder / f"{name}_out", "--instance_data_dir", folder / name, "--center_crop", steps=1)
            lines = (folder / f"{name}_out/metrics.jsonl").read_text().splitlines()
            losses[name] = json.loads(lines[0])["loss"]
        # JPEG's own loss and one more resampling.
        assert abs(losses["large"] / losses["small"] - 1) < 0.02, losses


def test_the_average_says_what_it_needs():
    with scratch() as folder:
        text = train(pathlib.Path(folder) / "a", "--ema_decay", 0.9, steps=1)
        assert "notice: --ema_decay has no effect without --use_ema" in text, text
        done = run("train_dreambooth_lora", "--use_ema", "--ema_decay", 1.5)
        assert done.returncode == 2 and "--ema_decay" in done.stderr, done.stderr


main(globals())
