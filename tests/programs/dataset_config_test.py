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


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_captions_are_dropped_in_every_nth_epoch():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        count = pictures(folder)
        start = f"""[[datasets]]
resolution = 32
batch_size = {count}
[[datasets.subsets]]
image_dir = "{folder}/photos"
caption_extension = ".tags"
"""
        for name, more in {
            "all": "",
            "none": "caption_dropout_rate = 1.0\n",
            "first": "caption_dropout_every_n_epochs = 1\n",
            "second": "caption_dropout_every_n_epochs = 2\n",
        }.items():
            text = train(folder, name, start + more, "--max_train_steps", 2)
            assert "left out" not in text, text
        losses = {name: [entry["loss"] for entry in metrics(folder / name)] for name in ["all", "none", "second"]}
        assert (folder / "none" / NATIVE).read_bytes() == (folder / "first" / NATIVE).read_bytes()
        assert losses["second"][0] == losses["all"][0] != losses["none"][0], losses
        assert losses["second"][1] != losses["all"][1], losses


def validated(folder, name, config, *more):
    """The validation loss before the first step."""
    train(folder, name, config, "--max_train_steps", 1, "--validation_steps", 1, *more)
    return next(entry["validation_loss"] for entry in metrics(folder / name) if "validation_loss" in entry)


def test_a_validation_has_the_captions_and_masks_of_the_training():
    from PIL import Image

    with scratch() as folder:
        folder = pathlib.Path(folder)
        pictures(folder)
        (folder / "masks").mkdir()
        for picture in (folder / "photos").glob("*.png"):
            with Image.open(picture) as image:
                Image.new("L", image.size, 0).save(folder / "masks" / picture.name)
        start = f"""[[datasets]]
resolution = 32
[[datasets.subsets]]
image_dir = "{folder}/photos"
"""
        plain = validated(folder, "a", start + 'class_tokens = "bear"\n')
        whole = validated(folder, "b", start + 'class_tokens = "red bear end"\n')
        parts = 'class_tokens = "bear"\ncaption_prefix = "red"\ncaption_suffix = "end"\n'
        assert validated(folder, "c", start + parts) == whole != plain
        # What is dropped and shuffled in training stays in what is compared.
        parts += "caption_dropout_rate = 1.0\nshuffle_caption = true\n"
        assert validated(folder, "d", start + parts) == whole
        # A mask of nothing leaves nothing.
        black = f'class_tokens = "bear"\nconditioning_data_dir = "{folder}/masks"\n'
        assert validated(folder, "e", start + black) == 0 < plain


def test_subsets_are_cut_out_in_their_own_way():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        pictures(folder)
        above = "[[datasets]]\nresolution = 32\n{}"
        subset = f'[[datasets.subsets]]\nimage_dir = "{folder}/photos"\n'
        # Random cuts only show in pictures that are no squares.
        from PIL import Image

        for picture in (folder / "photos").glob("*.png"):
            with Image.open(picture) as image:
                image.resize((96, 64)).save(picture)
        for name, config in {
            "middle": above.format("") + subset,
            "above": above.format("random_crop = true\n") + subset,
            "own": above.format("") + subset + "random_crop = true\n",
            "over": above.format("random_crop = true\n") + subset + "random_crop = false\n",
        }.items():
            train(folder, name, config, "--max_train_steps", 1)
        results = {name: (folder / name / NATIVE).read_bytes() for name in ["middle", "above", "own", "over"]}
        assert results["middle"] == results["over"] != results["above"] == results["own"]


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
            (subset + "resolution = 64\n", "expected 'resolution' in [[datasets]] or [general], got it in a subset"),
            (subset + "batch_size = 2\n", "expected 'batch_size' in [[datasets]]"),
            (subset + "enable_bucket = false\n", "expected 'enable_bucket' in [[datasets]]"),
            ("is_reg = true\n" + subset, "line 1: expected [general] or [[datasets]] at the top, got 'is_reg'"),
            ("[train]\nlr = 1\n" + subset, "at the top, got 'train'"),
            ("[general]\nis_reg = true\n" + subset, "expected 'is_reg' in [[datasets.subsets]], got it above"),
            ("general = 3\n" + subset, "expected a table [general]"),
            ("datasets = 3\n", "expected tables as 'datasets'"),
        ]:
            assert said in train(folder, "x", config, status=1), config
        assert "color_aug" not in train(folder, "y", subset + "color_aug = false\n", "--max_train_steps", 1)
        text = train(folder, "z", subset, "--instance_data_dir", folder / "photos", status=2)
        assert "'--dataset_config': cannot be combined with --instance_data_dir" in text, text


main(globals())
