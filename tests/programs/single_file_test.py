# SPDX-License-Identifier: Apache-2.0
"""Models in one file: ours load in diffusers, those of Stable Diffusion 1.x load here, and both draw the same."""

import json
import os
import pathlib
import shutil

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from single_file_support import PROMPT, SCHEDULER, close, fails, latents_file, lora_file, picture, small_model, there
from support import MODEL, TOKENS, UNET, main, run, run_ok, scratch, train


def test_a_merged_file_draws_as_the_model_with_its_lora():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = latents_file(folder)
        lora_file(folder / "lora.safetensors")
        expected = picture(folder, MODEL, "--lora", folder / "lora.safetensors")
        assert abs(expected - picture(folder, MODEL)).mean() > 2
        merged = folder / "merged.safetensors"
        shown = run_ok(
            "text_to_image",
            "--pretrained_model_name_or_path",
            MODEL,
            "--device",
            "cpu",
            "--lora",
            folder / "lora.safetensors",
            "--merge_to",
            merged,
        )
        assert shown.splitlines() == [shown.splitlines()[0], f"model: {merged}"], shown
        assert shown.startswith("device: cpu, fp32, LibTorch "), shown
        close("merged file", picture(folder, merged, "--model_config", MODEL), expected, 0)
        close("merged file by itself", picture(folder, merged), expected, 0)
        again = folder / "again.safetensors"
        run_ok("text_to_image", "--pretrained_model_name_or_path", merged, "--device", "cpu", "--merge_to", again)
        assert again.read_bytes() == merged.read_bytes()
        tokens = ["--prompt", PROMPT, "--print_tokens"]
        assert run_ok("text_to_image", "--pretrained_model_name_or_path", merged, *tokens) == run_ok(
            "text_to_image", "--pretrained_model_name_or_path", MODEL, *tokens
        )
        pipe = StableDiffusionPipeline.from_single_file(
            str(merged), config=str(MODEL), local_files_only=True, torch_dtype=torch.float32, safety_checker=None
        )
        scheduler = DDIMScheduler.from_pretrained(str(MODEL), subfolder="scheduler")
        close("merged file in diffusers", there(pipe, latents, scheduler), expected, 1)


def test_a_merged_file_with_more_in_it_draws_the_same():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents_file(folder)
        merged = folder / "merged.safetensors"
        run_ok("text_to_image", "--pretrained_model_name_or_path", MODEL, "--device", "cpu", "--merge_to", merged)
        expected = picture(folder, MODEL)
        # As trainers save it, with a schedule's tensors and an averaged copy beside.
        state = load_file(merged)
        state |= {
            "model_ema.decay": torch.tensor(0.9),
            "alphas_cumprod": torch.ones(3),
            "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(TOKENS)[None],
        }
        torch.save({"state_dict": state, "epoch": 1, "global_step": 2}, folder / "merged.ckpt")
        torch.save(state, folder / "merged.bin")
        for name in ["merged.ckpt", "merged.bin"]:
            close(name, picture(folder, folder / name, "--model_config", MODEL), expected, 0)
        # What plays no part is named once: the average, and an optimiser's state, but no schedule.
        torch.save({"state_dict": state, "optimizer": {"exp_avg": torch.ones(3)}}, folder / "trained.ckpt")
        drawing = ["--prompt", "a", "--num_inference_steps", 1, "--device", "cpu", "--output", folder / "x.png"]
        for name, count in [("merged.bin", 1), ("trained.ckpt", 2)]:
            flags = ["--pretrained_model_name_or_path", folder / name, "--model_config", MODEL]
            output = run_ok("text_to_image", *flags, *drawing)
            assert output.count("notice") == 1 and f"{count} tensors beside the model's parts" in output, output
        flags = ["--pretrained_model_name_or_path", merged, *drawing]
        assert "notice" not in run_ok("text_to_image", *flags)
        # Bytes behind the last tensor, as a published file has them.
        with open(merged, "ab") as file:
            file.write(bytes(4))
        fails("4 behind the last tensor); hint: accept them with --allow_trailing_bytes", merged)
        close("with trailing bytes", picture(folder, merged, "--allow_trailing_bytes"), expected, 0)
        tokens = run_ok(
            "text_to_image",
            "--pretrained_model_name_or_path",
            merged,
            "--allow_trailing_bytes",
            "--prompt",
            PROMPT,
            "--print_tokens",
        )
        assert tokens.startswith("["), tokens


