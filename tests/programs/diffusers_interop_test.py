# SPDX-License-Identifier: Apache-2.0
"""The bundled model and a file trained here open in the real diffusers and draw the same picture there."""

import json
import pathlib
import warnings

import numpy
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from support import LATENTS, MODEL, draw, main, run_ok, scratch, train

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


def relative(here, there):
    return ((here - there).norm() / there.norm()).item()


def drawn_here(folder, *more):
    """Final latents and the picture's path."""
    picture, latents = folder / "here.png", folder / "final.safetensors"
    draw(picture, "--prompt", PROMPT, "--seed", 3, "--save_latents", latents, *more)
    return load_file(latents)["latents"], picture


def test_every_part_of_the_bundled_model_computes_what_it_does_there():
    pipe = pipeline()
    settings = dict(num_inference_steps=4, guidance_scale=7.5, output_type="latent")
    with scratch() as folder:
        folder = pathlib.Path(folder)
        shown = run_ok("text_to_image", "--pretrained_model_name_or_path", MODEL, "--prompt", PROMPT, "--print_tokens")
        assert json.loads(shown) == pipe.tokenizer(PROMPT, padding="max_length", truncation=True).input_ids
        # Text encoder, UNet and scheduler, from equal noise.
        latents, picture = drawn_here(folder)
        there = pipe(PROMPT, generator=torch.Generator().manual_seed(3), **settings).images
        print(f"latents: relative difference {relative(latents, there):.1e}")
        assert relative(latents, there) < 1e-4
        # The decoder, on latents of here.
        with torch.no_grad():
            decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        decoded = numpy.round(pipe.image_processor.postprocess(decoded, output_type="np")[0] * 255)
        here = numpy.asarray(Image.open(picture), dtype=float)
        assert abs(here - decoded).max() <= 1, abs(here - decoded).max()
        # The encoder, on the picture of here.
        start = picture.rename(folder / "start.png")
        other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        other.set_progress_bar_config(disable=True)
        with Image.open(start) as image:
            noise = torch.Generator().manual_seed(3)
            there = other(PROMPT, image=image.convert("RGB"), strength=0.5, generator=noise, **settings).images
        latents, _ = drawn_here(folder, "--image", start, "--strength", 0.5)
        print(f"latents from a picture: relative difference {relative(latents, there):.1e}")
        assert relative(latents, there) < 1e-4


def test_trained_files_draw_the_same_picture_in_diffusers():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = torch.randn(LATENTS, generator=torch.Generator().manual_seed(0))
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
