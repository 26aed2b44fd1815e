# SPDX-License-Identifier: Apache-2.0
"""The programs that make the bundled base model, called as scripts/make_base_model.sh calls them."""

import filecmp
import json
import pathlib
import sys

from support import MODEL, SOURCE, SUBJECT, main, run_ok, scratch

CONFIG = SOURCE / "examples/stable_diffusion/research/pretraining/base.json"
NEXT = CONFIG.with_name("next.json")
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
        output = stage("measure", folder / "small.json", folder)
        figures = json.loads(output[output.index("{") :])
        assert figures["vocabulary"] == 64 and figures["model"]["pictures"] == 2, figures
        assert figures["training_pictures"]["background_as_asked"] == 1, figures


def test_the_next_configuration_makes_a_model_that_draws():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        run_ok("make_dataset", "--config", NEXT, "--output_dir", folder / "data")
        write_small(NEXT, folder / "small.json")
        stage("tokenizer", NEXT, folder)
        for name in ["vae", "diffusion"]:
            stage(name, folder / "small.json", folder, "--stop_at", 1)
        output = stage("measure", folder / "small.json", folder)
        words = json.loads(output[output.index("{") :])["words"]
        assert words["pictures"] == 2 and 0 <= words["place_as_asked"] <= 1, words
        size = sum(
            path.stat().st_size
            for part in ["unet", "vae", "text_encoder"]
            for path in (folder / "model" / part).glob("*.safetensors")
        )
        assert size < 30e6, size
        picture = folder / "apple.png"
        run_ok(
            "text_to_image",
            "--pretrained_model_name_or_path",
            folder / "model",
            "--prompt",
            "a small red apple in the top left on a blue background",
            "--num_inference_steps",
            2,
            "--output",
            picture,
        )
        assert picture.exists()


main(globals())