def test_bytes_behind_the_last_tensor_of_a_folder_or_a_lora():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents_file(folder)
        lora = folder / "lora.safetensors"
        lora_file(lora)
        expected = picture(folder, MODEL, "--lora", lora)
        model = folder / "model"
        shutil.copytree(MODEL, model)
        for file in [lora, *model.rglob("*.safetensors")]:
            with open(file, "ab") as stream:
                stream.write(b"more")
        hint = "hint: accept them with --allow_trailing_bytes"
        fails(hint, model)
        fails(hint, MODEL, "--lora", lora)
        close("with the flag", picture(folder, model, "--lora", lora, "--allow_trailing_bytes"), expected, 0)
        done = run("convert_lora", "--input", lora, "--inspect")
        assert done.returncode == 1 and hint in done.stderr, done.stderr
        run_ok("convert_lora", "--input", lora, "--inspect", "--allow_trailing_bytes")


def test_training_on_a_file_is_training_on_its_folder():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        file = folder / "model.safetensors"
        run_ok("text_to_image", "--pretrained_model_name_or_path", MODEL, "--device", "cpu", "--merge_to", file)
        train(folder / "a", "--train_text_encoder", steps=2)
        train(folder / "b", "--train_text_encoder", steps=2, model=file)
        assert (folder / "a/lightlora.safetensors").read_bytes() == (folder / "b/lightlora.safetensors").read_bytes()


def test_a_stable_diffusion_1_file_needs_nothing_else():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = latents_file(folder, channels=4)
        tokenizer = small_model(folder)
        expected = picture(folder, folder / "model")
        (folder / "alone").mkdir()
        single = folder / "alone/model.safetensors"
        run_ok(
            "text_to_image",
            "--pretrained_model_name_or_path",
            folder / "model",
            "--device",
            "cpu",
            "--merge_to",
            single,
        )
        close("file alone", picture(folder, single), expected, 0)
        pipe = StableDiffusionPipeline.from_single_file(
            str(single),
            config=str(folder / "model"),
            local_files_only=True,
            torch_dtype=torch.float32,
            safety_checker=None,
        )
        close("file in diffusers", there(pipe, latents, SCHEDULER), expected, 1)
        tokens = ["--pretrained_model_name_or_path", single, "--prompt", "a", "--print_tokens"]
        done = run("text_to_image", *tokens, env={**os.environ, "TMPDIR": "/no/such/folder"})
        assert done.returncode == 0 and done.stdout == run_ok("text_to_image", *tokens), done
        texts = [PROMPT, "Ünïcode ☃ 🍎 and it's 3 o'clock", "antidisestablishmentarianism,,, !!"]
        for text in texts:
            shown = run_ok(
                "text_to_image", "--pretrained_model_name_or_path", single, "--prompt", text, "--print_tokens"
            )
            assert json.loads(shown.splitlines()[0]) == tokenizer(text, padding="max_length", truncation=True).input_ids
        # Old folders have pickled files only.
        for part, name in [
            ("unet", "diffusion_pytorch_model"),
            ("vae", "diffusion_pytorch_model"),
            ("text_encoder", "model"),
        ]:
            file = folder / "model" / part / f"{name}.safetensors"
            pickled = "pytorch_model.bin" if part == "text_encoder" else f"{name}.bin"
            torch.save(load_file(file), file.parent / pickled)
            file.unlink()
        close("pickled folder", picture(folder, folder / "model"), expected, 0)


def test_other_files_are_refused_by_name():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        file = folder / "model.safetensors"
        cases = [
            ("conditioner.embedders.0.model.x", "an SDXL refiner"),
            ("double_blocks.0.x", "FLUX"),
            ("lora_unet_conv_in.lora_up.weight", "give it as --lora"),
            ("down_blocks.0.x", "name the folder"),
            ("something", "a file of other tensors"),
            ("model.diffusion_model.x", "without its autoencoder"),
        ]
        for name, expected in cases:
            save_file({name: torch.zeros(2)}, file)
            fails(expected, file)
        run_ok("text_to_image", "--pretrained_model_name_or_path", MODEL, "--device", "cpu", "--merge_to", file)
        save_file(load_file(file), folder / "bare.safetensors")  # without metadata
        channels = (
            UNET["block_out_channels"] + json.loads((MODEL / "vae/config.json").read_text())["block_out_channels"]
        )
        odd = next(count for count in channels if count % 32)
        fails(f"multiples of norm_num_groups (32), got {odd}", folder / "bare.safetensors")
        torch.save(torch.nn.Linear(2, 2), folder / "model.ckpt")
        fails("torch.nn.modules.linear.Linear", folder / "model.ckpt")
        done = run("text_to_image", "--pretrained_model_name_or_path", MODEL, "--merge_to", folder / "x.ckpt")
        assert done.returncode == 2 and "ends in .safetensors" in done.stderr, done.stderr
        done = run("text_to_image", "--pretrained_model_name_or_path", MODEL, "--output", folder / "x.png")
        assert done.returncode == 2 and "--prompt" in done.stderr, done.stderr


main(globals())
