# SPDX-License-Identifier: Apache-2.0
"""Learned embeddings of diffusers and A1111 draw the same picture here as in diffusers."""

import json
import pathlib

import numpy
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from support import LATENTS, MODEL, WIDTH, draw, main, run, run_ok, scratch

PROMPT = "a <toy> on a blue background, <toy>"


def start(folder):
    latents = torch.randn(LATENTS, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, folder / "latents.safetensors")
    return latents


def here(folder, *more):
    draw(folder / "here.png", "--prompt", PROMPT, "--initial_latents", folder / "latents.safetensors", *more)
    return numpy.asarray(Image.open(folder / "here.png"), dtype=float)


def there(latents, file, **more):
    pipe = StableDiffusionPipeline.from_pretrained(str(MODEL), torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_pretrained(str(MODEL), subfolder="scheduler")
    pipe.set_progress_bar_config(disable=True)
    if file:
        pipe.load_textual_inversion(str(file), **more)
    prompt = pipe.maybe_convert_prompt(PROMPT, pipe.tokenizer)
    ids = pipe.tokenizer(prompt, padding="max_length", truncation=True).input_ids
    result = pipe(PROMPT, num_inference_steps=4, guidance_scale=7.5, latents=latents.clone(), output_type="np")
    return numpy.round(result.images[0] * 255), ids


def files(folder, count):
    """One concept in every format, and what each is called as."""
    torch.manual_seed(count)
    vectors = torch.randn(count, WIDTH) * 0.05
    save_file({"<toy>": vectors}, folder / "learned_embeds.safetensors")
    torch.save({"<toy>": vectors[0] if count == 1 else vectors}, folder / "learned_embeds.bin")
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "<toy>", "step": 9},
        folder / "a1111.pt",
    )
    save_file({"emb_params": vectors}, folder / "kohya.safetensors")
    return {"learned_embeds.safetensors": "", "learned_embeds.bin": "", "a1111.pt": "", "kohya.safetensors": ":<toy>"}


def test_every_format_draws_as_in_diffusers():
    for count in [1, 3]:
        with scratch() as folder:
            folder = pathlib.Path(folder)
            latents = start(folder)
            plain, _ = there(latents, None)
            formats = files(folder, count)
            expected, ids = there(latents, folder / "learned_embeds.safetensors")
            assert abs(expected - plain).mean() > 2, "the embedding changed too little"
            for name, token in formats.items():
                picture = here(folder, "--learned_embeds", f"{folder / name}{token}")
                error = abs(picture - expected).mean()
                print(f"{name} with {count} vectors: mean absolute difference {error:.4f} of 255")
                assert error <= 1, (name, error)
                shown = run_ok(
                    "text_to_image",
                    "--pretrained_model_name_or_path",
                    MODEL,
                    "--prompt",
                    PROMPT,
                    "--print_tokens",
                    "--learned_embeds",
                    f"{folder / name}{token}",
                )
                assert json.loads(shown.splitlines()[0]) == ids, name


def test_a_picture_remembers_its_embeddings():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        start(folder)
        files(folder, 2)
        first = here(folder, "--learned_embeds", f"{folder / 'kohya.safetensors'}:<toy>")
        run_ok(
            "text_to_image",
            "--pretrained_model_name_or_path",
            MODEL,
            "--device",
            "cpu",
            "--from_png",
            folder / "here.png",
            "--output",
            folder / "again.png",
        )
        assert (numpy.asarray(Image.open(folder / "again.png"), dtype=float) == first).all()


def test_errors():
    with scratch() as folder:
        folder = pathlib.Path(folder)

        def fails(expected, embedding):
            done = run(
                "text_to_image",
                "--pretrained_model_name_or_path",
                MODEL,
                "--prompt",
                "x",
                "--output",
                folder / "x.png",
                "--learned_embeds",
                embedding,
            )
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, (done.returncode, done.stderr)
            assert expected in done.stderr, (expected, done.stderr)

        save_file({"<toy>": torch.ones(1, 768)}, folder / "wide.safetensors")
        fails(f"expected vectors of width {WIDTH}", folder / "wide.safetensors")
        save_file({"<|endoftext|>": torch.ones(1, WIDTH)}, folder / "known.safetensors")
        fails("does not know yet", folder / "known.safetensors")
        fails("got nothing", folder / "none.safetensors")


def test_words_bundled_with_a_lora_are_used_or_named():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        start(folder)
        torch.manual_seed(1)
        vectors = torch.randn(2, WIDTH) * 0.05
        layer = "lora_unet_down_blocks_2_attentions_0_transformer_blocks_0_attn1_to_q"
        width = load_file(MODEL / "unet/diffusion_pytorch_model.safetensors")[
            "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q.weight"
        ].shape[0]
        lora = {f"{layer}.lora_down.weight": torch.ones(1, width), f"{layer}.lora_up.weight": torch.zeros(width, 1)}
        bundle = lora | {"bundle_emb.<toy>.string_to_param.*": vectors}
        save_file(bundle, folder / "lora.safetensors")
        save_file({"<toy>": vectors}, folder / "word.safetensors")
        expected = here(folder, "--learned_embeds", folder / "word.safetensors")
        assert (here(folder, "--lora", folder / "lora.safetensors") == expected).all()
        flags = ["--pretrained_model_name_or_path", MODEL, "--prompt", "a", "--num_inference_steps", 1, "--device"]
        flags += ["cpu", "--output", folder / "x.png", "--lora", folder / "lora.safetensors"]
        output = run_ok("text_to_image", *flags)
        assert "lora.safetensors' holds the word <toy>, which no prompt uses" in output, output
        # What is for another model is named, and the adapters are used.
        bundle["bundle_emb.<toy>.string_to_param.*"] = torch.ones(1, 7)
        save_file(bundle, folder / "lora.safetensors")
        output = run_ok("text_to_image", *flags)
        assert f"a word in it is not used: '<toy>': expected vectors of width {WIDTH}" in output, output
        output = run_ok(
            "convert_lora",
            *["--input", folder / "lora.safetensors", "--to", "kohya", "--output", folder / "converted.safetensors"],
        )
        assert "the embeddings in it are not converted: <toy>" in output, output


main(globals())
