# SPDX-License-Identifier: Apache-2.0
"""What a model in one file says of its UNet's prediction: noise or velocity."""

import json
import pathlib
import shutil

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_file_support import close, latents_file, picture, small_model
from support import main, run_ok, scratch


def drawn_with(folder, merged, **changes):
    """A picture of the small model under a changed scheduler, and what a file merged from it says of itself."""
    shutil.copytree(folder / "model", folder / "other")
    file = folder / "other/scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    drawn = picture(folder, folder / "other")
    run_ok(
        "text_to_image", "--pretrained_model_name_or_path", folder / "other", "--device", "cpu", "--merge_to", merged
    )
    with safe_open(merged, "pt") as opened:
        said = opened.metadata()["modelspec.prediction_type"]
    shutil.rmtree(folder / "other")
    return drawn, said


def three_predictions(folder, merged):
    """Pictures of the small model that predicts the noise, the velocity, and the velocity at zero signal."""
    epsilon, said = drawn_with(folder, merged)
    assert said == "epsilon"
    zero, said = drawn_with(
        folder, merged, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    assert said == "v"
    velocity, said = drawn_with(folder, merged, prediction_type="v_prediction")
    assert said == "v"
    apart = [abs(a - b).mean() for a, b in [(epsilon, velocity), (epsilon, zero), (velocity, zero)]]
    assert min(apart) > 1, apart
    return epsilon, velocity, zero


def check_marks(folder, single, state, epsilon, velocity, zero):
    """What a single file says of its prediction counts; where it says nothing, that is told."""
    mark = torch.zeros(0)
    cases = [
        ("nothing", {}, None, epsilon),
        ("A1111's tensor", {"v_pred": mark}, None, velocity),
        ("both tensors", {"v_pred": mark, "ztsnr": mark}, None, zero),
        ("sd-scripts, v", {}, {"modelspec.prediction_type": "v"}, velocity),
        ("sd-scripts, epsilon", {}, {"modelspec.prediction_type": "epsilon"}, epsilon),
        ("ComfyUI, v", {}, {"modelspec.predict_key": "v"}, velocity),
        ("an unknown word", {}, {"modelspec.prediction_type": "x0"}, epsilon),
    ]
    notice = "notice: '%s': nothing says what its UNet predicts"
    for title, tensors, metadata, expected in cases:
        save_file(state | tensors, single, metadata)
        close(title, picture(folder, single), expected, 0)
        shown = run_ok(
            "text_to_image",
            "--pretrained_model_name_or_path",
            single,
            "--device",
            "cpu",
            "--merge_to",
            folder / "again.safetensors",
        )
        told = title not in ["nothing", "an unknown word"]
        assert shown.count(notice % single) == (0 if told else 1) and shown.count("notice") == (not told), shown
    torch.save({"state_dict": state | {"v_pred": mark}}, folder / "alone/model.ckpt")
    close("a checkpoint's tensor", picture(folder, folder / "alone/model.ckpt"), velocity, 0)


def test_what_the_unet_of_a_file_predicts():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents_file(folder, channels=4)
        small_model(folder)
        merged = folder / "merged.safetensors"
        epsilon, velocity, zero = three_predictions(folder, merged)
        state, single = load_file(merged), folder / "alone" / "model.safetensors"
        single.parent.mkdir()
        check_marks(folder, single, state, epsilon, velocity, zero)

        save_file(state, single)
        for text, expected in [
            ('model:\n  params:\n    parameterization: "v"\n    linear_start: 0.00085\n', velocity),
            ("model:\n  params:\n    linear_start: 0.00085\n", epsilon),
        ]:
            single.with_suffix(".yaml").write_text(text)
            close("a configuration beside it", picture(folder, single), expected, 0)
        scheduler = folder / "given/scheduler"
        scheduler.mkdir(parents=True)
        known = json.loads((folder / "model/scheduler/scheduler_config.json").read_text())
        (scheduler / "scheduler_config.json").write_text(json.dumps(known | {"prediction_type": "v_prediction"}))
        close("a scheduler given", picture(folder, single, "--model_config", folder / "given"), velocity, 0)


main(globals())
