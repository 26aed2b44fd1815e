# SPDX-License-Identifier: Apache-2.0
"""What the trainer's flags do: captions, prior preservation, text encoder, precision, memory."""

import json
import os
import pathlib
import re
import shutil

from support import SUBJECT, main, read_safetensors, run, scratch, subject_flags, train

NATIVE = "lightlora.safetensors"


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_captions_change_what_is_learned_and_equal_the_prompt_if_they_say_the_same():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        results = []
        for name, caption in [("none", None), ("same", "a sks bear"), ("other", "a red apple")]:
            pictures = folder / name
            shutil.copytree(SUBJECT, pictures, ignore=shutil.ignore_patterns("*.txt"))
            if caption:
                for picture in list(pictures.iterdir()):
                    picture.with_suffix(".txt").write_text(caption + "\n")
            output = train(folder / (name + "-out"), "--instance_data_dir", pictures, steps=2)
            assert "notice" not in output, output
            results.append((folder / (name + "-out") / NATIVE).read_bytes())
        assert results[0] == results[1] and results[0] != results[2]


def test_repeats_and_unreadable_files():
    with scratch() as folder:
        pictures = pathlib.Path(folder) / "pictures"
        shutil.copytree(SUBJECT, pictures / "3_sks bear")
        (pictures / "3_sks bear" / "broken.jpg").write_text("<html></html>")
        output = train(pathlib.Path(folder) / "out", "--instance_data_dir", pictures, steps=1)
        assert "Num examples = 18" in output, output
        assert "'broken.jpg'" in output and "a web page" in output, output


def test_prior_preservation_draws_what_is_missing_and_trains_on_it():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        prior = [
            "--with_prior_preservation",
            "--class_data_dir",
            folder / "class",
            "--class_prompt",
            "a bear",
            "--sample_batch_size",
            2,
        ]
        train(folder / "a", *prior, "--num_class_images", 2, steps=1)
        first = {path.name: path.read_bytes() for path in (folder / "class").iterdir()}
        assert sorted(first) == ["class-0.png", "class-1.png"]
        output = train(folder / "b", *prior, "--num_class_images", 2, steps=1)
        assert "Class pictures" not in output
        assert (folder / "a" / NATIVE).read_bytes() == (folder / "b" / NATIVE).read_bytes()
        # One more is drawn alone; drawn two at a time it would be the same.
        train(folder / "c", *prior, "--num_class_images", 3, "--prior_loss_weight", 0, steps=1)
        assert {name: (folder / "class" / name).read_bytes() for name in first} == first
        assert (folder / "class/class-2.png").exists()
        plain = train(folder / "d", steps=1)
        loss = [metrics(folder / name)[0]["loss"] for name in "acd"]
        assert loss[0] > loss[2] and abs(loss[1] - loss[2]) < 1e-6, (loss, plain)
        assert (folder / "a" / NATIVE).read_bytes() != (folder / "d" / NATIVE).read_bytes()


def test_text_encoder_adapters_have_their_own_rate_and_reach_both_files():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "a", "--train_text_encoder", steps=2)
        train(folder / "b", "--train_text_encoder", "--text_encoder_lr", "1e-30", steps=2)
        header, _ = read_safetensors(folder / "a/pytorch_lora_weights.safetensors")
        components = {name.split(".")[0] for name in header if name != "__metadata__"}
        assert components == {"unet", "text_encoder"}, components
        start = train(folder / "c", "--train_text_encoder", "--learning_rate", "1e-30", steps=1)
        assert start.count("trainable") == 2, start

        def part(name, component):
            header, data = read_safetensors(folder / name / "pytorch_lora_weights.safetensors")
            return b"".join(
                data[slice(*entry["data_offsets"])]
                for key, entry in sorted(header.items())
                if key.startswith(component + ".") and ".up." in key
            )

        assert any(part("a", "text_encoder")) and any(part("a", "unet"))
        tiny = max(abs(value) for value in floats(part("b", "text_encoder")))
        assert tiny < 1e-25 < max(abs(value) for value in floats(part("b", "unet"))), tiny


def floats(data):
    import array

    return array.array("f", data)


