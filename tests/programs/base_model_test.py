# SPDX-License-Identifier: Apache-2.0
"""The programs that make the bundled base model, called as scripts/make_base_model.sh calls them."""

import filecmp
import json
import pathlib
import sys

from support import MODEL, SOURCE, SUBJECT, main, read_safetensors, run_ok, scratch

CONFIG = SOURCE / "examples/stable_diffusion/research/pretraining/base.json"
FONT = pathlib.Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
if not FONT.exists():
    print(f"skipped: '{FONT}' is missing; apt-get install fonts-noto-color-emoji")
    sys.exit(77)


def stage(name, config, folder, *more):
    return run_ok(
        "pretrain",
        "--config",
        config,
        "--dataset_dir",
        folder / "data",
        "--stage",
        name,
        "--output_dir",
        folder / "model",
        *more,
    )


def same_files(made, bundled):
    names = sorted(path.name for path in bundled.iterdir())
    assert sorted(path.name for path in made.iterdir()) == names, names
    _, different, missing = filecmp.cmpfiles(made, bundled, names, shallow=False)
    assert not different and not missing, (different, missing)


def configuration(path):
    """A part's configuration without the one number that is measured."""
    values = json.loads(path.read_text())
    values.pop("scaling_factor", None)
    return values


def shapes(path):
    """Names, types and shapes of a file's tensors."""
    header, _ = read_safetensors(path)
    return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def colours(path):
    """The mean colour of a picture's lower right, and how many pixels are red where the subject is asked for, and not."""
    from PIL import Image

    with Image.open(path) as picture:
        pixels, side = picture.convert("RGB").load(), picture.width
    places = [(x, y) for y in range(side) for x in range(side)]
    behind = [pixels[place] for place in places if min(place) >= 3 * side // 4]
    red = {"top left": 0, "elsewhere": 0}
    for x, y in places:
        r, g, b = pixels[x, y]
        red["top left" if max(x, y) < 5 * side // 8 else "elsewhere"] += r > 120 and r > g + 40 and r > b + 40
    return [sum(colour[i] for colour in behind) / len(behind) for i in range(3)], red


def write_small(config, path):
    """The same sizes with less to encode and to draw, for one step of each stage."""
    small = json.loads(config.read_text())
    small["vae"].update(batch=2, validation_pictures=2)
    small["diffusion"].update(batch=2, latent_pool=4, validation_pictures=2, validation_samples=2)
    small["measure"] = {
        "prompts": 2,
        "prompts_with_words": 2,
        "steps": 2,
        "unseen_pictures": 2,
        "classifier": {"steps": 2},
    }
    path.write_text(json.dumps(small))


def check_card(folder, output):
    """The table of the model's card, then the same as JSON."""
    table, figures = output.split("\n{", 1)
    figures = json.loads("{" + figures)
    assert figures == json.loads((folder / "model/figures.json").read_text())
    assert figures["vocabulary"] == 64 and figures["model"]["pictures"] == 2, figures
    assert figures["training_pictures"]["background_as_asked"] == 1, figures
    words = figures["words"]
    assert words["pictures"] == 2 and 0 <= words["place_as_asked"] <= 1, words
    for row in ["named emoji is the nearest of the 64", "the classifier sees the named emoji", "place as asked"]:
        assert f"\n| {row} | " in table, table


def test_the_bundled_model_is_what_the_configuration_makes():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        output = run_ok("make_dataset", "--config", CONFIG, "--output_dir", folder / "data")
        assert "64 named emoji" in output and "8 subjects" in output, output
        same_files(folder / "data/subjects/teddy_bear", SUBJECT)
        stage("tokenizer", CONFIG, folder)
        same_files(folder / "model/tokenizer", MODEL / "tokenizer")

        write_small(CONFIG, folder / "small.json")
        for name in ["vae", "diffusion"]:
            assert f"{name}: 1 steps done" in stage(name, folder / "small.json", folder, "--stop_at", 1)
        for part in [
            "vae/config.json",
            "unet/config.json",
            "text_encoder/config.json",
            "model_index.json",
            "scheduler/scheduler_config.json",
        ]:
            assert configuration(folder / "model" / part) == configuration(MODEL / part), part
        weights = sorted(path.relative_to(MODEL) for path in MODEL.rglob("*.safetensors"))
        for path in weights:
            assert shapes(folder / "model" / path) == shapes(MODEL / path), path
        check_card(folder, stage("measure", folder / "small.json", folder))


def test_the_bundled_model_is_small_and_draws_what_captions_say():
    size = sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file())
    assert size <= 30e6, size
    with scratch() as folder:
        picture = pathlib.Path(folder) / "apple.png"
        run_ok(
            "text_to_image",
            "--pretrained_model_name_or_path",
            MODEL,
            "--prompt",
            "a small red apple in the top left on a blue background",
            "--num_inference_steps",
            20,
            "--guidance_scale",
            4,
            "--seed",
            1,
            "--output",
            picture,
        )
        colour, red = colours(picture)
        assert colour[2] > colour[0] + 60, colour  # blue behind it
        assert red["top left"] > 40 and red["elsewhere"] < red["top left"] / 4, red


main(globals())
