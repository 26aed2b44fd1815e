# SPDX-License-Identifier: Apache-2.0
"""What a training flag reaches: seeds, epochs, the command that is printed, and what is said of flags without effect."""

import json
import pathlib
import re
import shlex
import shutil

import support
import tomllib
from support import FACTOR, MODEL, SUBJECT, TOKENS, main, read_safetensors, run, run_ok, scratch

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


def pixels(path):
    from PIL import Image

    with Image.open(path) as picture:
        return picture.tobytes()


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
        # A caption is trained as it stands; as A1111 reads it, its brackets are weights.
        few = ["--num_inference_steps", 1, "--device", "cpu", "--seed", 1]
        run_ok(*words, *few, "--output", folder / "x.png")
        run_ok(*words, *few, "--prompt_syntax", "plain", "--output", folder / "plain.png")
        run_ok(*words, *few, "--prompt_syntax", "a1111", "--output", folder / "weighted.png")
        pictures = [pixels(folder / name) for name in ["x.png", "plain.png", "weighted.png"]]
        assert pictures[0] == pictures[1] != pictures[2]
        card = (folder / "quoted/README.md").read_text()
        command = card.split("```sh\n")[1].split("```")[0]
        assert "--clip_skip 1" in command and "--prompt_syntax plain" in command, card
        code = card.split("```python\n")[1].split("```")[0]
        assert f"image = pipe({json.dumps(prompt)}, clip_skip=1).images[0]" in code, code
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


def test_a_file_to_go_on_from_decides_and_dropout_is_the_runs():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        assert "has no effect" not in train(folder / "start")
        start = ["--init_from", folder / "start" / NATIVE]
        decided = {"variant": "classic", "target_modules": "to_q", "aux_in": 8, "rank": 2, "init": "down_zero"}
        decided.update(network_alpha=2, rank_pattern="to_q=2", alpha_pattern="to_q=2")
        text = train(folder / "all", *start, *(part for k, v in decided.items() for part in (f"--{k}", v)))
        for flag in decided:
            assert f"notice: --{flag} has no effect beside --init_from" in text, (flag, text)
        # With --relax_rank new adapters train, for which these count.
        more = ["--relax_rank", 2, "--network_alpha", 2, "--rank_pattern", "to_q=1"]
        assert "has no effect" not in train(folder / "relaxed", *start, *more)
        results = [(folder / "all" / NATIVE).read_bytes()]
        train(folder / "none", *start)
        assert (folder / "none" / NATIVE).read_bytes() == results[0]
        for kind in ["lora_dropout", "rank_dropout", "module_dropout"]:
            assert "has no effect" not in train(folder / kind, *start, f"--{kind}", 0.5)
            results.append((folder / kind / NATIVE).read_bytes())
        assert len(set(results)) == len(results)


def test_validating_or_masking_nothing_is_said():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        text = train(folder / "a", "--validation_epochs", 2)
        assert "notice: --validation_epochs has no effect without --validation_prompt" in text, text
        assert "has no effect" not in train(folder / "b", "--validation_epochs", 2, "--validation_split", 0.3)
        for flag in ["--masked_loss", "--alpha_mask"]:
            text = train(folder / flag, flag)
            assert "pictures has transparency: --masked_loss and --alpha_mask change nothing" in text, text