def test_rank_and_rate_of_single_blocks():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(
            folder / "a",
            "--variant",
            "classic",
            "--rank_pattern",
            "mid_block.*=2",
            "--rate_pattern",
            "up_blocks.*=1e-30",
            "--loraplus_lr_ratio",
            4,
            steps=1,
        )
        _, data = read_safetensors(folder / "a" / NATIVE)
        header, _ = read_safetensors(folder / "a" / NATIVE)
        ranks = {header["__metadata__"][f"{i}.rank"] for i in range(int(header["__metadata__"]["groups"]))}
        assert ranks == {"4", "2"}, ranks
        done = run("train_dreambooth_lora", *subject_flags(folder / "b", "x"), "--rate_pattern", "midblock=2")
        assert done.returncode == 1 and "midblock" in done.stderr, done
        done = run("train_dreambooth_lora", *subject_flags(folder / "b", "x"), "--rank_pattern", "mid_block")
        assert done.returncode == 2 and "PATTERN=NUMBER" in done.stderr, done


def test_every_optimiser_and_schedule_trains():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        schedules = ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"]
        for optimizer, schedule in zip(["adamw", "adafactor", "lion", "prodigy", "sgd"], schedules):
            train(
                folder / optimizer,
                "--optimizer",
                optimizer,
                "--lr_scheduler",
                schedule,
                "--lr_warmup_steps",
                1,
                steps=3,
            )
            _, data = read_safetensors(folder / optimizer / NATIVE)
            assert all(value == value for value in floats(data)), optimizer
        files = {(folder / name / NATIVE).read_bytes() for name in ["adamw", "adafactor", "lion", "prodigy", "sgd"]}
        assert len(files) == 5


def test_scale_lr_multiplies_by_the_samples_of_an_update():
    with scratch() as folder:
        output = train(folder, "--scale_lr", "--learning_rate", "1e-4", "--gradient_accumulation_steps", 3, steps=1)
        assert "Learning rate = 0.0006" in output, output


def test_a_warm_up_that_never_ends_is_said():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        text = train(folder / "a", "--lr_scheduler", "linear", "--lr_warmup_steps", 2, steps=2)
        assert "notice: --lr_warmup_steps 2 is no less than the run's 2 steps" in text, text
        assert "lr_warmup_steps" not in train(folder / "b", "--lr_scheduler", "linear", "--lr_warmup_steps", 1, steps=2)


