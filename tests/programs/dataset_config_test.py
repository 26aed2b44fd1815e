# SPDX-License-Identifier: Apache-2.0
"""--dataset_config: a data set as sd-scripts' TOML describes it."""

import json
import pathlib
import shutil

from support import MODEL, SUBJECT, main, run, scratch

NATIVE = "lightlora.safetensors"


def train(folder, name, config, *more, status=0):
    """One run of a configuration; returns what it says."""
    (folder / "data.toml").write_text(config)
    done = run(
        "train_dreambooth_lora",
        "--pretrained_model_name_or_path",
        MODEL,
        "--instance_prompt",
        "a sks bear",
        "--dataset_config",
        folder / "data.toml",
        "--output_dir",
        folder / name,
        "--device",
        "cpu",
        *more,
    )
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def pictures(folder):
    for name in ["photos", "others"]:
        shutil.copytree(SUBJECT, folder / name, ignore=shutil.ignore_patterns("*.txt"))
    for picture in sorted((folder / "photos").glob("*.png")):
        picture.with_suffix(".tags").write_text("sks bear, green, soft, small")
    return len(list((folder / "photos").glob("*.png")))


def test_subsets_repeat_and_have_captions_of_their_own():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        count = pictures(folder)
        start = f"""[general]
enable_bucket = false
[[datasets]]
resolution = 64
batch_size = 2
[[datasets.subsets]]
image_dir = "{folder}/photos"
num_repeats = 3
"""
        text = train(folder, "a", start + 'class_tokens = "sks bear"\n', "--max_train_steps", 1)
        assert f"Num examples = {3 * count} at 64x64" in text and "batch size per device = 2" in text, text
        tagged = start + 'caption_extension = ".tags"\n'
        train(folder, "b", tagged, "--max_train_steps", 2)
        train(folder, "c", tagged + "shuffle_caption = true\nkeep_tokens = 1\n", "--max_train_steps", 2)
        train(folder, "d", tagged + "caption_dropout_rate = 1.0\n", "--max_train_steps", 2)
        results = [(folder / name / NATIVE).read_bytes() for name in "bcd"]
        assert len(set(results)) == 3
        # Class pictures are a subset, and an epoch is as long as the larger set.
        second = f'[[datasets.subsets]]\nimage_dir = "{folder}/others"\nclass_tokens = "bear"\nis_reg = true\n'
        text = train(folder, "e", tagged + second + "num_repeats = 4\n")
        assert f"Total optimization steps = {4 * count // 2}\n" in text, text
        losses = [json.loads(line)["loss"] for line in (folder / "e/metrics.jsonl").read_text().splitlines()]
        assert len(losses) == 4 * count // 2


def test_what_is_not_supported_is_refused_by_name():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        pictures(folder)
        subset = f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{folder}/photos"\n'
        for config, said in [
            (subset + "color_aug = true\n", "line 4: expected a key that is supported here, got 'color_aug'"),
            (subset + "num_repeats = 'x'\n", "another kind of value for 'num_repeats'"),
            (subset + subset, "expected one [[datasets]], got 2"),
            ("[[datasets]]\n", "expected pictures"),
            (subset + "keep_tokens =\n", "data.toml' line 4: expected TOML"),
        ]:
            assert said in train(folder, "x", config, status=1), config
        assert "color_aug" not in train(folder, "y", subset + "color_aug = false\n", "--max_train_steps", 1)
        text = train(folder, "z", subset, "--instance_data_dir", folder / "photos", status=2)
        assert "'--dataset_config': cannot be combined with --instance_data_dir" in text, text


main(globals())
