# SPDX-License-Identifier: Apache-2.0
"""Makes the numbers that tests/programs/generation_parity_test.py compares with.

Made with Python 3.11, torch 2.11.0 (CPU), diffusers 0.42.1, transformers 5.23.0:

    python tests/parity/make_generation.py

reads the folder that make_pipeline.py made and writes tests/parity/data/generation: a picture to
start from and `numbers.safetensors` with the final latents (and some pictures) of diffusers'
pipelines in fp32. `cases.json` holds the flags that have to give the same with text_to_image.
Weighted prompts are no part of diffusers: `encode_weighted` does what A1111's web UI documents.
"""

import json
import re

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from make_pipeline import DATA, make_scheduler
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel

FOLDER = DATA / "generation"
SCHEDULER = json.loads((DATA / "pipeline/scheduler/scheduler_config.json").read_text())
LONG = " ".join(
    f"{c} {t} {n}"
    for c in ("red", "blue", "green", "black")
    for n, t in zip(("apple", "house", "cat", "dog", "bear", "boat"), "big small old round odd new".split())
)
NUMBERS, CASES = {}, {}


def parse_attention(text):
    """[(text, weight) or None for BREAK], by regular expressions."""
    token = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|\]|[^\\()\[\]:]+|:")
    out, opened, squares = [], [], []

    def multiply(start, factor):
        for piece in out[start:]:
            if piece[0] is not None:
                piece[1] *= factor

    for match in token.finditer(text):
        word, weight = match.group(0), match.group(1)
        if word.startswith("\\"):
            out.append([word[1:], 1.0])
        elif word == "(":
            opened.append(len(out))
        elif word == "[":
            squares.append(len(out))
        elif weight is not None and opened:
            multiply(opened.pop(), float(weight))
        elif word == ")" and opened:
            multiply(opened.pop(), 1.1)
        elif word == "]" and squares:
            multiply(squares.pop(), 1 / 1.1)
        else:
            for i, part in enumerate(re.split(r"\s*\bBREAK\b\s*", word)):
                if i > 0:
                    out.append([None, 0])
                out.append([part, 1.0])
    for start in opened:
        multiply(start, 1.1)
    for start in squares:
        multiply(start, 1 / 1.1)
    joined = []
    for text, weight in out:
        if joined and text is not None and joined[-1][0] is not None and joined[-1][1] == weight:
            joined[-1][0] += text
        elif text != "":
            joined.append([text, weight])
    return joined


def encode_weighted(pipe, prompt, at_least=1):
    tokenizer, room = pipe.tokenizer, pipe.tokenizer.model_max_length - 2
    chunks, current = [], []
    for text, weight in parse_attention(prompt) or [["", 1.0]]:
        if text is None:
            chunks.append(current)
            current = []
            continue
        for token in tokenizer(text, add_special_tokens=False).input_ids:
            if len(current) == room:
                chunks.append(current)
                current = []
            current.append((token, weight))
    if current or not chunks:
        chunks.append(current)
    chunks += [[]] * (at_least - len(chunks))
    states = []
    for chunk in chunks:
        padding = [(tokenizer.pad_token_id, 1.0)] * (room - len(chunk))
        row = [(tokenizer.bos_token_id, 1.0), *chunk, (tokenizer.eos_token_id, 1.0), *padding]
        ids = torch.tensor([[token for token, _ in row]])
        z = pipe.text_encoder(ids).last_hidden_state
        weighted = z * torch.tensor([weight for _, weight in row])[None, :, None]
        states.append(weighted * (z.mean() / weighted.mean()))
    return torch.cat(states, dim=1)


def add(key, flags, pipe, picture=False, seed=None, seeds=None, **settings):
    """One case: the flags for our program and the same call of diffusers."""

    def generator():
        if seeds:
            return [torch.Generator("cpu").manual_seed(s) for s in seeds]
        return torch.Generator("cpu").manual_seed(seed)

    flags = dict(flags)
    flags["seeds" if seeds else "seed"] = ",".join(map(str, seeds)) if seeds else seed
    CASES[key] = {name: str(value) for name, value in flags.items()}
    NUMBERS[key] = pipe(output_type="latent", generator=generator(), **settings).images
    if picture:
        array = pipe(output_type="np", generator=generator(), **settings).images
        NUMBERS[key + ".pictures"] = torch.from_numpy(array)
    print(key, tuple(NUMBERS[key].shape), float(NUMBERS[key].std()))


