# SPDX-License-Identifier: Apache-2.0
"""What a training flag reaches: seeds, epochs, the command that is printed, and what is said of flags without effect."""

import json
import pathlib
import re
import shlex
import shutil

import support
import tomllib
from support import MODEL, SUBJECT, main, read_safetensors, run, run_ok, scratch

BIG = 2**64 - 1
NATIVE = "lightlora.safetensors"


# What a flag reaches does not depend on the size of pictures: a quarter of the pixels, one of them in a batch.
SMALL = ["--resolution", 32, "--train_batch_size", 1]


def train(output, *more, steps=1):
    return support.train(output, *SMALL, *more, steps=steps)


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def seed_of(output):
    return int(tomllib.loads((output / "config.toml").read_text())["seed"])


def test_seeds_end_at_two_to_the_64_and_minus_one_is_a_new_one():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        assert "has no effect" not in train(folder / "big", "--seed", BIG)
        assert seed_of(folder / "big") == BIG
        text = train(folder / "new", "--seed", -1)
        seed = int(re.search(r"^seed: (\d+)$", text, re.M)[1])
        assert seed_of(folder / "new") == seed
        config = folder / "big/config.toml"
        run_ok("train_dreambooth_lora", "--config", config, "--output_dir", folder / "again")
        assert (folder / "again" / NATIVE).read_bytes() == (folder / "big" / NATIVE).read_bytes()
        # Going on keeps the seed that the run drew.
        train(folder / "new", "--seed", -1, "--resume_from_checkpoint", "latest", steps=2)
        assert seed_of(folder / "new") == seed


