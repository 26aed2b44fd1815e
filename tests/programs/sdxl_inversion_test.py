# SPDX-License-Identifier: Apache-2.0
"""A word learned on SDXL has vectors for both text encoders, goes on from a checkpoint, and draws the same in
diffusers."""

import json
import pathlib
import shutil

import numpy
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from support import SOURCE, SUBJECT, main, run, run_ok, scratch

SMALL = SOURCE / "tests/parity/data/pipeline_xl"
PROMPT = "a photo of <toy>"


def model(folder):
    """The small model, whose second encoder knows its end token: diffusers takes the largest id for it otherwise,
    which is that of the new word."""
    copy = folder / "model"
    shutil.copytree(SMALL, copy)
    config = copy / "text_encoder_2/config.json"
    end = json.loads((copy / "text_encoder/config.json").read_text())["eos_token_id"]
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": end}))
    return copy


def learn(path, output, *more, steps=4):
    return run_ok(
        "textual_inversion",
        "--pretrained_model_name_or_path",
        path,
        *["--train_data_dir", SUBJECT, "--placeholder_token", "<toy>", "--initializer_token", "bear"],
        *["--output_dir", output, "--resolution", 16, "--train_batch_size", 2, "--max_train_steps", steps],
        *["--num_vectors", 2, "--learning_rate", "0.1", "--device", "cpu"],
        *more,
    )


def picture(folder, path, *more):
    run_ok(
        "text_to_image",
        "--pretrained_model_name_or_path",
        path,
        *["--prompt", PROMPT, "--num_inference_steps", 3, "--guidance_scale", 5, "--device", "cpu"],
        *["--initial_latents", folder / "latents.safetensors", "--output", folder / "x.png"],
        *more,
    )
    return numpy.asarray(Image.open(folder / "x.png"), dtype=float)


def there(pipe, latents):
    pipe.set_progress_bar_config(disable=True)
    image = pipe(PROMPT, num_inference_steps=3, guidance_scale=5.0, latents=latents.clone(), output_type="np").images[0]
    return numpy.round(image * 255)


def load(path):
    return StableDiffusionXLPipeline.from_pretrained(str(path), torch_dtype=torch.float32, add_watermarker=False)


def test_a_learned_word_draws_the_same_in_diffusers():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        path = model(folder)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        save_file({"latents": latents}, folder / "latents.safetensors")
        learn(path, folder / "word", "--save_as_full_pipeline")
        tensors = load_file(folder / "word/learned_embeds.safetensors")
        assert {name: tuple(value.shape) for name, value in tensors.items()} == {"clip_l": (2, 24), "clip_g": (2, 16)}
        here = picture(folder, path, "--learned_embeds", folder / "word/learned_embeds.safetensors")
        pipe = load(path)
        before = there(pipe, latents)
        for key, encoder, tokenizer in [
            ("clip_l", pipe.text_encoder, pipe.tokenizer),
            ("clip_g", pipe.text_encoder_2, pipe.tokenizer_2),
        ]:
            pipe.load_textual_inversion(tensors[key], token="<toy>", text_encoder=encoder, tokenizer=tokenizer)
        drawn = there(pipe, latents)
        print(f"difference {abs(here - drawn).max():.2f}, effect {abs(drawn - before).mean():.2f} of 255")
        assert abs(here - drawn).max() <= 1
        assert abs(drawn - before).mean() > 2, "the word changed too little for this test to mean anything"
        # The whole model knows it too, here and there.
        whole = picture(folder, folder / "word")
        assert abs(whole - here).max() <= 1
        assert abs(there(load(folder / "word"), latents) - here).max() <= 1


def test_a_run_goes_on_as_if_it_had_not_stopped():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        learn(SMALL, folder / "whole", steps=4)
        learn(SMALL, folder / "parts", "--checkpointing_steps", 2, steps=2)
        learn(SMALL, folder / "parts", "--checkpointing_steps", 2, "--resume_from_checkpoint", "latest", steps=4)
        name = "learned_embeds.safetensors"
        assert (folder / "whole" / name).read_bytes() == (folder / "parts" / name).read_bytes()


def test_what_does_not_go_together_is_said():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        done = run(
            "textual_inversion",
            "--pretrained_model_name_or_path",
            SMALL,
            *["--train_data_dir", SUBJECT, "--placeholder_token", "<toy>", "--initializer_token", "bear"],
            *["--output_dir", folder / "x", "--layerwise", "--device", "cpu", "--max_train_steps", 1],
        )
        assert done.returncode == 2 and "cannot be combined with SDXL" in done.stderr, done.stderr


main(globals())