def test_long_captions_are_read_in_chunks():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        shutil.copytree(SUBJECT, folder / "pictures", ignore=shutil.ignore_patterns("*.txt", "*.jsonl"))
        # More than one chunk holds, at most two; the half fits into one.
        long = " ".join(["a red bear on green"] * ((TOKENS - 2) * 6 // 25))
        results = []
        for name, caption, more in [
            ("cut", long, []),
            ("short", long[: len(long) // 2], ["--max_token_length", 150]),
            ("whole", long, ["--max_token_length", 150]),
        ]:
            more += ["--instance_data_dir", folder / "pictures"]
            text = train(folder / name, "--instance_prompt", caption, *more)
            assert ("--max_token_length 225" in text) == (name == "cut"), text
            assert text.count("is not used: '") == (name == "cut"), text
            results.append((folder / name / NATIVE).read_bytes())
        assert len(set(results)) == 3


def test_prompts_of_a_file_have_settings_of_their_own():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        file = folder / "prompts.txt"
        # Sizes are cut to what the model can draw, as in sd-scripts.
        size = f"--w {32 + FACTOR - 1} --h {64 + FACTOR - 1}"
        file.write_text(f"# two\na red apple --n blurry {size} --d 9 --s 2 --l 5.5\n\na sks bear --s 2\n")
        train(folder / "out", "--sample_prompts", file, "--validation_steps", 1)
        names = sorted(path.name for path in (folder / "out/validation").iterdir())
        assert names == [f"step-{step:06}-{index}.png" for step in [0, 1] for index in [0, 1]], names
        header = (folder / "out/validation/step-000000-0.png").read_bytes()[16:24]
        assert (int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")) == (32, 64)
        file.write_text("a bear --x 3\n")
        common = ["--pretrained_model_name_or_path", MODEL, "--instance_data_dir", SUBJECT, "--instance_prompt", "x"]
        done = run("train_dreambooth_lora", *common, "--output_dir", folder / "bad", "--sample_prompts", file)
        assert done.returncode == 1 and "prompts.txt' line 1" in done.stderr and "--x" in done.stderr, done.stderr
        for name, text, said in [
            ("latin.txt", "un ours \xe9t\xe9".encode("latin-1"), "Latin-1"),
            ("latin.json", b'["un ours \xe9t\xe9"]', "Latin-1"),
            ("a.json", b'[{"prompt": "a", "sample_sampler": "ddim"}]', "prompt 1: expected prompt, negative_prompt"),
            ("b.json", b'[{"prompt": "a", "width": "wide"}]', "expected a number as 'width', got 'wide'"),
            ("c.json", b"{}", "expected a list of prompts"),
            ("a.toml", b'[prompt]\nprompt = "a"\n', "expected [prompt] with a [[prompt.subset]]"),
        ]:
            (folder / name).write_bytes(text)
            more = ["--output_dir", folder / "bad", "--sample_prompts", folder / name, "--allow_large"]
            done = run("train_dreambooth_lora", *common, *more)
            assert done.returncode == 1 and f"'{folder / name}'" in done.stderr and said in done.stderr, done.stderr


def test_prompts_are_read_from_every_form_of_sd_scripts():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        forms = {
            # With the byte order mark of Windows' editors, behind which a comment is one.
            "a.txt": "\ufeff# two\na bear --n blurry --w 32 --h 64 --s 1 --d 7 --l 2\na bear --n dark --s 1\n",
            "a.json": json.dumps(
                [
                    dict(
                        prompt="a bear", negative_prompt="blurry", width=32, height=64, sample_steps=1, seed=7, scale=2
                    ),
                    "a bear --n dark --s 1",
                ]
            ),
            "a.toml": '[prompt]\nprompt = "a bear"\nsample_steps = 1\n[[prompt.subset]]\nnegative_prompt = "blurry"\n'
            'width = 32\nheight = 64\nseed = 7\nscale = 2.0\n[[prompt.subset]]\nnegative_prompt = "dark"\n',
        }
        drawn = []
        for name, text in forms.items():
            (folder / name).write_text(text, encoding="utf-8")
            train(folder / f"{name}-out", "--sample_prompts", folder / name, "--validation_steps", 1)
            shown = sorted((folder / f"{name}-out/validation").iterdir())
            assert len(shown) == 4, shown
            drawn.append([path.read_bytes() for path in shown])
        assert drawn[0] == drawn[1] == drawn[2]
        # -1 is a new seed, which the picture names.
        (folder / "new.txt").write_text("a bear --s 1 --d -1\na bear --s 1 --d -1\n")
        train(folder / "new", "--sample_prompts", folder / "new.txt", "--validation_steps", 1)
        shown = [pixels(folder / f"new/validation/step-000000-{index}.png") for index in [0, 1]]
        assert shown[0] != shown[1]


def test_pictures_of_a_run_say_how_to_draw_them_again():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        (folder / "prompts.txt").write_text("a (sks:1.3) bear --n blurry --w 32 --h 64 --s 2 --l 3 --d 7\n")
        prior = ["--with_prior_preservation", "--class_data_dir", folder / "class", "--class_prompt", "a [bear]"]
        more = ["--sample_prompts", folder / "prompts.txt", "--validation_steps", 1, "--num_class_images", 1]
        train(folder / "out", *prior, *more, "--clip_skip", 1)
        for picture in [folder / "class/class-0.png", folder / "out/validation/step-000000-0.png"]:
            again = folder / "again.png"
            common = ["--pretrained_model_name_or_path", MODEL, "--device", "cpu", "--dtype", "fp32"]
            run_ok("text_to_image", *common, "--from_png", picture, "--output", again)
            one, other = pixels(picture), pixels(again)
            # Weights in another layout round otherwise.
            assert len(one) == len(other) and max(abs(a - b) for a, b in zip(one, other)) <= 2, picture
        header = again.read_bytes()[16:24]
        assert (int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")) == (32, 64)


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


def test_a_memory_limit_changes_no_bit():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        files = []
        for name, more in [("without", []), ("limit", ["--memory_limit", "1MB"]), ("other", ["--memory-limit=6GB"])]:
            text = train(folder / name, "--gradient_checkpointing", *more, steps=2)
            assert ("--memory_limit: expected at most 1000000 bytes" in text) == (name == "limit"), text
            files.append((folder / name / NATIVE).read_bytes())
            assert not list((folder / name).glob(".weights*"))
        assert files[0] == files[1] == files[2]
        config = tomllib.loads((folder / "limit/config.toml").read_text())
        assert config["memory_limit"] == "1000000", config
        pictures = []
        for name, more in [("a.png", ["--pack_weights", "off"]), ("b.png", ["--memory_limit", "1MB"])]:
            support.draw(folder / name, "--prompt", "a pizza", "--seed", 1, *more)
            pictures.append((folder / name).read_bytes().split(b"IDAT")[1])
        assert pictures[0] == pictures[1]
        for value, said in [("6XB", "a size such as 6GB"), ("-1", "a size such as 6GB")]:
            done = run("text_to_image", "--prompt", "x", f"--memory_limit={value}")
            assert done.returncode == 2 and said in done.stderr, done.stderr
        flags = ["--pretrained_model_name_or_path", MODEL, "--prompt", "x", "--output", folder / "c.png"]
        done = run("text_to_image", *flags, "--memory_limit", "1GB", "--pack_weights", "on")
        assert done.returncode == 2 and "cannot be combined" in done.stderr, done.stderr


main(globals())
