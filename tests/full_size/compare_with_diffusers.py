# SPDX-License-Identifier: Apache-2.0
"""Draws with text_to_image and with diffusers on a model, of full size say, and prints how far the latents are apart.

Usage: compare_with_diffusers.py <folder of the programs> <model of make_model.py> [dtype, bf16] [side, 512] [steps, 2]
With an fp32 run of diffusers as the measure, if the dtype is bf16: half precision's own error is the limit. Needs the
UNet's size in fp32 in memory (SDXL's: 10.3 GB, and 1 to 2 more), torch, diffusers and transformers; some minutes.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

PROMPT = "a photo of a sks bear on a blue background"


def encoded(model, dtype):
    """What the text encoders make of the prompt and of none; they are gone before the UNet comes."""
    pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=dtype, safety_checker=None, unet=None, vae=None)
    if getattr(pipe, "text_encoder_2", None) is None:
        states, without = pipe.encode_prompt(PROMPT, "cpu", 1, True)
        return dict(prompt_embeds=states, negative_prompt_embeds=without)
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    return dict(zip(names, pipe.encode_prompt(PROMPT, device="cpu")))


def there(model, dtype, latents, side, steps):
    start = time.time()
    texts = encoded(model, dtype)
    index = json.loads((pathlib.Path(model) / "model_index.json").read_text())
    absent = {name: None for name in index if name.startswith(("text_encoder", "tokenizer"))}
    pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=dtype, safety_checker=None, **absent)
    pipe.set_progress_bar_config(disable=True)
    sizes = dict(height=side, width=side, num_inference_steps=steps, guidance_scale=7.5)
    result = pipe(latents=latents.to(dtype), output_type="latent", **texts, **sizes).images
    print(f"diffusers, {dtype}: {time.time() - start:.0f} s with loading", flush=True)
    return result.double()


def here(programs, model, dtype, latents, side, steps):
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        save_file({"latents": latents}, folder / "start.safetensors")
        command = [programs / "text_to_image", "--pretrained_model_name_or_path", model, "--prompt", PROMPT]
        command += [
            "--initial_latents",
            folder / "start.safetensors",
            "--num_inference_steps",
            steps,
            "--device",
            "cpu",
        ]
        command += ["--dtype", dtype, "--save_latents", folder / "end.safetensors", "--output", folder / "x.png"]
        command += ["--guidance_scale", 7.5, "--vae_tiling"]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        print(f"text_to_image, {dtype}: {time.time() - start:.0f} s with loading and decoding", flush=True)
        return load_file(folder / "end.safetensors")["latents"].double()


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()


@torch.no_grad()
def main(programs, model, dtype="bf16", side=512, steps=2):
    side, steps = int(side), int(steps)
    vae = json.loads((pathlib.Path(model) / "vae/config.json").read_text())
    length = side // 2 ** (len(vae["block_out_channels"]) - 1)
    latents = torch.randn(1, vae["latent_channels"], length, length, generator=torch.Generator().manual_seed(0))
    ours = here(pathlib.Path(programs), model, dtype, latents, side, steps)
    exact = there(model, torch.float32, latents, side, steps)
    error = distance(ours, exact)
    if dtype == "fp32":
        print(f"relative difference {error:.1e}")
        assert error <= 1e-4, error
        return
    theirs = there(model, torch.bfloat16, latents, side, steps)
    own = distance(theirs, exact)
    print(
        f"relative error against fp32: text_to_image {error:.1e}, diffusers {own:.1e}; apart {distance(ours, theirs):.1e}"
    )
    assert error <= 1.25 * own, (error, own)


main(*sys.argv[1:])
