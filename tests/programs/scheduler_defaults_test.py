# SPDX-License-Identifier: Apache-2.0
"""Scheduler files of other classes: what they leave out is as in diffusers' pipeline, not as in the classes."""

import functools
import json
import pathlib
import shutil

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from support import LATENTS, MODEL, main, run_ok, scratch

PROMPT = "a red apple on a blue background"
STEPS = 5


def model_with(folder, config):
    shutil.copytree(MODEL, folder)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    return folder


def latents_here(folder, model, scheduler):
    output = run_ok(
        "text_to_image",
        "--pretrained_model_name_or_path",
        model,
        "--prompt",
        PROMPT,
        "--num_inference_steps",
        STEPS,
        "--device",
        "cpu",
        "--scheduler",
        scheduler,
        "--initial_latents",
        folder / "start.safetensors",
        "--save_latents",
        folder / "end.safetensors",
        "--output",
        folder / "x.png",
    )
    return load_file(folder / "end.safetensors")["latents"], output


@functools.cache
def loaded():
    return StableDiffusionPipeline.from_pretrained(str(MODEL), safety_checker=None).components


def latents_there(model, scheduler, start, **config):
    parts = {**loaded(), "scheduler": scheduler.from_pretrained(str(model), subfolder="scheduler")}
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler.register_to_config(**config)  # what the pipeline itself switches off
    return pipe(PROMPT, num_inference_steps=STEPS, latents=start.clone(), output_type="latent").images


def test_latents_are_those_of_the_pipeline():
    own = json.loads((MODEL / "scheduler/scheduler_config.json").read_text())
    noise = {key: own[key] for key in ["beta_start", "beta_end", "beta_schedule", "prediction_type"]}
    euler = dict(EulerDiscreteScheduler(**noise).config)
    listed = {**own, "_use_default_values": ["clip_sample", "steps_offset"]}
    with scratch() as folder:
        folder = pathlib.Path(folder)
        start = torch.randn(LATENTS, generator=torch.Generator().manual_seed(1))
        save_file({"latents": start}, folder / "start.safetensors")
        for name, config in [("euler", {**euler, "steps_offset": 1}), ("bare", noise), ("listed", listed)]:
            model = model_with(folder / name, {"_class_name": "EulerDiscreteScheduler", **config})
            for scheduler, kind in [("ddim", DDIMScheduler), ("pndm", PNDMScheduler)]:
                here, output = latents_here(folder, model, scheduler)
                there = latents_there(model, kind, start)
                error = ((here - there).norm() / there.norm()).item()
                print(
                    f"{name} with {scheduler}: relative difference {error:.1e}, largest latent {there.abs().max():.1f}"
                )
                assert error < 1e-4 and here.abs().max() > 1.01 and "clip_sample" not in output, (name, scheduler)
        # What a file says counts as it stands, and is said if it greys pictures.
        model = model_with(folder / "clipped", {**own, "clip_sample": True})
        here, output = latents_here(folder, model, "ddim")
        assert "notice: " in output and "clip_sample is true" in output, output
        there = latents_there(model, DDIMScheduler, start, clip_sample=True)
        assert ((here - there).norm() / there.norm()).item() < 1e-4
        assert ((here - latents_there(MODEL, DDIMScheduler, start)).norm() / there.norm()).item() > 1e-2


main(globals())
