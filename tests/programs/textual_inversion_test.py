# SPDX-License-Identifier: Apache-2.0
"""A word that is learned here means the same in diffusers, also with vectors for each cross attention."""

import pathlib
import shlex

import numpy
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import LATENTS, MODEL, SUBJECT, WIDTH, draw, main, read_latents, run, run_ok, scratch, train, word_flags

FILE = "learned_embeds.safetensors"
PROMPT = "a <toy> on a blue background"


def invert(output, *more, steps=3, vectors=1):
    return run_ok(
        "textual_inversion",
        *word_flags(output),
        "--train_batch_size",
        2,
        "--learning_rate",
        0.2,
        "--num_vectors",
        vectors,
        "--device",
        "cpu",
        "--max_train_steps",
        steps,
        *more,
    )


def start(folder):
    latents = torch.randn(LATENTS, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, folder / "latents.safetensors")
    return latents


def here(folder, *more, prompt=PROMPT, model=MODEL):
    draw(
        folder / "here.png",
        "--pretrained_model_name_or_path",
        model,
        "--prompt",
        prompt,
        "--initial_latents",
        folder / "latents.safetensors",
        "--save_latents",
        folder / "final.safetensors",
        *more,
    )
    return numpy.asarray(Image.open(folder / "here.png"), dtype=float)


def final(folder):
    return torch.tensor(read_latents(folder / "final.safetensors")["latents"][1])