def test_fp16_survives_a_high_learning_rate():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        train(output, "--mixed_precision", "fp16", "--learning_rate", "2e-2", "--train_batch_size", 2, steps=25)
        entries = metrics(output)
        assert len(entries) == 25 and all(entry["loss"] < 10 for entry in entries[-5:]), entries
        assert entries[0]["loss_scale"] > 1
        header, data = read_safetensors(output / NATIVE)
        assert {v["dtype"] for k, v in header.items() if k != "__metadata__"} == {"F32"}
        assert any(data) and all(abs(value) < 1e3 for value in floats(data))


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_no_weights():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        done = run(
            "train_dreambooth_lora",
            *subject_flags(output),
            "--max_train_steps",
            30,
            "--train_batch_size",
            1,
            "--learning_rate",
            "1e25",
            "--max_grad_norm",
            0,
            "--checkpointing_steps",
            1,
            "--device",
            "cpu",
        )
        assert done.returncode == 1, done
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert re.search(r"step \d+", done.stderr) and "--learning_rate" in done.stderr, done.stderr
        assert not (output / NATIVE).exists()
        for path in output.glob("checkpoint-*/*.safetensors"):
            header, data = read_safetensors(path)
            numbers = header[next(iter(k for k in header if k != "__metadata__"))]["dtype"] == "F32"
            assert not numbers or all(abs(v) < float("inf") for v in floats(data[: len(data) // 4 * 4]))


def peak(output):
    number, unit = re.search(r"peak memory: +([\d.]+) (\w+)", output).groups()
    return float(number) * {"MB": 1, "GB": 1000}[unit]


def test_gradient_checkpointing_changes_memory_and_not_the_result():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        # Freed tensors go back to the system at once, so that the peak does not depend on the allocator's habits.
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
        # One step of SGD is the gradient; AdamW's would be its sign, which rounding decides where it is near zero.
        big = [
            "--resolution",
            256,
            "--train_batch_size",
            4,
            "--pack_weights",
            "off",
            "--optimizer",
            "sgd",
            "--learning_rate",
            1000,
        ]
        plain = train(folder / "plain", *big, steps=1)
        saved = train(folder / "saved", *big, "--gradient_checkpointing", steps=1)
        del os.environ["MALLOC_MMAP_THRESHOLD_"]
        print("peak memory:", peak(plain), "MB, with gradient checkpointing", peak(saved), "MB")
        assert peak(saved) < 0.75 * peak(plain), (peak(plain), peak(saved))
        a, b = [floats(read_safetensors(folder / x / NATIVE)[1]) for x in ["plain", "saved"]]
        assert max(abs(x - y) for x, y in zip(a, b)) < 1e-5 * max(map(abs, a))


def test_checkpointed_segments_draw_the_masks_of_every_dropout_again():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        small = ["--resolution", 32, "--train_batch_size", 1, "--optimizer", "sgd", "--learning_rate", 1000]
        for kind in ["lora_dropout", "rank_dropout", "module_dropout"]:
            results = []
            for name, more in [("plain", []), ("saved", ["--gradient_checkpointing"])]:
                output = folder / f"{kind}-{name}"
                train(output, *small, "--pack_weights", "off", f"--{kind}", 0.5, *more, steps=1)
                results.append(floats(read_safetensors(output / NATIVE)[1]))
            a, b = results
            assert max(abs(x - y) for x, y in zip(a, b)) < 1e-5 * max(map(abs, a)), kind


def test_packed_weights_change_rounding_only():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for packs in ["on", "off"]:
            train(folder / packs, "--pack_weights", packs, "--optimizer", "sgd", "--learning_rate", 1, steps=2)
        a, b = [floats(read_safetensors(folder / x / NATIVE)[1]) for x in ["on", "off"]]
        assert max(abs(x - y) for x, y in zip(a, b)) < 1e-4 * max(map(abs, a))


def test_cached_latents_are_those_of_the_autoencoder():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        # The pictures are squares of the model's size: there is one crop, so caching changes nothing.
        for name, more in [("a", []), ("b", ["--cache_latents"])]:
            train(folder / name, "--random_flip", *more, steps=2)
        assert (folder / "a" / NATIVE).read_bytes() == (folder / "b" / NATIVE).read_bytes()


def test_flags_that_do_not_go_together():
    for expected, flags in [
        ("--class_data_dir", ["--with_prior_preservation"]),
        ("--with_prior_preservation", ["--class_prompt", "a bear"]),
        ("--train_text_encoder", ["--text_encoder_lr", "1e-4"]),
        (
            "'--text_encoder_lr': cannot be combined with --optimizer prodigy",
            ["--train_text_encoder", "--text_encoder_lr", "1e-4", "--optimizer", "prodigy"],
        ),
        ("--pre_compute_text_embeddings", ["--pre_compute_text_embeddings", "--train_text_encoder"]),
        ("--enable_bucket", ["--min_bucket_reso", "32"]),
        ("--loraplus_lr_ratio", ["--loraplus_lr_ratio", "4", "--variant", "fused"]),
        ("--learning_rate: expected more than 1e-07", ["--lr_scheduler", "polynomial", "--learning_rate", "1e-8"]),
        # Numbers that PyTorch's and Prodigy's optimizers refuse, and diffusers' schedules.
        *[(flag, [f"{flag}=1"]) for flag in ["--adam_beta1", "--adam_beta2", "--prodigy_beta3"]],
        *[(flag, [f"{flag}=-0.1"]) for flag in ["--adam_epsilon", "--sgd_momentum", "--max_grad_norm"]],
        *[(flag, [f"{flag}=-1"]) for flag in ["--lr_power", "--lr_num_cycles", "--prodigy_d_coef"]],
    ]:
        with scratch() as folder:
            done = run("train_dreambooth_lora", *subject_flags(pathlib.Path(folder) / "out", "x"), *flags)
            assert done.returncode == 2 and expected in done.stderr, (flags, done.stderr)


main(globals())
