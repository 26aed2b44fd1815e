# SPDX-License-Identifier: Apache-2.0
"""What a run shows: TensorBoard itself reads the event files, and the rest is as the guide says."""

import io
import json
import pathlib

import tomllib
from PIL import Image
from support import MODEL, SUBJECT, main, run, run_ok, scratch, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SHOWN = [
    "--validation_prompt",
    'a sks "bear" | on green',
    "--num_validation_images",
    2,
    "--validation_steps",
    2,
    "--validation_split",
    0.3,
]


def events(output):
    accumulator = EventAccumulator(str(output / "logs"), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def spoil(folder):
    """What a user may do to the pictures of a run is no reason for it to fail."""
    (folder / "step-000000-1.png").unlink()
    (folder / "step-000002-1.png").write_text("gone")
    (folder / "photo.png").write_text("no picture")


def test_a_validated_run_shows_all_it_should():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        train(output, *SHOWN, "--checkpointing_steps", 2, steps=4)
        losses = {entry["step"]: entry["loss"] for entry in metrics(output) if "loss" in entry}
        fixed = {entry["step"]: entry["validation_loss"] for entry in metrics(output) if "validation_loss" in entry}
        assert list(losses) == [1, 2, 3, 4] and list(fixed) == [0, 2, 4], (losses, fixed)

        logged = events(output)
        assert set(logged.Tags()["scalars"]) == {
            "loss",
            "smoothed_loss",
            "learning_rate",
            "gradient_norm",
            "validation_loss",
            *(f"validation_loss_{level * 250}_{level * 250 + 249}" for level in range(4)),
        }
        for event in logged.Scalars("loss"):
            assert abs(event.value - losses[event.step]) < 1e-6
        assert {event.step: round(event.value, 5) for event in logged.Scalars("validation_loss")} == {
            step: round(value, 5) for step, value in fixed.items()
        }
        assert sorted(logged.Tags()["images"]) == ["validation/0", "validation/1"]
        for index in [0, 1]:
            images = logged.Images(f"validation/{index}")
            assert [image.step for image in images] == [0, 2, 4]
            for image in images:
                file = output / f"validation/step-{image.step:06}-{index}.png"
                assert image.encoded_image_string == file.read_bytes()
                with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
                    assert picture.size == (image.width, image.height) == (64, 64)
        with Image.open(output / "contact_sheet.png") as sheet:
            assert sheet.width > 128 and sheet.height > 192

        # Going on replaces what came after the checkpoint, in both logs.
        spoil(output / "validation")
        more = ["--max_train_steps", 5, "--resume_from_checkpoint", "checkpoint-2"]
        text = run_ok("train_dreambooth_lora", "--config", output / "config.toml", *more)
        assert [entry["step"] for entry in metrics(output) if "loss" in entry] == [1, 2, 3, 4, 5]
        assert "not on the contact sheet: " in text and "step-000002-1.png" in text, text
        again = {entry["step"]: entry["loss"] for entry in metrics(output) if "loss" in entry}
        assert {step: again[step] for step in losses} == losses
        assert [event.step for event in events(output).Scalars("loss")] == [1, 2, 3, 4, 5]


def test_validation_pictures_and_loss_are_from_the_same_noise_each_time():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        # Nothing moves, so nothing may change.
        train(folder, *SHOWN, "--init", "both_zero", steps=2)
        before, after = [(folder / f"validation/step-{step:06}-1.png").read_bytes() for step in [0, 2]]
        assert before == after
        fixed = [entry["validation_loss"] for entry in metrics(folder) if "validation_loss" in entry]
        assert len(fixed) == 2 and fixed[0] == fixed[1]


def test_no_event_files_on_request():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        train(output, "--report_to", "none", steps=1)
        assert not (output / "logs").exists() and len(metrics(output)) == 1


def test_the_model_card_has_what_the_hub_and_its_readers_want():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        train(output, *SHOWN, "--instance_prompt", 'a "sks" bear: red', steps=2)
        text = (output / "README.md").read_text()
        _, front, body = text.split("---\n", 2)
        fields = dict(line.split(": ", 1) for line in front.splitlines() if ": " in line)
        assert json.loads(fields["base_model"]) == str(MODEL) and fields["library_name"] == "diffusers"
        assert json.loads(fields["instance_prompt"]) == 'a "sks" bear: red'
        assert "![contact_sheet.png](contact_sheet.png)" in body and "| `learning_rate` | 0.002 |" in body
        lines = [line for line in body.splitlines() if "from_pretrained(" in line or "load_lora_weights" in line]
        assert len(lines) == 2, lines
        code = body.split("```python\n")[1].split("```")[0]
        compile(code, "README.md", "exec")


def test_the_saved_configuration_repeats_the_run():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        prompt = 'a "sks" bear\'s\\ toy\t= #1, été'
        train(
            folder / "a",
            "--instance_prompt",
            prompt,
            "--target_modules",
            "to_q",
            "--target_modules",
            "to_v",
            "--noise_offset",
            0.1,
            "--random-flip",
            "--scale_lr",
            "--lr_scheduler",
            "linear",
            steps=2,
        )
        settings = tomllib.loads((folder / "a/config.toml").read_text())
        assert settings["instance_prompt"] == prompt and settings["target_modules"] == ["to_q", "to_v"]
        assert settings["random_flip"] is True and settings["center_crop"] is False
        assert settings["learning_rate"] == 0.004 and settings["resolution"] == 64
        assert settings["seed"] == 0 and "network_alpha" not in settings
        run_ok("train_dreambooth_lora", "--config", folder / "a/config.toml", "--output-dir", folder / "b")
        name = "lightlora.safetensors"
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()


def test_a_configuration_may_have_tables_and_the_command_line_wins():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        config = folder / "run.toml"
        config.write_text(f'''# A run.
pretrained_model_name_or_path = '{MODEL}'
instance_data_dir = "{SUBJECT}"
[training]
max-train-steps = 7      # with dashes
train_batch_size = 1
learning_rate = 1e-3
[data]
instance_prompt = """a bear"""
center_crop = true
target_modules = ["to_q"]
''')
        output = run_ok(
            "train_dreambooth_lora",
            "--config",
            config,
            "--output_dir",
            folder / "out",
            "--max_train_steps",
            1,
            "--target_modules",
            "to_k",
        )
        assert "Total optimization steps = 1\n" in output and "Learning rate = 0.001" in output, output
        settings = tomllib.loads((folder / "out/config.toml").read_text())
        assert settings["target_modules"] == ["to_k"] and settings["center_crop"] is True

        def fails(text, *expected):
            config.write_text(text)
            done = run("train_dreambooth_lora", f"--config={config}")
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
            assert all(part in done.stderr for part in expected), done.stderr

        fails("max_train_step = 5\n", "run.toml", "'--max_train_step'", "did you mean '--max_train_steps'")
        fails("seed = 1\nrank = \n", "run.toml' line 2")
        fails("rank = 'four'\n", "expected an integer, got 'four'")
        fails("seed = 1979-05-27\n", "run.toml' line 1", "expected text, a number")
        config.unlink()
        done = run("train_dreambooth_lora", "--config", config)
        assert done.returncode == 2 and "run.toml" in done.stderr, done


main(globals())