def text_cases(pipe):
    plain = dict(prompt="a red apple", num_inference_steps=5)
    for name in ("ddpm", "pndm", "euler", "euler_ancestral", "lcm", "dpmpp_2m", "dpmpp_2m_karras", "unipc"):
        pipe.scheduler = make_scheduler(name, SCHEDULER)
        add(f"text_{name}", dict(plain, scheduler=name), pipe, seed=2, **plain)
    for name in ("euler", "unipc"):
        pipe.scheduler = make_scheduler(name, dict(SCHEDULER, use_karras_sigmas=True, timestep_spacing="trailing"))
        flags = dict(plain, scheduler=name, use_karras_sigmas="true", timestep_spacing="trailing")
        add(f"karras_{name}", flags, pipe, seed=2, **plain)
    pipe.scheduler = make_scheduler("euler_ancestral", SCHEDULER)
    add("seeds", dict(plain, scheduler="euler_ancestral"), pipe, seeds=[4, 5, 6], num_images_per_prompt=3, **plain)
    pipe.scheduler = make_scheduler("ddim", SCHEDULER)
    for skip in (1, 2):
        add(
            f"clip_skip_{skip}",
            dict(plain, clip_skip=skip, negative_prompt="blurry"),
            pipe,
            seed=3,
            clip_skip=skip,
            negative_prompt="blurry",
            **plain,
        )
    size = dict(height=48, width=40)
    pipe.vae.enable_tiling()
    add("tiling", dict(plain, vae_tiling="true", **size), pipe, picture=True, seed=3, **size, **plain)
    pipe.vae.disable_tiling()
    add("no_tiling", dict(plain, **size), pipe, picture=True, seed=3, **size, **plain)


def weight_cases(pipe):
    prompts = {
        "weights": ("a (red:1.4) apple on [blue] ((background)), \\(art\\) (x: 0.5 ) a:b", "blurry, (bad:1.3)"),
        "open": ("a (red apple (on the [table", "]bad) (: 1.2) \\\\ \\"),
        "break": ("a red apple BREAK on a blue (table BREAK round:1.2)", "BREAKfast"),
        "long": (LONG, "(" + LONG[:120] + ":0.8)"),
        "longer_negative": ("a cat", LONG),
    }
    for key, (prompt, negative) in prompts.items():
        length = max(encode_weighted(pipe, text).shape[1] // 77 for text in (prompt, negative))
        with torch.no_grad():
            embeds = dict(
                prompt_embeds=encode_weighted(pipe, prompt, length),
                negative_prompt_embeds=encode_weighted(pipe, negative, length),
            )
        flags = dict(prompt=prompt, negative_prompt=negative, num_inference_steps=4)
        add(f"prompt_{key}", flags, pipe, seed=5, num_inference_steps=4, **embeds)


def image_cases(pipe):
    image = Image.open(FOLDER / "start.png")
    plain = dict(prompt="a red apple", num_inference_steps=7, strength=0.6)
    flags = dict(plain, image=str((FOLDER / "start.png").relative_to(DATA)))
    for name in ("ddim", "ddpm", "pndm", "euler", "euler_ancestral", "lcm", "dpmpp_2m", "dpmpp_2m_karras", "unipc"):
        pipe.scheduler = make_scheduler(name, SCHEDULER)
        add(f"image_{name}", dict(flags, scheduler=name), pipe, seed=2, image=image, **plain)
    pipe.scheduler = make_scheduler("ddim", SCHEDULER)
    add(
        "image_three", dict(flags, num_images_per_prompt=3), pipe, seed=6, image=image, num_images_per_prompt=3, **plain
    )
    add("image_whole", dict(flags, strength=1), pipe, seed=6, image=image, **dict(plain, strength=1.0))
    pipe.vae.enable_tiling()
    add("image_tiling", dict(flags, vae_tiling="true"), pipe, seed=6, image=image, **plain)
    pipe.vae.disable_tiling()


def main():
    FOLDER.mkdir(exist_ok=True)
    y, x = torch.meshgrid(torch.arange(27), torch.arange(37), indexing="ij")
    colours = torch.stack([x * 6, y * 9, (x * y) % 256], dim=-1).to(torch.uint8)
    Image.fromarray(colours.numpy()).save(FOLDER / "start.png")  # odd sizes: to be rounded down
    settings = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe = StableDiffusionPipeline.from_pretrained(DATA / "pipeline", torch_dtype=torch.float32, **settings)
    pipe.set_progress_bar_config(disable=True)
    # diffusers 0.42 looks for the layer norm where transformers had it before 5.6.
    CLIPTextModel.text_model = property(lambda encoder: encoder)
    text_cases(pipe)
    weight_cases(pipe)
    image_pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    image_pipe.set_progress_bar_config(disable=True)
    image_cases(image_pipe)
    save_file({k: v.float().contiguous() for k, v in NUMBERS.items()}, FOLDER / "numbers.safetensors")
    (FOLDER / "numbers.safetensors").chmod(0o644)
    (FOLDER / "cases.json").write_text(json.dumps(CASES, indent=1) + "\n")


if __name__ == "__main__":
    main()