def test_an_epoch_is_as_long_as_the_larger_set_of_pictures():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        (folder / "class/1_bear").mkdir(parents=True)
        pictures = [path for path in sorted(SUBJECT.iterdir()) if path.suffix == ".png"]
        for index, picture in enumerate(pictures * 3):
            shutil.copy(picture, folder / f"class/1_bear/{index:02}.png")
        common = ["--pretrained_model_name_or_path", MODEL, "--instance_data_dir", SUBJECT]
        common += ["--instance_prompt", "a sks bear", "--device", "cpu", *SMALL, "--train_batch_size", 4]
        prior = ["--with_prior_preservation", "--class_data_dir", folder / "class", "--class_prompt", "a bear"]
        # diffusers: max(class pictures, instance pictures) / batch size; sub-folders count.
        for count, steps in [(len(pictures) * 3, -(-len(pictures) * 3 // 4)), (8, 2)]:
            text = run_ok(
                "train_dreambooth_lora",
                *common,
                *prior,
                "--num_class_images",
                count,
                "--output_dir",
                folder / str(count),
            )
            assert f"Total optimization steps = {steps}\n" in text and "Class pictures" not in text, text
            assert (f"the first 8 of {len(pictures) * 3} class pictures" in text) == (count == 8), text


def test_the_printed_command_draws_with_all_that_it_was_trained_with():
    with scratch() as folder:
        folder = pathlib.Path(folder) / "it's $HOME"
        folder.mkdir()
        prompt = 'a "sks" bear\'s $PATH `x`\n(new)'
        text = train(folder / "out", "--clip_skip", 1, "--prediction_type", "v_prediction")
        command = text.split("draw with it:   ")[1].split("--output picture.png")[0]
        assert "--clip_skip 1" in command and "--prediction_type v_prediction" in command, command
        text = train(folder / "quoted", "--instance_prompt", prompt, "--clip_skip", 1)
        command = text.split("draw with it:   ")[1].split(" --output picture.png")[0]
        words = shlex.split(command)
        assert words[words.index("--prompt") + 1] == prompt, words
        assert words[words.index("--lora") + 1] == str(folder / "quoted" / NATIVE), words
        run_ok(*words, "--num_inference_steps", 1, "--device", "cpu", "--output", folder / "x.png")
        card = (folder / "quoted/README.md").read_text()
        assert "--clip_skip 1" in card.split("```sh\n")[1].split("```")[0], card
        # The file keeps it, and sd-scripts' readers count from one.
        run_ok("convert_lora", "--input", folder / "quoted" / NATIVE, "--output", folder / "k", "--to", "kohya")
        assert read_safetensors(folder / "k")[0]["__metadata__"]["ss_clip_skip"] == "2"


def test_a_skipped_step_is_none_of_the_schedule():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        (pathlib.Path(folder) / "class").mkdir()
        for picture in SUBJECT.glob("*.png"):
            shutil.copy(picture, pathlib.Path(folder) / "class")
        # A loss so large that fp16 overflows until its scale has fallen; accelerate waits as well.
        prior = ["--with_prior_preservation", "--class_data_dir", pathlib.Path(folder) / "class"]
        prior += ["--class_prompt", "a bear", "--num_class_images", 1, "--prior_loss_weight", 3000]
        warm = ["--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", 100, "--learning_rate", 1e-4]
        train(output, *prior, *warm, "--mixed_precision", "fp16", steps=8)
        entries = metrics(output)
        done = 0
        for entry in entries:
            assert abs(entry["learning_rate"] - 1e-4 * done / 100) < 1e-12, (entry, done)
            done += entry["gradient_norm"] > 0
        assert 0 < done < len(entries), entries


def test_flags_without_effect_are_said():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        text = train(
            folder / "a",
            "--lr_warmup_steps",
            10,
            "--sgd_momentum",
            0.9,
            "--num_class_images",
            5,
            "--num_validation_images",
            2,
            "--text_encoder_target_modules",
            "q_proj",
        )
        for flag in [
            "lr_warmup_steps",
            "sgd_momentum",
            "num_class_images",
            "num_validation_images",
            "text_encoder_target_modules",
        ]:
            assert f"notice: --{flag} has no effect with" in text, (flag, text)
        text = train(folder / "b", "--optimizer", "prodigy", "--learning_rate", 0.5)
        assert "--learning_rate 0.5 is a factor of the rate that prodigy finds" in text, text


def test_long_captions_are_read_in_chunks():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        shutil.copytree(SUBJECT, folder / "pictures", ignore=shutil.ignore_patterns("*.txt", "*.jsonl"))
        long = " ".join(["a red bear on green"] * 18)
        results = []
        for name, caption, more in [
            ("cut", long, []),
            ("short", long[: len(long) // 2], ["--max_token_length", 150]),
            ("whole", long, ["--max_token_length", 150]),
        ]:
            more += ["--instance_data_dir", folder / "pictures"]
            text = train(folder / name, "--instance_prompt", caption, *more)
            assert ("--max_token_length 225" in text) == (name == "cut"), text
            results.append((folder / name / NATIVE).read_bytes())
        assert len(set(results)) == 3


def test_prompts_of_a_file_have_settings_of_their_own():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        file = folder / "prompts.txt"
        file.write_text("# two\na red apple --n blurry --w 32 --h 64 --d 9 --s 2 --l 5.5\n\na sks bear --s 2\n")
        train(folder / "out", "--sample_prompts", file, "--validation_steps", 1)
        names = sorted(path.name for path in (folder / "out/validation").iterdir())
        assert names == [f"step-{step:06}-{index}.png" for step in [0, 1] for index in [0, 1]], names
        header = (folder / "out/validation/step-000000-0.png").read_bytes()[16:24]
        assert (int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")) == (32, 64)
        file.write_text("a bear --x 3\n")
        common = ["--pretrained_model_name_or_path", MODEL, "--instance_data_dir", SUBJECT, "--instance_prompt", "x"]
        done = run("train_dreambooth_lora", *common, "--output_dir", folder / "bad", "--sample_prompts", file)
        assert done.returncode == 1 and "prompts.txt' line 1" in done.stderr and "--x" in done.stderr, done.stderr


def test_masks_come_from_a_folder_or_from_transparency():
    from PIL import Image

    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name in ["masks", "clear", "plain"]:
            (folder / name).mkdir()
        for picture in SUBJECT.glob("*.png"):
            with Image.open(picture) as image:
                rgb = image.convert("RGB")
            mask = Image.new("L", rgb.size, 0)
            mask.paste(255, (0, 0, rgb.width // 2, rgb.height))
            mask.save(folder / "masks" / picture.name)
            rgb.save(folder / "plain" / picture.name)
            rgb.putalpha(mask)
            rgb.save(folder / "clear" / picture.name)
        train(folder / "a", "--instance_data_dir", folder / "plain")
        pair = ["--masked_loss", "--conditioning_data_dir", folder / "masks"]
        train(folder / "b", "--instance_data_dir", folder / "plain", *pair)
        train(folder / "c", "--instance_data_dir", folder / "clear", "--masked_loss")
        results = [(folder / name / NATIVE).read_bytes() for name in "abc"]
        assert results[1] == results[2] != results[0]
        losses = [metrics(folder / name)[0]["loss"] for name in "ab"]
        assert losses[1] < 0.8 * losses[0], losses
        next((folder / "masks").iterdir()).unlink()
        common = ["--pretrained_model_name_or_path", MODEL, "--instance_prompt", "x"]
        common += ["--instance_data_dir", folder / "plain", "--output_dir", folder / "d"]
        done = run("train_dreambooth_lora", *common, *pair)
        assert done.returncode == 1 and "expected a mask of this name" in done.stderr, done.stderr


def test_losses_of_sd_scripts_train():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        flags = {
            "l2": [],
            "gamma": ["--min_snr_gamma", 5],
            "huber": ["--loss_type", "huber", "--huber_schedule", "exponential"],
            "smooth": ["--loss_type", "smooth_l1"],
            "debiased": ["--debiased_estimation_loss"],
        }
        losses = []
        for name, more in flags.items():
            train(folder / name, *more)
            losses.append(metrics(folder / name)[0]["loss"])
        assert len(set(losses)) == len(flags), losses


def test_a_caption_in_another_encoding_is_named():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        shutil.copytree(SUBJECT, folder / "pictures", ignore=shutil.ignore_patterns("*.txt"))
        picture = next((folder / "pictures").glob("*.png"))
        caption = picture.with_suffix(".txt")
        for data, said in [
            ("un ours \xe9t\xe9".encode("latin-1"), "Latin-1"),
            ("an ours".encode("utf-16"), "UTF-16"),
            ("an ours".encode("utf-16-le"), "UTF-16"),
        ]:
            caption.write_bytes(data)
            done = run(
                "train_dreambooth_lora",
                "--pretrained_model_name_or_path",
                MODEL,
                "--instance_data_dir",
                folder / "pictures",
                "--instance_prompt",
                "x",
                "--output_dir",
                folder / "out",
            )
            assert done.returncode == 1 and f"'{caption}'" in done.stderr and said in done.stderr, done.stderr
        caption.write_bytes(b"\xef\xbb\xbf" + "un ours été".encode())
        train(folder / "marked", "--instance_data_dir", folder / "pictures")


main(globals())