def pipeline(model=MODEL):
    pipe = StableDiffusionPipeline.from_pretrained(str(model), torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_pretrained(str(MODEL), subfolder="scheduler")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def there(pipe, latents, prompt=PROMPT):
    result = pipe(prompt, num_inference_steps=4, guidance_scale=7.5, latents=latents.clone(), output_type="np")
    return numpy.round(result.images[0] * 255)


def test_diffusers_loads_the_file_and_draws_the_same():
    for vectors in [1, 8]:
        with scratch() as folder:
            folder = pathlib.Path(folder)
            text = invert(folder / "out", vectors=vectors)
            assert f"Trained values = {vectors * WIDTH}" in text, text
            latents, pipe = start(folder), pipeline()
            plain = there(pipe, latents, PROMPT.replace("<toy>", "bear"))
            pipe.load_textual_inversion(str(folder / "out" / FILE))
            expected = there(pipe, latents)
            assert abs(expected - plain).mean() > 2, "too little was learned for this test to mean anything"
            error = abs(here(folder, "--learned_embeds", folder / "out" / FILE) - expected).mean()
            print(f"{vectors} vectors: mean absolute difference {error:.4f} of 255")
            assert error <= 1, error


def test_layerwise_words_equal_diffusers_with_another_text_for_each_cross_attention():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        invert(folder / "out", "--layerwise", vectors=2)
        with safe_open(folder / "out" / FILE, "pt") as file:
            names = file.metadata()["layers"]
        vectors = load_file(folder / "out" / FILE)["<toy>"]
        latents, pipe = start(folder), pipeline()
        layers = [name for name, module in pipe.unet.named_modules() if type(module).__name__ == "Transformer2DModel"]
        # The order of a forward pass, which is not that of registration.
        layers.sort(key=lambda name: (["down", "mid_", "up_b"].index(name[:4]), name))
        assert vectors.shape == (len(layers), 2, WIDTH), (vectors.shape, layers, names)
        assert (vectors[0] - vectors[-1]).abs().max() > 1e-3, "the layers learned alike"

        # diffusers has no such thing: the text of each layer is put there by hand.
        pipe.tokenizer.add_tokens(["<a>", "<b>"])
        pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
        ids = pipe.tokenizer(
            ["", PROMPT.replace("<toy>", "<a> <b>")], padding="max_length", return_tensors="pt"
        ).input_ids
        table = pipe.text_encoder.get_input_embeddings().weight
        for index, name in enumerate(layers):
            with torch.no_grad():
                table[pipe.tokenizer.convert_tokens_to_ids(["<a>", "<b>"])] = vectors[index]
                states = pipe.text_encoder(ids)[0]
            for block in pipe.unet.get_submodule(name).transformer_blocks:
                block.attn2.register_forward_pre_hook(
                    lambda module, args, kwargs, states=states: (args, {**kwargs, "encoder_hidden_states": states}),
                    with_kwargs=True,
                )
        expected = there(pipe, latents, "ignored")
        error = abs(here(folder, "--learned_embeds", folder / "out" / FILE) - expected).mean()
        print(f"layer-wise: mean absolute difference {error:.4f} of 255")
        assert error <= 1, error

        # The same vectors for every layer are the plain word.
        metadata = {"layers": names}
        save_file({"<toy>": vectors[:1].repeat(len(layers), 1, 1)}, folder / "same.safetensors", metadata)
        save_file({"<toy>": vectors[0].contiguous()}, folder / "plain.safetensors")
        here(folder, "--learned_embeds", folder / "same.safetensors", prompt="a (<toy>:1.3) on a blue background")
        same = final(folder)
        here(folder, "--learned_embeds", folder / "plain.safetensors", prompt="a (<toy>:1.3) on a blue background")
        assert (same - final(folder)).norm() < 1e-4 * same.norm()


def test_the_full_pipeline_knows_the_word():
    for vectors in [1, 3]:
        with scratch() as folder:
            folder = pathlib.Path(folder)
            text = invert(folder / "out", "--save_as_full_pipeline", vectors=vectors)
            assert f"model with it:  {folder / 'out'}" in text, text
            latents, pipe = start(folder), pipeline()
            pipe.load_textual_inversion(str(folder / "out" / FILE))
            expected = there(pipe, latents)
            again = pipeline(folder / "out")
            error = abs(there(again, latents) - expected).mean()
            ours = abs(here(folder, model=folder / "out") - expected).mean()
            print(f"{vectors} vectors: full pipeline in diffusers {error:.4f}, here {ours:.4f} of 255")
            assert error <= 1 and ours <= 1, (error, ours)
            # It is a model like any other.
            train(folder / "lora", "--instance_prompt", "a <toy>", model=folder / "out", steps=1)


def test_a_run_that_goes_on_ends_as_one_that_never_stopped():
    for more in [[], ["--layerwise"]]:
        with scratch() as folder:
            whole, parts = pathlib.Path(folder) / "whole", pathlib.Path(folder) / "parts"
            more = [*more, "--seed", 3, "--checkpointing_steps", 2, "--save_steps", 2]
            invert(whole, *more, steps=4, vectors=2)
            invert(parts, *more, steps=2, vectors=2)
            text = invert(parts, *more, "--resume_from_checkpoint", "latest", steps=4, vectors=2)
            assert "at step 2 of 4" in text, text
            assert (whole / FILE).read_bytes() == (parts / FILE).read_bytes()
            early = (whole / "learned_embeds-steps-2.safetensors").read_bytes()
            assert early == (parts / "checkpoint-2" / FILE).read_bytes() and early != (whole / FILE).read_bytes()


def test_every_variant_trains_from_a_word_and_draws_with_both():
    variants = {
        "0": ["classic"],
        "1": ["light"],
        "2": ["light", "--init", "down_zero"],
        "4": ["fused"],
        "5": ["light", "--aux_init", "normal", "--learning_rate", "1e-5"],
    }
    with scratch() as folder:
        folder = pathlib.Path(folder)
        start(folder)
        invert(folder / "word", "--layerwise")
        word = ["--learned_embeds", folder / "word" / FILE]
        base = here(folder, *word)
        for name, variant in variants.items():
            text = train(
                folder / name,
                "--instance_prompt",
                "a <toy>",
                *word,
                "--learning_rate",
                0.02,
                "--variant",
                *variant,
                steps=2,
            )
            assert "learned word <toy>" in text and f"--learned_embeds {word[1]}" in text, text
            both = here(folder, *word, "--lora", folder / name / "lightlora.safetensors")
            assert abs(both - base).mean() > 0.1, name
        # The captions beside the pictures count, and they do not have the word.
        loss = [(folder / name / "metrics.jsonl").read_text().splitlines()[0] for name in ["0", "1"]]
        assert loss[0].split("loss")[1] == loss[1].split("loss")[1], loss


def fails(folder, code, expected, **changed):
    flags = {
        "pretrained_model_name_or_path": MODEL,
        "train_data_dir": SUBJECT,
        "placeholder_token": "<toy>",
        "initializer_token": "bear",
        "output_dir": folder / "out",
        "max_train_steps": 1,
        **changed,
    }
    done = run("textual_inversion", *[x for name, value in flags.items() for x in (f"--{name}", value)])
    assert done.returncode == code and len(done.stderr.splitlines()) == 1, done
    assert expected in done.stderr, done.stderr


def test_bad_usage_is_one_clear_line():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        fails(folder, 2, "expected a word of one token", initializer_token="bear on a")
        fails(folder, 1, "does not know yet", placeholder_token="<|endoftext|>")
        fails(folder, 2, "object, style", learnable_property="thing")
        fails(folder, 2, "--num_vectors: expected at most", num_vectors=2**62)
        fails(folder, 1, "nothing", train_data_dir=folder / "none")
        fails(folder, 2, "safetensors, which diffusers", no_safe_serialization="")
        fails(folder, 2, "nothing is sent anywhere", hub_token="x")
        done = run("textual_inversion", *word_flags(folder / "out"), "--save_as_full_pipeline", "--layerwise")
        assert done.returncode == 2 and "expected a plain word" in done.stderr, done


def test_a_layerwise_word_of_another_unet_is_refused():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        names = {"layers": "down_blocks.9.attentions.0"}
        save_file({"<toy>": torch.ones(1, 1, WIDTH)}, folder / "one.safetensors", names)
        done = run(
            "text_to_image",
            "--pretrained_model_name_or_path",
            MODEL,
            "--prompt",
            "x",
            "--output",
            folder / "x.png",
            "--learned_embeds",
            folder / "one.safetensors",
        )
        assert done.returncode == 1 and "transformers of the UNet" in done.stderr, done


def test_the_card_and_the_printed_command_draw_the_word_as_it_was_trained():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        text = invert(folder / "out", steps=1)
        words = shlex.split(text.split("draw with it:   ")[1].split(" --output picture.png")[0])
        assert words[words.index("--prompt_syntax") + 1] == "plain", words
        assert words[words.index("--prompt") + 1] == "a photo of <toy>", words
        card = (folder / "out/README.md").read_text()
        assert "--prompt_syntax plain" in card and "- textual_inversion\n" in card and "load_lora" not in card, card
        assert "| `learning_rate` | 0.2 |" in card, card
        code = card.split("```python\n")[1].split("```")[0]
        assert f'pipe.load_textual_inversion("{FILE}", token="<toy>")' in code, code
        compile(code, "README.md", "exec")
        # A LoRA that was trained with the word names it too.
        learned = ["--learned_embeds", folder / "out" / FILE, "--instance_prompt", "a <toy>"]
        train(folder / "lora", *learned, steps=1)
        code = (folder / "lora/README.md").read_text().split("```python\n")[1].split("```")[0]
        assert f'pipe.load_textual_inversion("{folder / "out" / FILE}", token="<toy>")' in code, code


main(globals())
