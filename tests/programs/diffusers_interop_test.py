# SPDX-License-Identifier: Apache-2.0
"""A file trained here opens in the real diffusers and draws the same picture there."""

import pathlib
import warnings

import numpy
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from support import MODEL, SIDE, draw, main, scratch, train

PROMPT = "a sks bear on a blue background"


def pipeline():
    pipe = StableDiffusionPipeline.from_pretrained(str(MODEL), torch_dtype=torch.float32, safety_checker=None)
    # The folder's numbers as they stand: the pipeline itself changes old scheduler files while loading.
    pipe.scheduler = DDIMScheduler.from_pretrained(str(MODEL), subfolder="scheduler")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture_there(pipe, latents):
    result = pipe(PROMPT, num_inference_steps=4, guidance_scale=7.5, latents=latents.clone(), output_type="np")
    return numpy.round(result.images[0] * 255)


def test_trained_files_draw_the_same_picture_in_diffusers():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        save_file({"latents": latents}, folder / "latents.safetensors")
        pipe = pipeline()
        base = picture_there(pipe, latents)
        for variant in ["classic", "light", "fused"]:
            out = folder / variant
            train(out, "--variant", variant, "--rank", 3, "--network_alpha", 6, "--learning_rate", "0.02")
            draw(
                folder / "here.png",
                "--prompt",
                PROMPT,
                "--initial_latents",
                folder / "latents.safetensors",
                "--lora",
                out / "pytorch_lora_weights.safetensors",
            )
            here = numpy.asarray(Image.open(folder / "here.png"), dtype=float)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                pipe.load_lora_weights(str(out))
            modules = sum(hasattr(module, "lora_A") for module in pipe.unet.modules())
            stored = len(load_file(out / "pytorch_lora_weights.safetensors"))
            assert 2 * modules == stored, (modules, stored)
            there = picture_there(pipe, latents)
            pipe.unload_lora_weights()
            error, effect = abs(here - there).mean(), abs(there - base).mean()
            print(f"{variant}: mean absolute difference {error:.4f} of 255, effect of the LoRA {effect:.2f}")
            assert error <= 1.0, error
            assert effect > 2.0, "the LoRA changed too little for this test to mean anything"


def test_a_native_file_is_refused_there_and_not_passed_over():
    with scratch() as folder:
        train(folder, "--variant", "light", steps=1)
        try:
            pipeline().load_lora_weights(folder, weight_name="lightlora.safetensors")
        except ValueError as error:
            assert "Invalid LoRA checkpoint" in str(error), error
        else:
            raise AssertionError("expected an error, got none")


main(globals())
